"""Reproducers without this project: those in docs/findings, and those that `vblk export` makes."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from harness.cli import main
from harness.diskspec import DiskSpec
from harness.driver.interface import Request
from harness.machine.foreign import listens
from harness.report.trace import as_lines, events_of
from harness.reproducers import NotPossibleError, steps
from harness.reproducers.commands import runs
from harness.reproducers.run import Outcome, compiler, run, text_of
from harness.targets import Disk
from harness.targets.qtest import QtestTarget
from harness.targets.vhost_user import VhostUserDaemon, VhostUserSocket
from harness.virtio.blk import RequestType
from harness.virtio.vhost_user import FrontEndRequest
from harness.witness.events import (
    About,
    Completed,
    Event,
    Failed,
    Made,
    Register,
    Used,
    message_name,
)

FINDINGS = Path(__file__).parents[2] / "docs" / "findings"

FORMS = {".sh": "qtest", ".c": "c", ".py": "python"}

compiled = pytest.mark.skipif(compiler() is None, reason="there is no C compiler")

SUFFIXES = {form: suffix for suffix, form in FORMS.items()}

FILES = sorted(path for path in FINDINGS.iterdir() if path.suffix in FORMS)


def test_there_are_reproducers_of_qemu_and_of_the_storage_daemon() -> None:
    suffixes = [path.suffix for path in FILES]
    assert suffixes.count(".sh") >= 10
    assert suffixes.count(".py") >= 3
    assert ".c" in suffixes


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=[compiled] if path.suffix == ".c" else []) for path in FILES],
    ids=lambda path: path.name,
)
def test_a_recorded_deviation_is_reproduced_without_this_project(
    path: Path, tmp_path: Path
) -> None:
    alone = shutil.copy(path, tmp_path)  # nothing of the checkout is beside it

    outcome = run(Path(alone), FORMS[path.suffix])

    assert outcome.reproduced, outcome.output
    assert "reproduced: " in outcome.output
    assert "not as in the test" not in outcome.output


# --- export


def trace(disk: Disk, seen: str = "it is wrong") -> list[Event]:
    """Return the trace of a disk, as that of a test that has just failed."""
    about = About(test="test_it.py::test", target="here", statement="2.7.8.2-D-02 (MUST): words")
    return [about, *events_of(disk), Failed(expected="right", seen=seen)]


@pytest.fixture(scope="module")
def qemu() -> Iterator[list[Event]]:
    """Return the trace of a request of an unknown type to QEMU."""
    target = QtestTarget("qtest-pci")
    try:
        disk = Disk(target.plug(DiskSpec()))
        disk.start()
        disk.request(0x55, receive=512)
        yield trace(disk, 'it\'s "wrong" `here` $HOME\n\\x00')
    finally:
        target.close()


@pytest.fixture(scope="module")
def daemon() -> Iterator[list[Event]]:
    """Return the trace of a read of the storage daemon."""
    target = VhostUserDaemon()
    try:
        disk = Disk(target.plug(DiskSpec()))
        disk.backing.write(3, b"\x17" * 512)
        disk.start()
        disk.send(Request(RequestType.IN, 3, receive=512, indirect=True))
        yield trace(disk)
    finally:
        target.close()


SHORTENED = {
    "WAIT = 10": "WAIT = 1",
    "$tries -lt 60": "$tries -lt 5",
    "? 600 : 1": "? 50 : 1",
    "tries_ < 60": "tries_ < 5",
}
"""Waits in the forms of a reproducer, and short ones."""


def shortened(events: Sequence[Event], form: str, name: str) -> str:
    """Return the text of a reproducer that waits shortly for what does not come."""
    text = text_of(events, form, name)
    for long, short in SHORTENED.items():
        text = text.replace(long, short)
    return text


def made(events: Sequence[Event], form: str, directory: Path, soon: bool = False) -> Outcome:
    """Make a reproducer, and run it; with `soon` it is `shortened`."""
    path = directory / f"reproducer{SUFFIXES[form]}"
    path.write_text((shortened if soon else text_of)(events, form, path.name))
    return run(path, form)


def with_other_length(events: Sequence[Event]) -> list[Event]:
    """Return a trace whose device has used all chains with another length."""
    return [
        replace(event, length=event.length + 1) if isinstance(event, Used) else event
        for event in events
    ]


def test_what_qemu_does_is_reproduced(qemu: list[Event], tmp_path: Path) -> None:
    outcome = made(qemu, "qtest", tmp_path)

    assert outcome.reproduced, outcome.output
    assert "as in the test: the status byte is 0x2" in outcome.output
    assert 'reproduced: it\'s "wrong" `here` $HOME' in outcome.output


def test_what_qemu_does_not_is_not_reproduced(qemu: list[Event], tmp_path: Path) -> None:
    outcome = made(with_other_length(qemu), "qtest", tmp_path, soon=True)

    assert not outcome.reproduced
    assert "not as in the test: virtqueue 0: chain 0 is used, length 514" in outcome.output
    assert outcome.output.endswith("not reproduced\n")


@compiled
def test_a_program_reproduces_what_qemu_does_and_nothing_else(
    qemu: list[Event], tmp_path: Path
) -> None:
    outcome = made(qemu, "c", tmp_path)
    assert outcome.reproduced, outcome.output
    assert "as in the test: the status byte is 0x2" in outcome.output
    assert 'reproduced: it\'s "wrong" `here` $HOME' in outcome.output
    assert "warning" not in outcome.output

    outcome = run(tmp_path / "reproducer.c", "c", "/bin/false")
    assert not outcome.reproduced
    assert outcome.output == "not reproduced: QEMU has ended, or does not answer\n"

    outcome = made(with_other_length(qemu), "c", tmp_path, soon=True)
    assert not outcome.reproduced
    assert "not as in the test: virtqueue 0: chain 0 is used, length 514" in outcome.output
    assert outcome.output.endswith("not reproduced\n")


@compiled
def test_a_qemu_that_does_not_run_is_no_crash(qemu: list[Event], tmp_path: Path) -> None:
    path = tmp_path / "reproducer.c"
    ended = Failed(expected="", seen="QEMU ended")
    path.write_text(text_of([*qemu[:-1], ended], "c", path.name))

    outcome = run(path, "c", "/bin/false")
    assert not outcome.reproduced
    assert outcome.output == "not reproduced: QEMU does not run\n"


def test_without_a_compiler_a_program_is_not_run_and_not_written(
    qemu: list[Event],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file, output = tmp_path / "trace.jsonl", tmp_path / "defect.c"
    file.write_text(as_lines(qemu))
    monkeypatch.setenv("PATH", str(tmp_path))

    assert main(["export", str(file), "--as", "c", "--output", str(output)]) == 2
    assert capsys.readouterr().err == (
        "vblk: there is no C compiler (cc or gcc): the program was not run, and not written\n"
    )
    assert not output.exists()


def test_what_the_daemon_does_is_reproduced(daemon: list[Event], tmp_path: Path) -> None:
    outcome = made(daemon, "python", tmp_path)

    assert outcome.reproduced, outcome.output
    assert "chain 0 is used, length 513" in outcome.output


def test_messages_that_went_together_have_their_answers(daemon: list[Event]) -> None:
    plan = steps.plan(daemon)

    sent = [step for step in plan.steps if isinstance(step, steps.Send)]
    silent = {message_name(step.request) for step in sent if step.answer is None}

    # Before REPLY_ACK is negotiated no message is acknowledged.
    assert silent == {"SET_OWNER", "SET_PROTOCOL_FEATURES"}
    number = [step for step in sent if step.request == FrontEndRequest.GET_FEATURES]
    assert len(number) > 1
    assert {step.answer for step in number[1:]} == {number[0].answer}


@pytest.mark.parametrize("form", ["qtest", "python"])
def test_a_reproducer_does_not_ignore_flushes(
    qemu: list[Event], daemon: list[Event], form: str
) -> None:
    made_with = {"qtest": qemu, "python": daemon}[form]

    assert any("no-flush" in event.options for event in made_with if isinstance(event, Made))
    assert "no-flush" not in text_of(made_with, form, "reproducer")


def test_what_the_daemon_does_not_is_not_reproduced(daemon: list[Event], tmp_path: Path) -> None:
    other = [
        replace(event, data="00" * 512) if isinstance(event, Completed) else event
        for event in daemon
    ]
    outcome = made(other, "python", tmp_path, soon=True)

    assert not outcome.reproduced
    assert "not as in the test: the first bytes of the 512" in outcome.output


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Path]:
    """Start a back-end whose used lengths are one too large, and return its socket."""
    disk, path = tmp_path / "disk.raw", tmp_path / "s"
    disk.write_bytes(bytes(1 << 20))
    command = [sys.executable, "-m", "harness.model", "--socket", path, "--file", disk]
    process = subprocess.Popen([*command, "--defect", "used-length-one-too-large"])
    try:
        deadline = time.monotonic() + 60
        while not listens(path, False):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield path
    finally:
        process.kill()
        process.wait()


def test_a_back_end_that_runs_already_is_reproduced_if_its_disk_may_be_written(
    running: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target = VhostUserSocket(str(running), destructive=True)
    try:
        disk = Disk(target.plug(DiskSpec()))
        disk.start()
        disk.send(Request(RequestType.IN, 3, receive=512))
        about = About(test="t", target=target.name)
        events = [about, *events_of(disk), Failed(expected="right", seen="wrong")]
    finally:
        target.close()
    file, output = tmp_path / "trace.jsonl", tmp_path / "defect.py"
    arguments = ["export", str(file), "--as", "python", "--output", str(output)]
    file.write_text(as_lines(events))

    assert main(arguments) == 2
    assert f"the disk of the back-end on {running}" in capsys.readouterr().err

    assert main([*arguments, "--destructive"]) == 0
    assert "as in the test: virtqueue 0: chain 0 is used, length 514" in capsys.readouterr().out
    output.unlink()

    monkeypatch.setattr("harness.reproducers.run.text_of", shortened)
    file.write_text(as_lines(with_other_length(events)))
    assert main([*arguments, "--destructive"]) == 1
    assert "not reproduced, and not written" in capsys.readouterr().err


def test_a_finding_of_a_random_run_is_exported(
    running: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script, file, output = tmp_path / "a.script", tmp_path / "t.jsonl", tmp_path / "defect.py"
    script.write_text(
        "Plug(capacity=2048)\nStart(features=('VERSION_1',), sizes=(8,))\n"
        "Send(asks=(Read(sector=0, count=1),))\nCollect(count=1)\n"
    )
    target = ["--target", f"vhost-user:{running}", "--destructive"]

    assert main(["replay", str(script), *target, "--trace", str(file)]) == 1
    arguments = ["export", str(file), "--as", "python", "--output", str(output)]
    assert main([*arguments, "--destructive"]) == 0
    assert "reproduced: used-length [2.7.8.2-D-02]: Read" in capsys.readouterr().out


def test_the_command_writes_what_was_reproduced(
    qemu: list[Event],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file, output = tmp_path / "trace.jsonl", tmp_path / "defect.sh"
    file.write_text(as_lines(with_other_length(qemu)))
    arguments = ["export", str(file), "--as", "qtest", "--output", str(output)]

    with monkeypatch.context() as patch:
        patch.setattr("harness.reproducers.run.text_of", shortened)
        assert main(arguments) == 1
    assert not output.exists()
    assert "not reproduced, and not written" in capsys.readouterr().err

    file.write_text(as_lines(qemu))
    assert main(arguments) == 0
    assert output.stat().st_mode & 0o100
    assert "# 2.7.8.2-D-02 (MUST): words" in output.read_text()

    assert main(arguments) == 2
    assert "exists; name another file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("events", "form", "words"),
    [
        ([], "qtest", "it does not begin with `about`"),
        ([About(test="a", target="b")], "qtest", "the test did not fail"),
        ([About(test="a", target="b"), Failed(expected="", seen="")], "qtest", "has seen nothing"),
        (
            [
                About(test="a", target="guest-pci"),
                Register(area="common", offset=0, width=4, value=1, write=False),
                Failed(expected="", seen=""),
            ],
            "qtest",
            "what the driver saw last is nothing that a script can check",
        ),
        *(
            ([About(test="a", target="b"), Failed(expected="", seen=seen)], "qtest", "no event")
            for seen in (
                "wrote outside: 3 bytes of the memory around the buffers changed, the first at +0",
                "grew: QEMU uses 80 MiB more than before",
            )
        ),
    ],
)
def test_a_trace_without_a_reproducer_is_refused(
    events: list[Event], form: str, words: str
) -> None:
    with pytest.raises(NotPossibleError, match=words):
        text_of(events, form, "x")


def test_a_trace_of_another_device_is_refused(qemu: list[Event], daemon: list[Event]) -> None:
    with pytest.raises(NotPossibleError, match="try --as qtest"):
        text_of(qemu, "python", "x")
    with pytest.raises(NotPossibleError, match="try --as python"):
        text_of(daemon, "qtest", "x")


def test_equal_bytes_are_a_run() -> None:
    data = b"\x01" + bytes(40) + b"\x02\x02"
    assert list(runs(0x10, data)) == [
        (0x10, b"\x01"),
        (0x11, bytes(40)),
        (0x39, b"\x02\x02"),
    ]
    assert b"".join(piece for _, piece in runs(0, bytes(range(256)) * 9)) == bytes(range(256)) * 9
