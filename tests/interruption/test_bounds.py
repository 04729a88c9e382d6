"""Peers that never end, and exchanges that were broken off: each wait and loop has a bound."""

from __future__ import annotations

import os
import select
import shlex
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from harness.channel.stream import ChannelError
from harness.driver.bus import qtest
from harness.driver.errors import DriverError
from harness.driver.transport import vhost_channel
from harness.driver.transport.vhost_channel import BackEndChannel, Channel, GoneError
from harness.guest import link as guest_link
from harness.guest.link import Link, LinkTimeoutError
from harness.guest.wire import MAX_PARTS, Frame, Kind, Parser
from harness.machine import Machine, MachineConfig, Qemu, find_qemu
from harness.virtio.vhost_user import HEADER, REPLY, VERSION, BackEndRequest
from harness.virtio.vhost_user import FrontEndRequest as Ask

DEADLINE = 60.0  # seconds


@pytest.fixture
def short_dir() -> Iterator[Path]:
    with TemporaryDirectory(prefix="bo-", dir="/tmp") as name:
        yield Path(name)


class Interrupted(BaseException):
    """In place of a signal."""


def flood(connection: socket.socket, data: bytes) -> threading.Thread:
    """Send the same bytes for as long as the other side is there."""

    def send() -> None:
        with suppress(OSError):
            while True:
                connection.sendall(data * 100)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    return thread


def test_configuration_changes_without_end_do_not_hold_up_the_driver() -> None:
    channel = BackEndChannel()
    flood(channel.theirs, HEADER.pack(BackEndRequest.CONFIG_CHANGE, VERSION, 0))
    counts = []
    for _ in range(3):
        assert select.select([channel], [], [], DEADLINE)[0]
        counts.append(channel.take_config_changes())

    assert all(count <= vhost_channel.MAX_TAKEN for count in counts) and any(counts)
    channel.close()


def test_a_message_longer_than_any_ends_the_back_end_s_channel() -> None:
    channel = BackEndChannel()
    channel.theirs.sendall(HEADER.pack(BackEndRequest.CONFIG_CHANGE, VERSION, 1 << 30))

    with pytest.raises(DriverError, match="1073741824 bytes"):
        channel.take_config_changes()

    assert channel.take_config_changes() == 0


def test_after_an_exchange_was_broken_off_the_channel_is_closed(
    short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(short_dir / "s"))
        server.listen()
        channel = Channel(str(short_dir / "s"), timeout=DEADLINE)
        peer, _ = server.accept()

        def interrupted(*_: object) -> bytes:
            raise Interrupted

        monkeypatch.setattr(channel, "_answer", interrupted)
        with pytest.raises(Interrupted):
            channel.ask_number(Ask.GET_FEATURES)
        monkeypatch.undo()
        with suppress(OSError):
            peer.sendall(HEADER.pack(Ask.GET_FEATURES, VERSION | REPLY, 8) + bytes(8))

        with pytest.raises(GoneError):
            channel.ask_number(Ask.GET_FEATURES)
        peer.close()


class Qemus:
    """QEMU's end of a qtest socket, which answers as told."""

    def __init__(self) -> None:
        ours, self.theirs = socket.socketpair()
        self.theirs.sendall(b"OK\n")
        self.qtest = qtest.Qtest(ours)
        self.theirs.recv(100)


def test_after_a_register_access_was_broken_off_no_other_takes_its_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    qemu = Qemus()

    def interrupted() -> list[str]:
        raise Interrupted

    monkeypatch.setattr(qemu.qtest, "_line", interrupted)
    with pytest.raises(Interrupted):
        qemu.qtest.command("readl 0x10")
    monkeypatch.undo()
    qemu.theirs.sendall(b"OK 0x3fffff\n")

    with pytest.raises(DriverError, match="'readl 0x10' was given up"):
        qemu.qtest.command("readb 0x14")
    with pytest.raises(DriverError, match="'readl 0x10' was given up"):
        qemu.qtest.poll(0)


@pytest.mark.parametrize("text", [b"IRQ raise 11\n", b"IRQ lower 11\n", b"x"], ids=repr)
def test_a_qemu_that_never_answers_but_speaks_on(
    text: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    qemu = Qemus()
    monkeypatch.setattr(qtest, "ANSWER_TIMEOUT", 0.3)
    flood(qemu.theirs, text)

    with pytest.raises(DriverError, match="did not answer"):
        qemu.qtest.command("readb 0x14")


def test_interrupts_without_end_do_not_hold_up_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    qemu = Qemus()
    monkeypatch.setattr(qtest, "MAX_TAKEN", 1000)
    flood(qemu.theirs, b"IRQ raise 11\n")

    qemu.qtest.poll(DEADLINE)

    assert 0 < qemu.qtest.raised[11] <= 1000


class EndlessAgent:
    """A stream to an agent whose result has always one more part."""

    def __init__(self) -> None:
        self._parser = Parser()
        self._answers: list[bytes] = []

    def send(self, data: bytes) -> None:
        for frame in self._parser.feed(data):
            self._answers.append(Frame(Kind.RESULT_PART, frame.sequence, b"p").encode())

    def recv(self, timeout: float) -> bytes:
        if not self._answers:
            raise ChannelError("nothing was asked")
        return self._answers.pop(0)

    def close(self) -> None:
        pass


@pytest.mark.parametrize("limit", ["parts", "time"])
def test_a_result_without_end_is_given_up(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if limit == "time":
        monkeypatch.setattr(guest_link, "PARTS_TIME", 0.0)
    line = Link(EndlessAgent(), lambda: None)

    with pytest.raises(LinkTimeoutError, match=r"no end of a result after \d+ parts") as caught:
        line.call(b"message", 5)

    parts = int(str(caught.value).split()[6])
    assert parts == MAX_PARTS + 1 if limit == "parts" else parts <= MAX_PARTS


def behind_a_script(directory: Path, qemu: Qemu) -> Qemu:
    """QEMU, started by a shell that stays in front of it."""
    script = directory / "qemu"
    script.write_text(f'#!/bin/sh\n{shlex.quote(str(qemu.path))} "$@"\nexit $?\n')
    script.chmod(0o755)
    return Qemu(script, qemu.version, qemu.version_text)


def descendants(pid: int) -> list[int]:
    """The processes in the group that `pid` leads, without itself."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            fields = (process / "stat").read_text().rpartition(")")[2].split()
            if int(fields[2]) == pid and int(process.name) != pid and fields[0] != "Z":
                found.append(int(process.name))
    return found


def test_a_qemu_behind_a_script_does_not_outlive_its_machine(tmp_path: Path) -> None:
    machine = Machine(MachineConfig(behind_a_script(tmp_path, find_qemu()), parked=True))
    machine.start()
    pid = machine.pid
    assert pid and len(descendants(pid)) == 1
    (qemu,) = descendants(pid)
    os.kill(qemu, signal.SIGSTOP)  # so that it takes neither `quit` nor SIGTERM

    machine.stop()

    deadline = time.monotonic() + DEADLINE
    while descendants(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert descendants(pid) == []


def test_a_qemu_whose_script_was_killed_ends_with_its_machine(tmp_path: Path) -> None:
    machine = Machine(MachineConfig(behind_a_script(tmp_path, find_qemu()), parked=True))
    machine.start()
    pid = machine.pid
    assert pid
    os.kill(pid, signal.SIGKILL)

    machine.stop()

    deadline = time.monotonic() + DEADLINE
    while descendants(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert descendants(pid) == []
    assert "SIGKILL" in machine.last_words()
