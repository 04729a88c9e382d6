"""Odd programs as --qemu, and QEMUs whose QMP session is broken: errors, in time."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from inner import SUITE, Run

WHOLE = os.environ.get("VBLK_HOSTILE") == "all"

HASTE = """
import harness.machine.machine
from harness.machine.machine import Machine

harness.machine.machine.START_DEADLINE = 4.0
set_default(Machine.qmp, "timeout", 4.0)
"""
"""Seconds of patience with a QEMU that is silent."""

VERSION = 'case "$1" in --version) exec "$REAL" --version;; esac\n'

PROGRAMS = {
    "crashes": "kill -SEGV $$",
    "is-silent": "exit 0",
    "ends-at-once": VERSION + "exit 0",
    "refuses": VERSION + "printf 'no \\033[2J\\007 such machine\\n' >&2; exit 1",
    "talks-for-ever": VERSION + "while :; do echo babble >&2; done",
}
MORE_PROGRAMS = {
    "is-another": "echo 'I am no QEMU'",
    "is-killed": VERSION + "kill -KILL $$",
    "is-of-the-future": "echo 'QEMU emulator version 99999999999999999999.1'",
    "is-binary": "head -c 100000 /dev/urandom",
    "hangs": "sleep 100",
    "has-an-endless-version": "exec yes 'QEMU emulator version'",
    "starts-nothing": VERSION + "exec sleep 100",
}

STEPS = ("greeting", "qmp_capabilities", "blockdev-add", "device_add", "device_del", "quit")
BEHAVIOURS = (
    *("hang", "close", "garbage", "short", "long", "endless", "events", "slow", "wrong_id"),
    *("nested", "twice"),
)
SHARE = [
    ("greeting", "garbage"),
    ("qmp_capabilities", "close"),
    ("device_add", "nested"),
]
ALL = [(step, behaviour) for step in STEPS for behaviour in BEHAVIOURS]
HARMLESS = {"slow", "long", "events", "twice"}
"""Behaviours that a client may put up with: QMP lets a server say more than is asked."""


@pytest.fixture
def qemu() -> str:
    found = shutil.which("qemu-system-x86_64")
    assert found
    return found


@pytest.mark.parametrize("name", PROGRAMS | (MORE_PROGRAMS if WHOLE else {}))
def test_an_odd_program_is_an_error(
    suite: Callable[..., Run], tmp_path: Path, qemu: str, name: str
) -> None:
    path = tmp_path / "qemu"
    path.write_text(f"#!/bin/sh\nREAL={qemu}\n{(PROGRAMS | MORE_PROGRAMS)[name]}\n")
    path.chmod(0o755)

    run = suite(f"--qemu={path}", "--target=qtest-pci", more=HASTE)

    assert run.status != 0, run.output
    assert all(counts.keys() == {"error"} for counts in run.verdicts.values()), run.output
    assert run.outcomes.keys() == {"error"}, run.output
    assert "\x1b[2J" not in run.output


def test_a_wrapper_that_does_not_exec_works_and_leaves_nothing(
    suite: Callable[..., Run], tmp_path: Path, qemu: str
) -> None:
    path = tmp_path / "qemu"
    path.write_text(f'#!/bin/sh\n{qemu} "$@"\n')
    path.chmod(0o755)

    run = suite(f"--qemu={path}", "--target=qtest-pci")

    assert run.status == 0, run.output
    assert run.outcomes == {"passed": 2}


@pytest.mark.parametrize(("step", "behaviour"), ALL if WHOLE else SHARE)
def test_a_broken_qmp_session_is_an_error(
    suite: Callable[..., Run],
    tmp_path: Path,
    qemu: str,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    behaviour: str,
) -> None:
    path = tmp_path / "qemu"
    path.write_text(f"#!{sys.executable}\n{Path(__file__).with_name('fake_qemu.py').read_text()}")
    path.chmod(0o755)
    spoiled = tmp_path / "spoiled"
    monkeypatch.setenv("HOSTILE_QMP", f"{qemu}|{step}|{behaviour}|{spoiled}")

    run = suite(f"--qemu={path}", "--target=qtest-pci", more=HASTE, source=SUITE)

    allowed = {"error"}
    if behaviour in HARMLESS or step == "quit" or not spoiled.exists():
        allowed |= {"kept"}
    for counts in run.verdicts.values():
        assert counts.keys() <= allowed, run.output
    assert run.outcomes["failure"] == 0, run.output
    assert "did not start: QEMU is running" not in run.output
