"""The host's end of the line to an agent: messages over a stream that may lose or damage bytes."""

from __future__ import annotations

import secrets
import time

from harness.channel.stream import POLL, ChannelError, Check, Stream
from harness.guest.wire import MAX_PARTS, Frame, Kind, Parser, join, split

MARGIN = 10.0
"""Seconds that the line may take for a frame and its answer, above what is done in between."""

FIRST_PROBE = 1.0
"""Seconds of silence before the first probe; the next ones come at twice the time each."""

DYING = 0.5
"""Seconds between the break of a stream and the end of its machine, if that was why."""


PARTS_TIME = 120.0
"""Seconds that the parts of one result may take together, after the first."""


class LinkTimeoutError(Exception):
    """No answer came in time; the message says how long that was, and what came instead."""


class Link:
    """Sends a call and returns its result: frames, parts, repetitions (see `wire`)."""

    def __init__(self, stream: Stream, check: Check) -> None:
        self._stream = stream
        self._check = check
        self._parser = Parser()
        # Random, so that the agent of a cloned guest does not take the first
        # frame for a repetition of the last one before it was cloned.
        self._sequence = secrets.randbits(32)

    def call(self, message: bytes, timeout: float) -> bytes:
        """The result of a call that may take `timeout` seconds, each frame MARGIN more.

        LinkTimeoutError if there is none in time, ChannelError if the stream
        ends, ValueError if it is no message, and whatever `check` raises.
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
        """Raise the machine's own reason, which says more than a broken stream's.

        The stream of a QEMU that was killed breaks a moment before its end can be seen.
        """
        deadline = time.monotonic() + DYING
        self._check()
        while time.monotonic() < deadline:
            time.sleep(POLL)
            self._check()
