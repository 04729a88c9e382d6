"""What hardening runs found, in docs/hardening.md: cases by ring, verdicts, what was lost where.

`docs/hardening.json` keeps the numbers of some runs, and the tables are made of it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.inputs import InputError, WrongValueError, build, json_of, text_of
from harness.report.coverage import CoverageError, replaced
from harness.report.hardened_table import RINGS, found_on
from harness.report.merge import merged
from harness.report.results import LIMIT, Column, Results, Verdict, bare_name, made_of
from harness.robustness.fate import Fate

PAGE, SUMMARY = Path("docs/hardening.md"), Path("docs/hardening.json")

MAKE = "vblk matrix hardening --docs"
"""The command that makes the tables."""


@dataclass(frozen=True)
class Fates:
    """What became of the devices of one target, on one version.

    `implementations` make up the device: name -> version. `rings`, `verdicts`: kind -> cases.
    `lost` has, for each test, how its cases ended that ended badly; `failed` counts those of
    them that are not recorded.
    """

    target: str
    implementations: Mapping[str, str]
    rings: Mapping[str, int]
    verdicts: Mapping[str, int]
    lost: Mapping[str, Mapping[str, int]]
    failed: int

    @classmethod
    def of(cls, results: Results, column: Column) -> Fates:
        """Count those of a column."""
        found = dict(found_on(results, column))
        lost: dict[str, Counter[str]] = {}
        for name, one in found.items():
            if not Fate(one.hardening["verdict"]).tolerable:
                lost.setdefault(bare_name(name), Counter())[one.hardening["verdict"]] += 1
        return cls(
            column.name,
            dict(column.implementations),
            Counter(one.hardening["ring"] for one in found.values()),
            Counter(one.hardening["verdict"] for one in found.values()),
            lost,
            sum(one.verdict in (Verdict.BROKEN, Verdict.ERROR) for one in found.values()),
        )


def keep(root: Path, parts: Iterable[Results]) -> None:
    """Put the numbers of these results, and of no others, into the summary."""
    results = merged(parts)
    fates = [Fates.of(results, column) for column in results.columns]
    document = [
        {
            "target": one.target,
            "implementations": dict(one.implementations),
            "rings": {ring: one.rings.get(ring, 0) for ring in RINGS},
            "verdicts": _ordered(one.verdicts),
            "lost": {test: _ordered(counts) for test, counts in sorted(one.lost.items())},
            "failed": one.failed,
        }
        for one in fates
        if one.verdicts
    ]
    (root / SUMMARY).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _ordered(counts: Mapping[str, int]) -> dict[str, int]:
    return {fate.value: counts[fate] for fate in Fate if counts.get(fate)}


def loaded(root: Path) -> list[Fates]:
    """The numbers in the summary. CoverageError if it is not there, or damaged."""
    path = root / SUMMARY
    try:
        return build(list[Fates], json_of(path, text_of(path, LIMIT)))
    except InputError as error:
        raise CoverageError(f"{error}; {MAKE} RESULTS.json makes it") from None
    except WrongValueError as error:
        raise CoverageError(f"{path} is damaged: {error}; {MAKE} RESULTS.json makes it") from None


def made(root: Path) -> str:
    """What the page has to say. CoverageError if there is no place for it, or no numbers."""
    fates = loaded(root)
    path = root / PAGE
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise CoverageError(f"{path}: {error.strerror}; run it in a checkout") from None
    for part, lines in (("verdicts", verdicts_table(fates)), ("lost", lost_table(fates))):
        text = replaced(path, text, part, lines, MAKE)
    return text


def stale(root: Path) -> bool:
    """Whether the page's tables are not current."""
    return made(root) != (root / PAGE).read_text(encoding="utf-8")


def verdicts_table(fates: Iterable[Fates]) -> list[str]:
    """Cases and verdicts, a line for each target and version."""
    fates = list(fates)
    seen = [fate.value for fate in Fate if any(one.verdicts.get(fate) for one in fates)]
    lines = [
        f"| target | version | {' | '.join((*RINGS, *seen))} | not recorded |",
        f"| --- | --- |{' ---: |' * (len(RINGS) + len(seen) + 1)}",
    ]
    for one in fates:
        numbers = [one.rings.get(ring, 0) for ring in RINGS]
        numbers += [one.verdicts.get(fate, 0) for fate in seen]
        cells = " | ".join(f"{number or ''}" for number in numbers)
        lines.append(
            f"| `{one.target}` | {made_of(one.implementations)} | {cells} | {one.failed} |"
        )
    return lines


def lost_table(fates: Iterable[Fates]) -> list[str]:
    """How many cases of each test ended badly, and how. Targets that lost none are left out."""
    fates = [one for one in fates if one.lost]
    tests = sorted({test for one in fates for test in one.lost})
    titles = " | ".join(f"`{one.target}`, {made_of(one.implementations)}" for one in fates)
    lines = [f"| test | {titles} |", f"| --- |{' --- |' * len(fates)}"]
    for test in tests:
        cells = " | ".join(
            ", ".join(f"{count} {fate}" for fate, count in one.lost.get(test, {}).items())
            for one in fates
        )
        lines.append(f"| `{test}` | {cells} |")
    return lines
