"""What every channel gives: a byte stream to the agent in a guest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

Check = Callable[[], None]
"""Called while waiting; raises if the machine at the other end is gone, with its own reason."""

SEND_TIMEOUT = 30.0
"""Seconds until the far end must have taken what `Stream.send` was given."""

POLL = 0.1
"""Seconds between two looks at `Check` while waiting."""


class ChannelError(Exception):
    """The way to the guest cannot be opened, or is broken.

    The message is one line; `details` has the last text of the console, or of
    whatever else the guest said, for a report.
    """

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.details = details


class Stream(Protocol):
    """Bytes to and from the agent. They may be damaged on the way, or noise may get between."""

    def recv(self, timeout: float) -> bytes:
        """What has come, at once or within `timeout` seconds; b"" if nothing.

        ChannelError when the stream has ended, with the reason.
        """

    def send(self, data: bytes) -> None:
        """Send it all. ChannelError if that takes more than SEND_TIMEOUT or the stream ended."""

    def close(self) -> None:
        """End the stream. A second call does nothing."""
