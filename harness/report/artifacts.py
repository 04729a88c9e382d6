"""Directory that `--artifacts DIR` writes for a failed test.

failure.txt          the report's text: traceback and evidence
disk0.txt ...        each disk of the test: properties asked for, registers and rings
replay.sh            runs this test alone, with the options of this run
*.log, *.command     console, stderr and command line of the processes
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness.report.failure import printable, state_of, words_of
from harness.report.results import plain_node

if TYPE_CHECKING:
    from harness.targets import Disk, Target

SELECTING = ("-k", "-m", "-n", "--deselect", "--ignore", "--ignore-glob", "--maxfail", "--target")
REPORTING = ("--matrix", "--artifacts", "--junitxml", "--junit-xml", "--basetemp", "--tb")
OURS = ("--level", "--section", "--clause")
"""Options with a value that a replay leaves out: it runs one test on one target."""

FLAGS = ("--lf", "--last-failed", "--ff", "--failed-first", "--nf", "--new-first", "--sw", "-x")
MORE_FLAGS = ("--stepwise", "--exitfirst", "--pyargs", "-q", "--quiet", "-v", "--verbose")
"""Options without a value that a replay leaves out."""


def keep(
    report: pytest.TestReport,
    item: pytest.Item,
    target_name: str,
    target: Target,
    disks: Iterable[Disk],
) -> str:
    """Write everything about a failed test if the run asks for it.

    Return the directory, or "".

    If another phase of the same test fails later, its failure is added. Files that cannot be
    written are reported, but are not a second failure.
    """
    top: Path | None = item.config.option.artifacts
    if top is None:
        return ""
    into = top / _slug(target_name) / _slug(plain_node(item.nodeid))
    first = "artifacts" not in dict(item.user_properties)
    name = "failure.txt" if report.when == "call" else f"failure-in-{report.when}.txt"
    files = {name: report.longreprtext}
    if first:
        for number, disk in enumerate(disks):
            files[f"disk{number}.txt"] = f"{words_of(disk.spec)}\n{state_of(disk)}"
        files |= target.logs()
        files["replay.sh"] = f"#!/bin/sh\n{replay(item, target_name)}"
    try:
        if first and into.exists():
            shutil.rmtree(into)  # from an earlier run
        _write(into, files)
    except OSError as error:
        report.sections.append(("artifacts", f"some files are missing in {into}: {error}"))
    if first:
        item.user_properties.append(("artifacts", os.path.relpath(into)))
    return str(into)


def _write(into: Path, files: Mapping[str, str]) -> None:
    into.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        if text := printable(text).rstrip():
            (into / name).write_text(f"{text}\n", encoding="utf-8")
    replay = into / "replay.sh"
    if replay.exists():
        replay.chmod(0o755)


def _slug(name: str) -> str:
    """Return a name for a directory. A digest is added if characters were replaced."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:120]
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def replay(item: pytest.Item, target: str) -> str:
    """Return a shell command that runs one test again, alone, on one target."""
    config = item.config
    start = config.invocation_params.dir
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for option in (*SELECTING, *REPORTING, *OURS):
        parser.add_argument(option, action="append")
    for option in (*FLAGS, *MORE_FLAGS):
        parser.add_argument(option, action="count")
    _, rest = parser.parse_known_args(list(map(str, config.invocation_params.args)))
    places = set(map(str, config.option.file_or_dir or ()))
    options = [word for word in rest if word not in places]
    node = os.path.relpath(item.path, start) + plain_node(item.nodeid[item.nodeid.index("::") :])
    command = [sys.executable, "-m", "pytest", *options, "--target", target, node]
    return f"cd {shlex.quote(str(start))} && {shlex.join(command)}"
