"""Absence of false alarms: what the suite's driver breaks, test by test.

    pytest conformance --target model-pci --observe DIR
    python -m harness.proof.watched DIR

judges the streams in a directory, each disk on its own. It prints the MUSTs that a test has broken
and does not break on purpose (`watched.toml`). The exit status is 1 if there are any.
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from harness.inputs import InputError
from harness.proof.witnessed import by_peer
from harness.report.results import bare_name
from harness.virtio.catalogue import ADVISORY, driver_clauses
from harness.witness.events import Device, read
from harness.witness.judge import Fate, Verdict, judge

INTENDED = Path(__file__).with_name("watched.toml")


def intended() -> dict[str, list[str]]:
    """Return test -> the statements that it breaks on purpose."""
    return tomllib.loads(INTENDED.read_text(encoding="utf-8"))


def broken(paths: Iterable[Path]) -> tuple[int, dict[str, dict[str, Verdict]]]:
    """Return the number of disks in the event files, and the MUSTs that each test's driver broke.

    The keys are the name of the test and the id of the statement.
    """
    found: dict[str, dict[str, Verdict]] = defaultdict(dict)
    disks = 0
    for path in paths:
        for events in by_peer(read(path)):
            disks += 1
            device = next((event for event in events if isinstance(event, Device)), None)
            label = device.label if device else ""
            test = bare_name(label.partition("[")[0].partition(" (")[0] or "no test")
            for name, verdict in judge(events).items():
                must = driver_clauses()[name].level not in ADVISORY
                if must and verdict.fate is Fate.BROKEN:
                    found[test].setdefault(name, verdict)
    return disks, found


def main(arguments: list[str] | None = None) -> int:
    """Judge the streams and print what is broken."""
    parser = argparse.ArgumentParser(prog="harness.proof.watched", description=__doc__)
    parser.add_argument("directory", type=Path, metavar="DIR")
    options = parser.parse_args(arguments)
    try:
        disks, found = broken(path for path in sorted(options.directory.iterdir()))
    except (InputError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    known = intended()
    alarms = 0
    for test, verdicts in sorted(found.items()):
        for name, verdict in verdicts.items():
            if name not in known.get(test, []):
                alarms += 1
                print(f"{test}: {name}\n    {verdict.evidence[0]}")
    print(f"{disks} disks, {len(found)} tests break a MUST, {alarms} alarms")
    return int(bool(alarms))


if __name__ == "__main__":
    sys.exit(main())
