"""An agent in a thread of this process, connected by a socket pair."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Callable
from contextlib import suppress

from harness.channel.stream import ChannelError
from harness.driver.interface import Driver
from harness.guest.agent import Server

JOIN_DEADLINE = 60.0  # seconds


class PairStream:
    """A `Stream` over a socket; `to_agent` and `from_agent` may change the bytes."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self.to_agent: Callable[[bytes], bytes] = bytes
        self.from_agent: Callable[[bytes], bytes] = bytes
        self.sent: list[bytes] = []

    def recv(self, timeout: float) -> bytes:
        if not select.select([self._socket], [], [], timeout)[0]:
            return b""
        data = self._socket.recv(65536)
        if not data:
            raise ChannelError("the line was cut", "last words")
        return self.from_agent(data)

    def send(self, data: bytes) -> None:
        self.sent.append(data)
        try:
            self._socket.sendall(self.to_agent(data))
        except OSError as error:
            raise ChannelError(f"the line was cut: {error}") from error

    def close(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


class Guest:
    """A running agent server, and the stream to it."""

    def __init__(self, attach: Callable[[str, str, float], Driver]) -> None:
        here, self.far_end = socket.socketpair()
        self.stream = PairStream(here)
        self.drivers: list[Driver] = []

        def remember(kind: str, address: str, timeout: float) -> Driver:
            self.drivers.append(attach(kind, address, timeout))
            return self.drivers[-1]

        fd = self.far_end.fileno()
        self._thread = threading.Thread(target=Server(fd, fd, remember).run, daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Close the stream, and wait until the server has returned."""
        self.stream.close()
        self._thread.join(JOIN_DEADLINE)
        assert not self._thread.is_alive(), "the agent did not end with its stream"
        self.far_end.close()
