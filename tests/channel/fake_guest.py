"""The guest's side of a channel: the image's own bootstrap as a process of the host."""

from __future__ import annotations

import io
import socket
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

DEADLINE = 60.0  # seconds
BOOTSTRAP = Path(__file__).parents[2] / "images" / "guest" / "bootstrap.py"

ECHO = """
import os
def main(read_fd, write_fd):
    while data := os.read(read_fd, 4096):
        os.write(write_fd, data)
"""

# The bootstrap writes the code to a fixed path of the guest; use another path here.
_PROGRAM = """
import runpy, sys
names = runpy.run_path(sys.argv[1])
main = names["main"]
main.__globals__["CODE_PATH"] = sys.argv[2]
del sys.argv[1:]
main()
"""

Change = Callable[[bytes], bytes]


def code(agent: str = ECHO) -> bytes:
    """Return a zip file of several blocks with this text as harness/guest/agent.py."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("harness/__init__.py", "# filler\n" * 3000)
        archive.writestr("harness/guest/__init__.py", "")
        archive.writestr("harness/guest/agent.py", agent)
    return buffer.getvalue()


class Bootstrap:
    """The bootstrap as a process, at the other end of the socket `line`."""

    def __init__(self, directory: Path) -> None:
        self.line, far_end = socket.socketpair()
        self.line.settimeout(DEADLINE)
        with far_end:
            self._process = subprocess.Popen(
                [sys.executable, "-S", "-E", "-c", _PROGRAM, BOOTSTRAP, directory / "code.zip"],
                stdin=far_end,
                stdout=far_end,
                stderr=subprocess.DEVNULL,
            )

    def close(self) -> None:
        """Close the line, and wait until the process ends."""
        with suppress(OSError):
            self.line.shutdown(socket.SHUT_RDWR)
        self.line.close()
        self._process.wait(DEADLINE)


def relay(
    receive: Callable[[int], bytes], send: Callable[[bytes], object], line: socket.socket
) -> None:
    """Copy in both directions between a connection and a line, until one of them ends."""

    def outwards() -> None:
        with suppress(OSError):
            while data := line.recv(4096):
                send(data)

    thread = threading.Thread(target=outwards)
    thread.start()
    with suppress(OSError):
        while data := receive(4096):
            line.sendall(data)
    with suppress(OSError):
        line.shutdown(socket.SHUT_RDWR)
    thread.join(DEADLINE)
