"""Tables of hardening runs in docs/hardening.md: cases by ring, verdicts, and lost devices.

`docs/hardening.json` keeps the numbers of some runs, and the tables are made from it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.inputs import InputError, WrongValueError, build, json_of, read_text
from harness.outputs import replace_text
from harness.report.coverage import CoverageError, replaced
from harness.report.hardened_table import RINGS, found_on
from harness.report.merge import merged
from harness.report.results import LIMIT, Column, Results, Verdict, bare_name, made_of
from harness.robustness.fate import Fate

PAGE, SUMMARY = Path("docs/hardening.md"), Path("docs/hardening.json")

MAKE = "vblk matrix hardening --docs"
"""Command that makes the tables."""


@dataclass(frozen=True)
class Fates:
    """Fates of the devices of one target, on one version.

    `implementations` make up the device: name -> version. `rings` and `verdicts` map a kind to the
    number of cases. `lost` maps each test to the bad fates of its cases; `failed` counts the bad
    cases that are not recorded.
    """

    target: str
    implementations: Mapping[str, str]
    rings: Mapping[str, int]
    verdicts: Mapping[str, int]
    lost: Mapping[str, Mapping[str, int]]
    failed: int

    @classmethod
    def of(cls, results: Results, column: Column) -> Fates:
        """Count the fates of a column."""
        cases = dict(found_on(results, column))
        lost: dict[str, Counter[str]] = {}
        for name, case in cases.items():
            if not Fate(case.hardening["verdict"]).tolerable:
                lost.setdefault(bare_name(name), Counter())[case.hardening["verdict"]] += 1
        return cls(
            column.name,
            dict(column.implementations),
            Counter(case.hardening["ring"] for case in cases.values()),
            Counter(case.hardening["verdict"] for case in cases.values()),
            lost,
            sum(case.verdict in (Verdict.BROKEN, Verdict.ERROR) for case in cases.values()),
        )


def keep(root: Path, parts: Iterable[Results]) -> None:
    """Write the numbers of these results, and no others, to the summary."""
    results = merged(parts)
    fates = [Fates.of(results, column) for column in results.columns]
    document = [
        {
            "target": target.target,
            "implementations": dict(target.implementations),
            "rings": {ring: target.rings.get(ring, 0) for ring in RINGS},
            "verdicts": _ordered(target.verdicts),
            "lost": {test: _ordered(counts) for test, counts in sorted(target.lost.items())},
            "failed": target.failed,
        }
        for target in fates
        if target.verdicts
    ]
    replace_text(root / SUMMARY, json.dumps(document, indent=1) + "\n")


def _ordered(counts: Mapping[str, int]) -> dict[str, int]:
    return {fate.value: counts[fate] for fate in Fate if counts.get(fate)}


def loaded(root: Path) -> list[Fates]:
    """Return the numbers in the summary. Raise CoverageError if it is missing or damaged."""
    path = root / SUMMARY
    try:
        return build(list[Fates], json_of(path, read_text(path, LIMIT)))
    except InputError as error:
        raise CoverageError(f"{error}; {MAKE} RESULTS.json makes it") from None
    except WrongValueError as error:
        raise CoverageError(f"{path} is damaged: {error}; {MAKE} RESULTS.json makes it") from None


def made(root: Path) -> str:
    """Return the page's new text.

    Raise CoverageError if the numbers, or their place, are missing.
    """
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
    """Return True if the page's tables are out of date."""
    return made(root) != (root / PAGE).read_text(encoding="utf-8")


def verdicts_table(fates: Iterable[Fates]) -> list[str]:
    """Return a table of cases and verdicts, with a line for each target and version."""
    fates = list(fates)
    seen = [fate.value for fate in Fate if any(target.verdicts.get(fate) for target in fates)]
    lines = [
        f"| target | version | {' | '.join((*RINGS, *seen))} | not recorded |",
        f"| --- | --- |{' ---: |' * (len(RINGS) + len(seen) + 1)}",
    ]
    for target in fates:
        numbers = [target.rings.get(ring, 0) for ring in RINGS]
        numbers += [target.verdicts.get(fate, 0) for fate in seen]
        cells = " | ".join(f"{number or ''}" for number in numbers)
        lines.append(
            f"| `{target.target}` | {made_of(target.implementations)} | {cells} | {target.failed} |"
        )
    return lines


def lost_table(fates: Iterable[Fates]) -> list[str]:
    """Return a table of the bad cases of each test. Targets without any are left out."""
    fates = [target for target in fates if target.lost]
    tests = sorted({test for target in fates for test in target.lost})
    titles = " | ".join(f"`{target.target}`, {made_of(target.implementations)}" for target in fates)
    lines = [f"| test | {titles} |", f"| --- |{' --- |' * len(fates)}"]
    for test in tests:
        cells = " | ".join(
            ", ".join(f"{count} {fate}" for fate, count in target.lost.get(test, {}).items())
            for target in fates
        )
        lines.append(f"| `{test}` | {cells} |")
    return lines
