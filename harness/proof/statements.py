"""The page of all statements that bind drivers: rule, class, and the verdicts on each driver.

    python -m harness.proof.statements [--driver NAME STREAM...] --write docs/witness-statements.md

judges the streams of a driver, keeps the verdicts in the JSON file next to the page, and makes the
page from it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from harness.drivers.scenarios import SCENARIOS
from harness.inputs import InputError, json_of, read_text
from harness.outputs import replace_text
from harness.proof.witnessed import reasons
from harness.virtio.catalogue import SEEN, driver_clauses
from harness.witness.judge import Fate, judge
from harness.witness.rules import RULES
from harness.witness.trace import read_any

Verdicts = Mapping[str, Mapping[str, str]]
"""Driver -> statement -> "kept" or "broken"; statements that were not exercised are left out."""


def judged(paths: Iterable[Path]) -> dict[str, str]:
    """Return the verdicts of streams together: broken if it is in one of them."""
    found: dict[str, str] = {}
    for path in paths:
        for name, verdict in judge(read_any(path)).items():
            if verdict.fate is Fate.BROKEN or (verdict.fate is Fate.KEPT and name not in found):
                found[name] = verdict.fate.value
    return {name: found[name] for name in driver_clauses() if name in found}


def load(path: Path) -> dict[str, dict[str, str]]:
    """Return the verdicts that are kept in a JSON file, none if there is no file."""
    if not path.exists():
        return {}
    found = json_of(path, read_text(path))
    if not isinstance(found, dict):
        raise InputError(f"{path}: no table of drivers")
    return found


def page(verdicts: Verdicts) -> str:
    """Return the page in Markdown."""
    return "\n".join(_lines(verdicts)) + "\n"


def _lines(verdicts: Verdicts) -> Iterator[str]:
    clauses = driver_clauses()
    idle = reasons()
    shown_by_work = {name for scenario in SCENARIOS for name in scenario.about}
    yield "# Statements that bind drivers"
    yield ""
    yield (
        f"{len(clauses)} statements; {len(RULES)} have a rule, and {len(clauses) - len(RULES)} a "
        "reason for none. Made by `python -m harness.proof.statements --write FILE`."
    )
    yield ""
    yield "Classes say where a device can observe a statement:"
    yield ""
    for name, text in SEEN.items():
        yield f"- {name}: {text}"
    yield ""
    yield (
        '"red" is a rule that a planted breach turns red ([proof](witness-proof.md)), "kept '
        'only" one that can only find that a statement was kept, or that no breach turns red. '
        '"effect" is a statement that a driver also breaks if it hangs or fails in a scenario '
        "whose device provokes it ([your driver](your-driver.md))."
    )
    yield ""
    if verdicts:
        yield "| driver | kept | broken | not exercised |"
        yield "| --- | ---: | ---: | ---: |"
        for driver, fates in verdicts.items():
            count = Counter(fates.values())
            rest = len(clauses) - len(fates)
            yield f"| {driver} | {count['kept']} | {count['broken']} | {rest} |"
        yield ""
    drivers = "".join(f" {driver} |" for driver in verdicts)
    yield f"| statement | level | class | rule |{drivers}"
    yield f"| --- | --- | --- | --- |{' --- |' * len(verdicts)}"
    for name, clause in clauses.items():
        rule = "none" if name not in RULES else "kept only" if name in idle else "red"
        rule += ", effect" if name in shown_by_work else ""
        fates_of = "".join(f" {fates.get(name, '')} |" for fates in verdicts.values())
        yield f"| {name} | {clause.level} | {clause.seen} | {rule} |{fates_of}"
    yield ""
    yield "## Statements without a rule"
    yield ""
    for name, clause in clauses.items():
        if name not in RULES:
            yield f"- {name}: {clause.untested}"


def main(arguments: list[str] | None = None) -> int:
    """Judge the streams of drivers and write the page."""
    parser = argparse.ArgumentParser(prog="harness.proof.statements", description=__doc__)
    parser.add_argument(
        "--driver",
        nargs="+",
        action="append",
        default=[],
        metavar="NAME STREAM",
        help="the name of a driver, and its streams",
    )
    parser.add_argument("--write", metavar="FILE", type=Path, required=True, help="the page")
    options = parser.parse_args(arguments)
    kept = options.write.with_suffix(".json")
    try:
        verdicts = load(kept)
        for name, *streams in options.driver:
            verdicts[name] = judged(Path(stream) for stream in streams)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    if options.driver:
        replace_text(kept, json.dumps(verdicts, indent=1) + "\n")
    replace_text(options.write, page(verdicts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
