"""The page of all statements that bind drivers: rule, class, and the verdicts on each driver.

    python -m harness.proof.statements --run NAME --write docs/witness-statements.md
    python -m harness.proof.statements --driver NAME STREAM... --write docs/witness-statements.md

The first form lets a driver take part in all scenarios and judges it, the second one judges streams
of a driver. With both for one name, the verdicts count together. They are kept in the JSON file
next to the page, and the page is made from it. A driver that takes part in a scenario and hangs or
fails there is printed. The exit status is 1 if a scenario had trouble of the harness.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from harness.drivers.base import CannotError, Launcher, NotHereError, UnknownScenarioError, Watched
from harness.drivers.registry import MAKERS
from harness.drivers.scenarios import SCENARIOS, chosen
from harness.drivers.watching import WatchedDriver
from harness.inputs import InputError, json_of, read_text
from harness.machine.errors import MachineError
from harness.outputs import replace_text
from harness.proof.witnessed import reasons
from harness.virtio.catalogue import SEEN, driver_clauses
from harness.witness.judge import Fate, Verdict, judge
from harness.witness.rules import RULES
from harness.witness.trace import read_any

Verdicts = Mapping[str, Mapping[str, str]]
"""Driver -> statement -> "kept" or "broken"; statements that were not exercised are left out."""


def judged(paths: Iterable[Path]) -> dict[str, str]:
    """Return the verdicts of streams together: broken if it is in one of them."""
    return together(judge(read_any(path)) for path in paths)


def together(streams: Iterable[Mapping[str, Verdict]]) -> dict[str, str]:
    """Return the verdicts of several streams together."""
    fates = (
        {name: verdict.fate.value for name, verdict in verdicts.items()} for verdicts in streams
    )
    return worst(fates)


def worst(streams: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Return the worst verdict on each statement that is kept or broken in one of the streams."""
    found: dict[str, str] = {}
    for fates in streams:
        for name, fate in fates.items():
            if fate == Fate.BROKEN.value or (fate == Fate.KEPT.value and name not in found):
                found[name] = fate
    return {name: found[name] for name in driver_clauses() if name in found}


def run(launcher: Launcher, names: Iterable[str] = ()) -> Iterator[Watched | MachineError]:
    """Let a driver take part in scenarios, and print each. Those that it cannot do are left out.

    Yield the record, or the trouble of the harness. NotHereError if the machine lacks something.
    """
    scenarios = chosen(tuple(names))
    driver = WatchedDriver(launcher, scenarios, scenarios)
    try:
        for scenario in scenarios:
            title = f"{launcher.name}, {scenario.name}"
            try:
                watched = driver.watch(scenario)
            except CannotError as error:
                print(f"{title}: {error}", flush=True)
                continue
            except MachineError as error:
                print(f"{title}: trouble of the harness: {error}", flush=True)
                yield error
                continue
            words = f"{watched.fate}: {watched.trouble}" if watched.trouble else watched.fate
            print(f"{title}: {words}", flush=True)
            for verdict in watched.verdicts.values():
                if verdict.fate is Fate.BROKEN:
                    print(f"    {verdict.id}: {verdict.evidence[0]}", flush=True)
            yield watched
    finally:
        driver.close()


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
    parser.add_argument(
        "--run",
        action="append",
        default=[],
        choices=MAKERS,
        metavar="NAME",
        help="the name of a driver that is to be run; repeatable",
    )
    parser.add_argument(
        "--scenario", action="append", default=[], metavar="NAME", help="with --run: only this one"
    )
    options = parser.parse_args(arguments)
    kept = options.write.with_suffix(".json")
    new: dict[str, dict[str, str]] = {}
    troubles = 0
    try:
        verdicts = load(kept)
        for name in options.run:
            found = list(run(MAKERS[name](), options.scenario))
            seen = [each for each in found if isinstance(each, Watched)]
            troubles += len(found) - len(seen)
            ran = together(each.verdicts for each in seen)
            whole = not options.scenario and len(seen) == len(found)
            new[name] = ran if whole else worst([verdicts.get(name, {}), ran])
        for name, *streams in options.driver:
            more = judged(Path(stream) for stream in streams)
            new[name] = worst([new.get(name, {}), more])
    except (InputError, NotHereError, UnknownScenarioError) as error:
        print(error, file=sys.stderr)
        return 2
    if new:
        replace_text(kept, json.dumps({**verdicts, **new}, indent=1) + "\n")
    replace_text(options.write, page({**verdicts, **new}))
    return int(troubles > 0)


if __name__ == "__main__":
    sys.exit(main())
