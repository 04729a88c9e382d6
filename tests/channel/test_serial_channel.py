"""The serial channel, on sockets that act as a guest's console and second serial port."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_guest import DEADLINE, Bootstrap, code, relay

from harness.channel import serial
from harness.channel.serial import SerialStream, open_serial
from harness.channel.stream import ChannelError

PROMPT = b"vblk# \x1b[6n"


class FakeConsole:
    """A console that boots, prompts, echoes a command, sends `answer`, and reads to the end."""

    def __init__(self, boot: bytes = b"[    0.0] Linux\r\n", answer: bytes = b"") -> None:
        self._boot = boot
        self._answer = answer
        self.command = b""
        self.commanded = threading.Event()
        self.closed = threading.Event()

    def __call__(self, connection: socket.socket) -> None:
        connection.sendall(self._boot)
        while data := connection.recv(4096):
            if b"python3.11" in data:
                self.command = data
                connection.sendall(data + self._answer + PROMPT)
                self.commanded.set()
            else:
                connection.sendall(b"\r\n" + PROMPT)
        self.closed.set()


@pytest.fixture
def sockets(tmp_path: Path) -> dict[str, socket.socket]:
    bound = {}
    for name in ("console", "stream"):
        bound[name] = socket.socket(socket.AF_UNIX)
        bound[name].bind(str(tmp_path / name))
    return bound


@pytest.fixture
def opened(tmp_path: Path) -> Callable[..., SerialStream]:
    def open_it(
        seconds: float = DEADLINE, check: Callable[[], None] = lambda: None
    ) -> SerialStream:
        deadline = time.monotonic() + seconds
        return open_serial(tmp_path / "console", tmp_path / "stream", code(), deadline, check)

    return open_it


Serve = Callable[..., None]
Opened = Callable[..., SerialStream]
Sockets = dict[str, socket.socket]


def wait_for_the_end(connection: socket.socket) -> None:
    while connection.recv(4096):
        pass


def test_the_agent_is_started_and_the_console_left_alone(
    sockets: Sockets, serve: Serve, opened: Opened, bootstrap: Bootstrap
) -> None:
    console = FakeConsole(boot=b"[ 1.0] boot\r\n" + PROMPT + b"[ 1.1] random: crng init done\r\n")

    def port(connection: socket.socket) -> None:
        assert console.commanded.wait(DEADLINE)
        relay(connection.recv, connection.sendall, bootstrap.line)

    serve(sockets["console"], console)
    serve(sockets["stream"], port)
    stream = opened()

    stream.send(b"hello")
    assert stream.recv(DEADLINE) == b"hello"
    assert stream.recv(0.01) == b""
    assert console.closed.wait(DEADLINE), "an unread console would stall the guest"
    assert b"/agent/bootstrap.py /dev/ttyS1;" in console.command
    stream.close()
    stream.close()


def test_no_prompt(sockets: Sockets, serve: Serve, opened: Opened) -> None:
    spoken = threading.Event()

    def mute(connection: socket.socket) -> None:
        connection.sendall(b"[ 0.1] stuck in early boot\r\n")
        spoken.set()
        wait_for_the_end(connection)

    def check() -> None:
        assert spoken.wait(DEADLINE)

    serve(sockets["console"], mute)
    serve(sockets["stream"], wait_for_the_end)
    with pytest.raises(ChannelError, match="waited in vain for the shell's prompt") as caught:
        opened(seconds=0.0, check=check)
    assert "stuck in early boot" in caught.value.details


def test_a_panic_that_comes_in_pieces_is_told_whole(
    sockets: Sockets, serve: Serve, opened: Opened
) -> None:
    more = threading.Semaphore(0)

    def panic(connection: socket.socket) -> None:
        connection.sendall(b"Kernel panic - not syncing: No")
        for _ in range(3):  # the beginning has been read before the end comes
            assert more.acquire(timeout=DEADLINE)
        connection.sendall(b" init found.\r\n---[ end")
        wait_for_the_end(connection)

    serve(sockets["console"], panic)
    serve(sockets["stream"], wait_for_the_end)
    with pytest.raises(ChannelError, match=r"the guest died: Kernel panic .*: No init found\.$"):
        opened(check=more.release)


def test_a_kernel_panic(sockets: Sockets, serve: Serve, opened: Opened) -> None:
    def panic(connection: socket.socket) -> None:
        connection.sendall(b"VFS: no init\r\nKernel panic - not syncing: No init found.\r\n")
        wait_for_the_end(connection)

    serve(sockets["console"], panic)
    serve(sockets["stream"], wait_for_the_end)
    with pytest.raises(ChannelError, match=r"the guest died: Kernel panic .*No init found") as e:
        opened()
    assert "VFS: no init" in e.value.details


def test_a_console_that_closes(sockets: Sockets, serve: Serve, opened: Opened) -> None:
    serve(sockets["console"], lambda connection: connection.sendall(b"bye"))
    serve(sockets["stream"], wait_for_the_end)
    with pytest.raises(ChannelError, match=r"console (was closed|failed)") as caught:
        opened()
    assert "bye" in caught.value.details


def test_the_machines_reason_comes_first(sockets: Sockets, serve: Serve, opened: Opened) -> None:
    def check() -> None:
        raise RuntimeError("QEMU ended")

    serve(sockets["console"], lambda connection: None)
    serve(sockets["stream"], wait_for_the_end)
    with pytest.raises(RuntimeError, match="QEMU ended"):
        opened(check=check)


def test_an_agent_that_does_not_start(sockets: Sockets, serve: Serve, opened: Opened) -> None:
    console = FakeConsole(answer=b"/bin/sh: python3.11: not found\r\n")

    def port(connection: socket.socket) -> None:
        assert console.commanded.wait(DEADLINE)
        connection.sendall(b"\nVBLK-EXIT 127\n")
        wait_for_the_end(connection)

    serve(sockets["console"], console)
    serve(sockets["stream"], port)
    with pytest.raises(ChannelError, match="agent in the guest ended with status 127") as caught:
        opened()
    assert "python3.11: not found" in caught.value.details


def test_no_socket(tmp_path: Path) -> None:
    with pytest.raises(ChannelError, match=r"cannot connect .*nowhere.*No such file"):
        SerialStream(tmp_path / "nowhere")


def test_an_agent_that_ends_later(sockets: Sockets, serve: Serve, tmp_path: Path) -> None:
    step = threading.Event()

    def port(connection: socket.socket) -> None:
        connection.sendall(b"data VBLK-EXIT 1\nmore\nVBLK-E")
        assert step.wait(DEADLINE)
        connection.sendall(b"XIT 137\r\n")
        wait_for_the_end(connection)

    serve(sockets["stream"], port)
    stream = SerialStream(tmp_path / "stream")
    assert stream.recv(DEADLINE) == b"data VBLK-EXIT 1\nmore\nVBLK-E"
    step.set()
    with pytest.raises(ChannelError, match="agent in the guest ended with status 137"):
        stream.recv(DEADLINE)
    stream.close()


def test_a_closed_port(sockets: Sockets, serve: Serve, tmp_path: Path) -> None:
    serve(sockets["stream"], lambda connection: None)
    stream = SerialStream(tmp_path / "stream")
    with pytest.raises(ChannelError, match="serial port was closed"):
        stream.recv(DEADLINE)
    with pytest.raises(ChannelError, match="serial port failed"):
        stream.send(b"x")
        stream.send(b"x")
    stream.close()


def test_a_port_that_takes_nothing(
    sockets: Sockets, serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serial, "SEND_TIMEOUT", 0.2)
    done = threading.Event()
    serve(sockets["stream"], lambda connection: bool(done.wait(DEADLINE)) and None)
    stream = SerialStream(tmp_path / "stream")
    try:
        with pytest.raises(ChannelError, match="did not take 8388608 bytes"):
            stream.send(bytes(8 << 20))
    finally:
        done.set()
        stream.close()
