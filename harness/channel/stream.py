"""Interface of all channels: a byte stream to the agent in a guest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

Check = Callable[[], None]
"""Function that is called during a wait. It raises an error if the machine has ended."""

SEND_TIMEOUT = 30.0
"""Seconds that the other end may take to accept the data of `Stream.send`."""

POLL = 0.1
"""Seconds between two calls of `Check` during a wait."""


class ChannelError(Exception):
    """The channel to the guest cannot be opened, or is broken.

    The message is one line. `details`, for a report, has the last text of the
    console or of other output of the guest.
    """

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.details = details


class Stream(Protocol):
    """Bytes to and from the agent. The channel may damage them or add noise."""

    def recv(self, timeout: float) -> bytes:
        """Return bytes that are there or come within `timeout` seconds, b"" if none.

        Raises ChannelError, with the reason, when the stream has ended.
        """

    def send(self, data: bytes) -> None:
        """Send all of `data`. ChannelError after SEND_TIMEOUT, or if the stream has ended."""

    def close(self) -> None:
        """End the stream. A second call does nothing."""
