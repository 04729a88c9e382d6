"""Agreement of the ways to the model device, test by test.

    pytest conformance --target model --target model-pci --matrix host.json
    pytest conformance --target guest-model-pci --qemu PATH --matrix guest.json
    python -m harness.proof.agreement host.json guest.json [--write FILE]

compares the verdicts of each test that has one in all ways, and makes one page from them. A test
that runs in one way and is skipped in another needs a reason in `agreement.toml` for its skip. Any
other difference needs a reason for the test. The exit status is 1 if there is a difference without
a reason, or a reason without a difference.
"""

from __future__ import annotations

import argparse
import re
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.outputs import replace_text
from harness.report.merge import merged
from harness.report.results import (
    Column,
    Result,
    Results,
    ResultsError,
    Test,
    Verdict,
    bare_name,
    load,
)

TARGETS = ("model", "model-pci", "guest-model-pci")

REASONS = Path(__file__).with_name("agreement.toml")

TESTS = "tests"
"""Table of the reasons for tests. The other tables are named for a target and are about its skips:
a regular expression of the whole skip reason -> explanation."""

Reasons = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class Difference:
    """Tests with the same different verdicts: the verdicts in the order of the targets.

    `skips` are the reasons of the skips, by target, and `why` explains each of them.
    """

    verdicts: tuple[Verdict, ...]
    skips: tuple[str, ...]
    why: tuple[str, ...]


def reasons() -> Reasons:
    """Return the recorded reasons."""
    found: Reasons = tomllib.loads(REASONS.read_text(encoding="utf-8"))
    return found


@dataclass
class Comparison:
    """The targets that were compared, and their tests.

    `alike` is the number of tests that agree, by verdict. `different` are the tests of each
    difference; one without a reason has no `why`. `used` are the reasons that were needed.
    `incomplete` is the number of tests without a result on one of the targets.
    """

    targets: list[Column]
    alike: Counter[Verdict] = field(default_factory=Counter)
    different: dict[Difference, list[str]] = field(default_factory=dict)
    used: set[tuple[str, str]] = field(default_factory=set)
    incomplete: int = 0

    @property
    def differing(self) -> int:
        """Return the number of tests that differ."""
        return sum(map(len, self.different.values()))


def compared(results: Results, known: Reasons) -> Comparison:
    """Compare the verdicts of each test. Raise ResultsError without results to compare."""
    columns = [column for target in TARGETS for column in results.columns if column.name == target]
    names = [column.name for column in columns]
    if len(names) < 2 or len(set(names)) < len(names):
        raise ResultsError(f"results of two of {', '.join(TARGETS)} are needed, not of {names}")
    found = Comparison(columns)
    for test in results.tests.values():
        by_target = {
            column.name: test.results[column.id] for column in columns if column.id in test.results
        }
        verdicts = tuple(result.verdict for result in by_target.values())
        if len(verdicts) < len(columns) or Verdict.NOT_RUN in verdicts:
            found.incomplete += 1
        elif len(set(verdicts)) == 1:
            found.alike[verdicts[0]] += 1
        else:
            why, taken = _explained(test, by_target, known)
            found.used |= taken
            skipped = [result for result in by_target.values() if result.verdict is Verdict.SKIPPED]
            skips = tuple(dict.fromkeys(result.reason for result in skipped))
            found.different.setdefault(Difference(verdicts, skips, why), []).append(test.id)
    return found


def _explained(
    test: Test, found: Mapping[str, Result], known: Reasons
) -> tuple[tuple[str, ...], set[tuple[str, str]]]:
    """Return the explanations of a difference, none if a part of it has none, and their keys."""
    name = bare_name(test.id)
    if text := known.get(TESTS, {}).get(name):
        return (text,), {(TESTS, name)}
    if {result.verdict for result in found.values()} != {Verdict.KEPT, Verdict.SKIPPED}:
        return (), set()
    why: dict[str, None] = {}
    taken = set()
    for target, result in found.items():
        if result.verdict is not Verdict.SKIPPED:
            continue
        for pattern, text in known.get(target, {}).items():
            if re.fullmatch(pattern, result.reason):
                why[text] = None
                taken.add((target, pattern))
                break
        else:
            return (), set()
    return tuple(why), taken


def page(found: Comparison) -> str:
    """Return the page in Markdown."""
    return "\n".join(_lines(found)) + "\n"


def _lines(found: Comparison) -> Iterator[str]:
    yield "# Ways to the model device"
    yield ""
    yield (
        "The [model device](model.md) can be reached over vhost-user (`model`), as a PCI function"
        " over vfio-user (`model-pci`), and as the same function in a guest of QEMU"
        " (`guest-model-pci`). A test has to have the same verdict in all these ways, unless one of"
        " them cannot run it. Made by `python -m harness.proof.agreement` from the results of runs;"
        " `harness/proof/agreement.toml` explains the differences."
    )
    yield ""
    names = [column.name for column in found.targets]
    versions = [
        f"`{column.name}` with {column.facts['qemu']}"
        for column in found.targets
        if "qemu" in column.facts
    ]
    totals = ", ".join(f"{number} {verdict}" for verdict, number in sorted(found.alike.items()))
    yield (
        f"Of {found.alike.total() + found.differing} tests that were run on"
        f" {', '.join(f'`{name}`' for name in names)}, {found.alike.total()} agree ({totals}) and"
        f" {found.differing} differ. {found.incomplete} tests were not run on all of them."
        + "".join(f" {version}." for version in versions)
    )
    yield ""
    yield f"| {' | '.join(f'`{name}`' for name in names)} | tests | skipped because | why |"
    yield f"|{' --- |' * len(names)} ---: | --- | --- |"
    order = sorted(found.different.items(), key=lambda item: (-len(item[1]), item[0].skips))
    for difference, tests in order:
        skips = "<br>".join(difference.skips)
        why = "<br>".join(difference.why) or "**no reason on record**"
        number = len(tests) if any(difference.skips) else _named(tests)
        yield f"| {' | '.join(difference.verdicts)} | {number} | {skips} | {why} |"


def _named(tests: Sequence[str]) -> str:
    return "<br>".join(dict.fromkeys(f"`{bare_name(test)}`" for test in tests))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m harness.proof.agreement")
    parser.add_argument("results", nargs="+", type=Path, help="results of --matrix FILE.json")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the page to FILE")
    asked = parser.parse_args(arguments)
    known = reasons()
    try:
        found = compared(merged(load(path) for path in asked.results), known)
    except ResultsError as error:
        print(f"agreement: {error}", file=sys.stderr)
        return 2
    if asked.write:
        replace_text(asked.write, page(found))
    unexplained = {key: tests for key, tests in found.different.items() if not key.why}
    for difference, tests in unexplained.items():
        print(f"{', '.join(difference.verdicts)}: {'; '.join(difference.skips)}")
        print(*(f"    {test}" for test in tests), sep="\n")
    compared_tables = {TESTS, *(column.name for column in found.targets)}
    recorded = {(table, name) for table in known for name in known[table]}
    stale = [key for key in sorted(recorded - found.used) if key[0] in compared_tables]
    for table, name in stale:
        print(f"{REASONS.name}: nothing differs for this reason: {table}, {name!r}")
    print(
        f"{found.alike.total() + found.differing} tests, {found.differing} differ,"
        f" {sum(map(len, unexplained.values()))} without a reason"
    )
    return int(bool(unexplained or stale))


if __name__ == "__main__":
    sys.exit(main())
