"""Runs of the suite against peers that keep to no protocol."""

from __future__ import annotations

import json
import subprocess
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
MEMORY_LIMIT = 300 << 10
"""KiB that a run may have resident."""
BOUND = 300.0
"""Seconds after which a run has no end."""

SUITE = """
from harness.report import clause

@clause("2.1.2-D-01")
def test_reads(plug):
    completion = plug().read(0)
    assert completion.status == 0
    assert completion.data == bytes(512)

@clause("2.2.2-D-01")
def test_writes(plug):
    disk = plug()
    assert disk.write(0, b"x" * 512).status == 0
    assert disk.read(0).data == b"x" * 512
    disk.write(0, bytes(512))
"""

PEAK = """
import atexit
import os
import re
from pathlib import Path

OWNER = os.getpid()

@atexit.register
def note_peak():
    if os.getpid() == OWNER:
        peak = re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())
        Path("peak").write_text(peak[1])
"""
"""Writes the most memory that the run had resident, in KiB, without that of its QEMUs.

The kernel's figure for a process that has ended (ru_maxrss) is of no use: it counts the memory of
the process that started it.
"""

DEFAULTS = """
import inspect

def set_default(function, name, value):
    names = [
        parameter.name
        for parameter in inspect.signature(function).parameters.values()
        if parameter.default is not parameter.empty
    ]
    values = list(function.__defaults__)
    values[names.index(name)] = value
    function.__defaults__ = tuple(values)
"""

HASTE = """
from harness.driver.transport.vhost_user import VhostUser

set_default(VhostUser.__init__, "timeout", 1.0)
"""
"""Seconds of patience with a back-end: a run has many that are silent."""


@dataclass(frozen=True)
class Run:
    """The results of a run: exit status, output, peak memory (KiB), verdicts, JUnit outcomes."""

    status: int
    output: str
    memory: int
    verdicts: dict[str, Counter[str]]
    outcomes: Counter[str]


def wait_for_end(process: subprocess.Popen[Any]) -> None:
    """Wait for a process to end; a test whose process has not ended after BOUND seconds fails."""
    try:
        process.wait(BOUND)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(30)
        pytest.fail(f"no end within {BOUND:g} s")


def reports(directory: Path) -> tuple[dict[str, Counter[str]], Counter[str]]:
    """Return the verdicts of each target, and how many test cases JUnit has of each outcome."""
    verdicts: dict[str, Counter[str]] = {}
    if (directory / "r.json").exists():
        for test in json.loads((directory / "r.json").read_text())["tests"]:
            for target, result in test["results"].items():
                name = target.partition(" (")[0]
                verdicts.setdefault(name, Counter())[result["verdict"]] += 1
    outcomes: Counter[str] = Counter()
    if (directory / "out.xml").exists():
        for case in ElementTree.parse(directory / "out.xml").iter("testcase"):
            tags = {child.tag for child in case} & {"failure", "error", "skipped"}
            outcomes.update(tags or {"passed"})
    return verdicts, outcomes
