"""Send the agent's code to the bootstrap in the image, and wait until it runs.

The guest's side and the protocol are in images/guest/bootstrap.py.
"""

from __future__ import annotations

import re
import time
from hashlib import sha256

from harness.channel.stream import POLL, ChannelError, Check, Stream

ATTEMPTS = 5
"""Times that the code is sent before the line counts as unusable."""

BLOCK = 4096
"""Bytes after which the guest sends an acknowledgement."""

WINDOW = 2 * BLOCK
"""Most bytes that are sent and not acknowledged: less than the guest's serial driver buffers."""

STALL = 3.0
"""Seconds without an acknowledgement after which bytes count as lost."""

_WORD = re.compile(rb"VBLK-(?:BOOTSTRAP \d+|GOT \d+|BAD|RUN)\r?\n")
_LONGEST_WORD = 64  # bytes


class _DamagedError(Exception):
    """The code was damaged on the way."""


def hand_over(stream: Stream, payload: bytes, deadline: float, check: Check) -> None:
    """Send the zip file `payload` to the bootstrap in the guest, and wait until it runs.

    `deadline` is a time of time.monotonic(). Raises ChannelError, and the errors of `check`.
    """
    listener = _Listener(stream, deadline, check)
    word = listener.next("the guest's bootstrap to speak")
    if word != b"VBLK-BOOTSTRAP 1":
        raise ChannelError(
            f"the guest said {word.decode()}, not VBLK-BOOTSTRAP 1: build the image again",
            listener.heard,
        )
    for _ in range(ATTEMPTS):
        try:
            _send(stream, payload, listener)
            return
        except _DamagedError:
            continue
    raise ChannelError(
        f"the agent's code came damaged {ATTEMPTS} times: the line to the guest is unusable",
        listener.heard,
    )


def _send(stream: Stream, payload: bytes, listener: _Listener) -> None:
    stream.send(f"\nVBLK-CODE {len(payload)} {sha256(payload).hexdigest()}\n".encode())
    sent = acknowledged = 0
    while True:
        while sent < min(len(payload), acknowledged + WINDOW):
            block = payload[sent : sent + BLOCK]
            stream.send(block)
            sent += len(block)
        try:
            word = listener.next(
                f"the guest to take the agent's code ({acknowledged} of {len(payload)} bytes)",
                STALL,
            )
        except TimeoutError:
            # Bytes were lost. If the guest still waits for them, it takes the next offer as data,
            # answers VBLK-BAD, and gets another offer.
            raise _DamagedError from None
        if word == b"VBLK-RUN":
            return
        if word == b"VBLK-BAD":
            raise _DamagedError
        if word.startswith(b"VBLK-GOT"):
            acknowledged = min(sent, int(word.split()[1]))


class _Listener:
    """Finds the words of the bootstrap in a stream with noise."""

    def __init__(self, stream: Stream, deadline: float, check: Check) -> None:
        self._stream = stream
        self._deadline = deadline
        self._check = check
        self._buffer = b""
        self._heard = b""
        self._over = False

    @property
    def heard(self) -> str:
        """The last text that was received, for the details of an error."""
        return self._heard.decode("utf-8", "replace")

    def next(self, awaited: str, patience: float | None = None) -> bytes:
        """Wait for the next word. ChannelError at the deadline, TimeoutError after `patience` s.

        What has come is read once more when the time is over: this process may have been stalled.
        """
        impatient = None if patience is None else time.monotonic() + patience
        late = False
        while True:
            match = _WORD.search(self._buffer)
            if match:
                self._buffer = self._buffer[match.end() :]
                return match[0].strip()
            self._buffer = self._buffer[-_LONGEST_WORD:]
            if self._over:
                raise ChannelError(f"waited in vain for {awaited}", self.heard)
            if late:
                raise TimeoutError
            now = time.monotonic()
            self._over = now > self._deadline
            late = impatient is not None and now > impatient
            self._check()
            data = self._stream.recv(0 if self._over or late else POLL)
            self._buffer += data
            self._heard = (self._heard + data)[-BLOCK:]
