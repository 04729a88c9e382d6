"""The host's end of the line: messages over a stream that may lose or damage bytes."""

from __future__ import annotations

import secrets
import time

from harness.channel.stream import POLL, ChannelError, Check, Stream
from harness.guest.wire import MAX_PARTS, Frame, Kind, Parser, join, split

MARGIN = 10.0
"""Seconds that the line may take for a frame and its answer, in addition to the call itself."""

FIRST_PROBE = 1.0
"""Seconds without an answer before the first probe; the time doubles for each further probe."""

DYING = 0.5
"""Seconds to wait for the end of the machine after its stream broke."""


PARTS_TIME = 120.0
"""Seconds that the parts of one result may take together, after the first."""


class LinkTimeoutError(Exception):
    """No answer came in time; the message has the time, and the number of damaged frames."""


class Link:
    """Sends calls and returns their results, with frames, parts and repetitions (see `wire`)."""

    def __init__(self, stream: Stream, check: Check) -> None:
        self._stream = stream
        self._check = check
        self._parser = Parser()
        # Random, so that the agent of a cloned guest does not take the first
        # frame for a repetition of the last one before it was cloned.
        self._sequence = secrets.randbits(32)

    def call(self, message: bytes, timeout: float) -> bytes:
        """Send a call that may take `timeout` seconds, plus MARGIN per frame; return its result.

        Raises LinkTimeoutError if no result comes in time, ChannelError if the stream
        ends, ValueError if the result is malformed, and the errors of `check`.
        """
        *parts, last = split(message)
        for part in parts:
            self._exchange(Kind.PART, part, MARGIN)
        answer = self._exchange(Kind.CALL, last, timeout + MARGIN)
        result = [answer.payload]
        deadline = time.monotonic() + PARTS_TIME
        while answer.kind is Kind.RESULT_PART:
            if len(result) > MAX_PARTS or time.monotonic() > deadline:
                raise LinkTimeoutError(
                    f"no end of a result after {len(result)} parts, {MAX_PARTS} at most"
                    f" in {PARTS_TIME:g} s"
                )
            answer = self._exchange(Kind.MORE, b"", MARGIN)
            result.append(answer.payload)
        return join(result)

    def _exchange(self, kind: Kind, payload: bytes, timeout: float) -> Frame:
        self._sequence = self._sequence % 0xFFFFFFFF + 1
        frame = Frame(kind, self._sequence, payload)
        damaged = self._parser.damaged
        started = time.monotonic()
        silence = FIRST_PROBE
        probe_at = started + silence
        self._send(frame)
        while (now := time.monotonic()) < started + timeout:
            if now >= probe_at or self._parser.damaged > damaged:
                damaged = self._parser.damaged
                silence *= 2
                probe_at = now + silence
                self._send(Frame(Kind.PROBE, frame.sequence))
            for answer in self._receive():
                if answer.kind is Kind.NAK and answer.sequence in (0, frame.sequence):
                    self._send(frame)
                elif answer.kind is not Kind.NAK and answer.sequence == frame.sequence:
                    return answer
        waited = f"no answer within {timeout:g} s"
        if self._parser.damaged:
            waited += f", {self._parser.damaged} damaged frames so far"
        raise LinkTimeoutError(waited)

    def _send(self, frame: Frame) -> None:
        try:
            self._stream.send(frame.encode())
        except ChannelError:
            self._ask_why()
            raise

    def _receive(self) -> list[Frame]:
        self._check()
        try:
            return self._parser.feed(self._stream.recv(POLL))
        except ChannelError:
            self._ask_why()
            raise

    def _ask_why(self) -> None:
        """Wait for `check` to raise, because its error says more than that of the stream.

        When QEMU is killed, its stream breaks a moment before the process has ended.
        """
        deadline = time.monotonic() + DYING
        self._check()
        while time.monotonic() < deadline:
            time.sleep(POLL)
            self._check()
