"""Agreement of the three ways to the model device, test by test.

    pytest conformance --target model --target model-pci --matrix host.json
    pytest conformance --target guest-model-pci --qemu PATH --matrix guest.json
    python -m harness.proof.agreement host.json guest.json [--write FILE]

compares the verdicts of each test and makes one page from them. A test that runs in one way and is
skipped in another needs a reason in `agreement.toml` for its skip. Any other difference needs a
reason for the test. The exit status is 1 if there is a difference without a reason, or a reason
without a difference.
"""

from __future__ import annotations

import argparse
import re
import sys
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.outputs import replace_text
from harness.report.merge import merged
from harness.report.results import (
    OPEN,
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

NOT_RUN = Result(Verdict.NOT_RUN, reason="not collected")

Reasons = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class Difference:
    """Tests with the same different verdicts: the verdicts in the order of TARGETS.

    `skips` are the reasons of the skips, by target, and `why` explains each of them.
    """

    verdicts: tuple[Verdict, ...]
    skips: tuple[str, ...]
    why: tuple[str, ...]


def reasons() -> Reasons:
    """Return the recorded reasons."""
    found: Reasons = tomllib.loads(REASONS.read_text(encoding="utf-8"))
    return found


def compared(
    results: Results, known: Reasons
) -> tuple[Counter[Verdict], dict[Difference, list[str]], set[tuple[str, str]]]:
    """Compare the verdicts of each test.

    Return the number of tests that agree by verdict, the tests of each difference, and the reasons
    that were used. A difference without a reason has no `why`. Raise ResultsError if a target is
    missing, or is there twice.
    """
    columns = {}
    for target in TARGETS:
        ids = [column.id for column in results.columns if column.name == target]
        if len(ids) != 1:
            raise ResultsError(f"{len(ids)} results of {target}; the comparison needs one")
        columns[target] = ids[0]
    alike: Counter[Verdict] = Counter()
    different: defaultdict[Difference, list[str]] = defaultdict(list)
    used: set[tuple[str, str]] = set()
    for test in results.tests.values():
        found = {name: test.results.get(column, NOT_RUN) for name, column in columns.items()}
        verdicts = tuple(result.verdict for result in found.values())
        if len(set(verdicts)) == 1:
            alike[verdicts[0]] += 1
            continue
        why, taken = _explained(test, found, known)
        used |= taken
        skips = tuple(
            dict.fromkeys(result.reason for result in found.values() if result.verdict in OPEN)
        )
        different[Difference(verdicts, skips, why)].append(test.id)
    return alike, dict(different), used


def _explained(
    test: Test, found: Mapping[str, Result], known: Reasons
) -> tuple[tuple[str, ...], set[tuple[str, str]]]:
    """Return the explanations of a difference, none if a part of it has none, and their keys."""
    name = bare_name(test.id)
    if text := known.get(TESTS, {}).get(name):
        return (text,), {(TESTS, name)}
    if {result.verdict for result in found.values()} - OPEN != {Verdict.KEPT}:
        return (), set()
    why: dict[str, None] = {}
    taken = set()
    for target, result in found.items():
        if result.verdict not in OPEN:
            continue
        for pattern, text in known.get(target, {}).items():
            if re.fullmatch(pattern, result.reason):
                why[text] = None
                taken.add((target, pattern))
                break
        else:
            return (), set()
    return tuple(why), taken


def page(
    results: Results, alike: Counter[Verdict], different: Mapping[Difference, Sequence[str]]
) -> str:
    """Return the page in Markdown."""
    return "\n".join(_lines(results, alike, different)) + "\n"


def _lines(
    results: Results, alike: Counter[Verdict], different: Mapping[Difference, Sequence[str]]
) -> Iterator[str]:
    count = sum(len(tests) for tests in different.values())
    qemu = next(column for column in results.columns if column.name == TARGETS[-1])
    version = qemu.facts.get("qemu", "")
    yield "# Three ways to the model device"
    yield ""
    yield (
        "The [model device](model.md) is reached over vhost-user (`model`), as a PCI function over"
        f" vfio-user (`model-pci`), and as the same function in a guest of QEMU {version}".rstrip()
        + " (`guest-model-pci`). A test has to have the same verdict in all three ways, unless one"
        " of them cannot run it. Made by `python -m harness.proof.agreement`, from the results of"
        " runs; an explanation of each difference is in `harness/proof/agreement.toml`."
    )
    yield ""
    totals = ", ".join(f"{number} {verdict}" for verdict, number in sorted(alike.items()))
    yield f"{len(results.tests)} tests: {alike.total()} agree ({totals}), {count} differ."
    yield ""
    yield f"| {' | '.join(f'`{target}`' for target in TARGETS)} | tests | skipped because | why |"
    yield "| --- | --- | --- | ---: | --- | --- |"
    order = sorted(different.items(), key=lambda item: (-len(item[1]), item[0].skips))
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
        results = merged(load(path) for path in asked.results)
        alike, different, used = compared(results, known)
    except ResultsError as error:
        print(f"agreement: {error}", file=sys.stderr)
        return 2
    if asked.write:
        replace_text(asked.write, page(results, alike, different))
    unexplained = {key: tests for key, tests in different.items() if not key.why}
    for difference, tests in unexplained.items():
        print(f"{', '.join(difference.verdicts)}: {'; '.join(difference.skips)}")
        print(*(f"    {test}" for test in tests), sep="\n")
    stale = {(table, name) for table in known for name in known[table]} - used
    for table, name in sorted(stale):
        print(f"{REASONS.name}: nothing differs for this reason: {table}, {name!r}")
    count = sum(len(tests) for tests in different.values())
    print(f"{len(results.tests)} tests, {count} differ, {len(unexplained)} without a reason")
    return int(bool(unexplained or stale))


if __name__ == "__main__":
    sys.exit(main())
