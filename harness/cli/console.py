"""A guest's serial console in the user's terminal."""

from __future__ import annotations

import os
import selectors
import socket
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

ESCAPE = b"\x1d"
ESCAPE_NAME = "Ctrl-]"


def attend(console: Path) -> Literal["left", "closed"]:
    """Connect the terminal with the console until the user leaves or the guest ends.

    The console is a UNIX socket. If stdin is not a terminal, its contents are typed into the
    console; its end does not end the guest.
    """
    stdin, stdout = sys.stdin.fileno(), sys.stdout.fileno()
    with (
        socket.socket(socket.AF_UNIX) as guest,
        selectors.DefaultSelector() as ready,
        _raw(stdin),
    ):
        guest.connect(str(console))
        ready.register(guest, selectors.EVENT_READ)
        try:
            ready.register(stdin, selectors.EVENT_READ)
            typed = b""
        except (
            PermissionError
        ):  # a plain file or /dev/null is always readable, and epoll refuses it
            typed = sys.stdin.buffer.read()
        guest.sendall(typed)
        while True:
            for key, _ in ready.select():
                if key.fileobj is guest:
                    output = guest.recv(4096)
                    if not output:
                        return "closed"
                    _write(stdout, output)
                    continue
                typed = os.read(stdin, 1024)
                if not typed:
                    ready.unregister(stdin)
                before, escape, _ = typed.partition(ESCAPE)
                guest.sendall(before)
                if escape:
                    return "left"


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


@contextmanager
def _raw(fd: int) -> Iterator[None]:
    """Switch a terminal to raw mode inside the block, and restore it afterwards."""
    if not os.isatty(fd):
        yield
        return
    before = termios.tcgetattr(fd)
    try:
        tty.setraw(fd)
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
