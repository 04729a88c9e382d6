"""Guests that write without end: each wait ends at its deadline, and memory stays bounded."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path

import paramiko
import pytest
from endless import bounded
from fake_guest import DEADLINE, code

from harness.channel import ssh
from harness.channel.handover import hand_over
from harness.channel.serial import open_serial
from harness.channel.ssh import SshStream
from harness.channel.stream import ChannelError

SECONDS = 0.7
"""Seconds that a guest has in these tests."""

LATE = 20.0
"""Seconds after which a wait has no bound, on a busy machine."""

MEMORY = 2 << 20
"""Bytes that a guest can make us hold."""


def pour(connection: socket.socket, data: bytes) -> None:
    """Send the same bytes until nobody reads them."""
    try:
        while True:
            connection.sendall(data * 1000)
    except OSError:
        return


@pytest.mark.parametrize("text", [b"noise without end ", b"line\r\n", b"\xff\x00"], ids=repr)
def test_a_console_without_end(tmp_path: Path, serve: Callable[..., None], text: bytes) -> None:
    for name in ("console", "stream"):
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(tmp_path / name))
        if name == "console":
            serve(listener, lambda connection: pour(connection, text))
        else:
            serve(listener, lambda connection: connection.recv(1))

    with (
        bounded(LATE, MEMORY),
        pytest.raises(ChannelError, match="waited in vain for the shell's prompt"),
    ):
        open_serial(
            tmp_path / "console",
            tmp_path / "stream",
            code(),
            time.monotonic() + SECONDS,
            lambda: None,
        )


class Endless:
    """A stream whose guest never stops writing."""

    def __init__(self, text: bytes) -> None:
        self._text = text

    def recv(self, timeout: float) -> bytes:
        return self._text * 1000

    def send(self, data: bytes) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    "text",
    [b"noise", b"VBLK-GOT 0\r\n", b"VBLK-", b"VBLK-GOT 99999999999999999999999\r\n"],
    ids=repr,
)
@pytest.mark.parametrize("greeted", [False, True], ids=["from the start", "after the greeting"])
def test_a_bootstrap_without_end(text: bytes, greeted: bool) -> None:
    stream = Endless(text)
    if greeted:
        first = iter([b"VBLK-BOOTSTRAP 1\r\n"])
        rest = stream.recv
        stream.recv = lambda timeout: next(first, b"") or rest(timeout)  # type: ignore[method-assign]

    with bounded(LATE, MEMORY), pytest.raises(ChannelError):
        hand_over(stream, code(), time.monotonic() + SECONDS, lambda: None)


class FakeChannel:
    """A channel of paramiko's whose command has ended, and whose stderr has no end."""

    def settimeout(self, timeout: float) -> None:
        pass

    def recv(self, size: int) -> bytes:
        return b""

    def recv_stderr_ready(self) -> bool:
        return True

    def recv_stderr(self, size: int) -> bytes:
        return b"e" * size


def test_errors_without_end_over_ssh() -> None:
    stream = SshStream(paramiko.SSHClient(), FakeChannel())  # type: ignore[arg-type]

    with (
        bounded(LATE, MEMORY),
        pytest.raises(ChannelError, match="connection to the guest ended") as caught,
    ):
        stream.recv(DEADLINE)

    assert len(caught.value.details) == ssh._TAIL
