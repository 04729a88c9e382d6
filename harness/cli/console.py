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
    """Join the terminal and the console, a UNIX socket, until the user leaves or the guest ends.

    Where stdin is no terminal, what it holds is typed into the console, and its end is not the
    guest's.
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
        except PermissionError:  # a plain file or /dev/null: always readable, epoll won't have it
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
    """Raw mode, if this is a terminal; as it was, however this is left."""
    if not os.isatty(fd):
        yield
        return
    before = termios.tcgetattr(fd)
    try:
        tty.setraw(fd)
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
