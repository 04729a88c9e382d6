"""Directory that `--artifacts DIR` writes for a failed test.

failure.txt          the report's text: traceback and evidence
trace.txt            what driver and device did, in words; ! marks the offending event
trace.jsonl          the same as events, for `vblk export` (trace-1.jsonl: of the second disk)
disk0.txt ...        each disk of the test: properties asked for, registers and rings
replay.sh            runs this test alone, with the options of this run
*.log, *.command     of what carries the device: console, stderr, command line
.vblk-artifacts      the names of these files

A later run replaces the files that are named there, and no other. A directory that has somebody
else's file of such a name is left alone: the artifacts go into one with a number.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import os
import re
import shlex
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness.inputs import InputError, read_text
from harness.outputs import replace_text
from harness.report.failure import Subject, printable, state_of, words_of
from harness.report.results import plain_node

if TYPE_CHECKING:
    from harness.targets import Disk

SELECTING = ("-k", "-m", "-n", "--deselect", "--ignore", "--ignore-glob", "--maxfail")
REPORTING = ("--junitxml", "--junit-xml", "--basetemp", "--tb")
OURS = (
    *("--target", "--driver", "--matrix", "--artifacts", "--level", "--section", "--clause"),
    *("--defect", "--whim"),
)
"""Options with a value that a replay does without: it is one test, on one target, for a look. The
target's name includes defects and whims.

Each of OURS has a name that begins with `--vblk-`, too."""

MARKER = ".vblk-artifacts"
"""The file that names what we wrote into a directory, a name a line."""

_INTO = pytest.StashKey[Path]()

FLAGS = ("--lf", "--last-failed", "--ff", "--failed-first", "--nf", "--new-first", "--sw", "-x")
MORE_FLAGS = (
    *("--stepwise", "--exitfirst", "--pyargs", "-q", "--quiet", "-v", "--verbose"),
    "--vblk-trace",
)
"""Options without a value that a replay leaves out."""


def keep(
    report: pytest.TestReport,
    item: pytest.Item,
    target_name: str,
    target: Subject,
    disks: Iterable[Disk],
    traces: Mapping[str, str],
) -> str:
    """Write everything about a failed test if the run asks for it.

    Return the directory, or "".

    If another phase of the same test fails later, its failure is added. Files that cannot be
    written are reported, but are not a second failure.
    """
    top: Path | None = item.config.option.vblk_artifacts
    if top is None:
        return ""
    base = top / _slug(target_name) / _slug(plain_node(item.nodeid))
    first = _INTO not in item.stash
    name = "failure.txt" if report.when == "call" else f"failure-in-{report.when}.txt"
    files = {name: report.longreprtext}
    if first:
        for number, disk in enumerate(disks):
            files[f"disk{number}.txt"] = f"{words_of(disk.spec)}\n{state_of(disk)}"
        files |= target.logs()
        files |= traces
        files["replay.sh"] = f"#!/bin/sh\n{replay(item, target_name)}"
    try:
        into = _place(base, files) if first else item.stash[_INTO]
        _write(into, files, first)
    except OSError as error:
        into = base
        report.sections.append(("artifacts", f"some files are missing in {into}: {error}"))
    if first:
        item.stash[_INTO] = into
        item.user_properties.append(("artifacts", os.path.relpath(into)))
    return str(into)


def keep_trace(
    report: pytest.TestReport, item: pytest.Item, target_name: str, traces: Mapping[str, str]
) -> None:
    """Write the traces of a test that has not failed. What cannot be written is reported."""
    top: Path = item.config.option.vblk_artifacts
    base = top / _slug(target_name) / _slug(plain_node(item.nodeid))
    try:
        into = _place(base, traces)
        _write(into, traces, fresh=True)
    except OSError as error:
        report.sections.append(("artifacts", f"the trace is not in {base}: {error}"))


def _place(base: Path, names: Iterable[str]) -> Path:
    """Return a directory without a file of these names that is not ours. OSError if all have."""
    for number in range(1, 100):
        into = base if number == 1 else base.with_name(f"{base.name}-{number}")
        ours = _ours(into)
        if not any(os.path.lexists(into / name) for name in names if name not in ours):
            return into
    raise FileExistsError(errno.EEXIST, "all such directories have files of yours", str(base))


def _ours(into: Path) -> set[str]:
    """Return the names of the files in a directory that an earlier run wrote."""
    try:
        names = read_text(into / MARKER).splitlines()
    except InputError:
        return set()
    return {name for name in names if re.fullmatch(r"[\w.-]*\w[\w.-]*", name)}


def _write(into: Path, files: Mapping[str, str], fresh: bool) -> None:
    """Write files, and before that their names; if `fresh`, remove an earlier run's files."""
    into.mkdir(parents=True, exist_ok=True)
    ours = _ours(into)
    if fresh:
        for name in ours:
            (into / name).unlink(missing_ok=True)
        ours = set()
    texts = {name: f"{text}\n" for name in files if (text := printable(files[name]).rstrip())}
    replace_text(into / MARKER, "".join(f"{name}\n" for name in sorted(ours | texts.keys())))
    for name, text in texts.items():
        replace_text(into / name, text)
    if "replay.sh" in texts:
        (into / "replay.sh").chmod(0o755)


def _slug(name: str) -> str:
    """Return a name for a directory. A digest is added if characters were replaced."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:120]
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def replay(item: pytest.Item, target: str) -> str:
    """Return a shell command that runs one test again, alone, on one target."""
    config = item.config
    start = config.invocation_params.dir
    rest = lasting(map(str, config.invocation_params.args))
    places = set(map(str, config.option.file_or_dir or ()))
    options = [word for word in rest if word not in places]
    node = os.path.relpath(item.path, start) + plain_node(item.nodeid[item.nodeid.index("::") :])
    subject = "--vblk-driver" if ("party", "driver") in item.user_properties else "--vblk-target"
    command = [sys.executable, "-m", "pytest", *options, subject, target, node]
    return f"cd {shlex.quote(str(start))} && {shlex.join(command)}"


def lasting(arguments: Iterable[str]) -> list[str]:
    """Return pytest's arguments that a run of one test on one target needs, too."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for option in (*SELECTING, *REPORTING, *OURS):
        names = [option, option.replace("--", "--vblk-", 1)] if option in OURS else [option]
        parser.add_argument(*names, action="append")
    for option in (*FLAGS, *MORE_FLAGS):
        parser.add_argument(option, action="count")
    return parser.parse_known_args(list(arguments))[1]
