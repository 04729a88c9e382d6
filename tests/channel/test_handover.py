"""Transfer of the agent's code to the image's bootstrap, over good and bad lines."""

from __future__ import annotations

import re
import select
import socket
import time
from collections.abc import Callable

import pytest
from fake_guest import DEADLINE, Bootstrap, Change, code

from harness.channel import handover
from harness.channel.handover import BLOCK, WINDOW, hand_over
from harness.channel.stream import ChannelError


class Line:
    """A `Stream` over a socket that changes what is sent."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self.to_guest: Change = bytes
        self.from_guest: Change = bytes
        self.sent = 0

    def recv(self, timeout: float) -> bytes:
        if not select.select([self._socket], [], [], timeout)[0]:
            return b""
        data = self._socket.recv(4096)
        if not data:
            raise ChannelError("the line was cut")
        return self.from_guest(data)

    def send(self, data: bytes) -> None:
        self.sent += len(data)
        self._socket.sendall(self.to_guest(data))

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def line(bootstrap: Bootstrap) -> Line:
    return Line(bootstrap.line)


def hand(line: Line, seconds: float = DEADLINE, check: Callable[[], None] = lambda: None) -> None:
    hand_over(line, code(), time.monotonic() + seconds, check)


def echoes(line: Line) -> bool:
    """Return True when the transferred code runs and echoes."""
    line.to_guest = line.from_guest = bytes
    line.send(b"are you there?")
    heard, end = b"", time.monotonic() + DEADLINE
    # An offer that came too late is echoed before it.
    while not heard.endswith(b"are you there?") and time.monotonic() < end:
        heard += line.recv(1.0)
    return heard.endswith(b"are you there?")


def nth(number: int, change: Change) -> Change:
    """Return a change of only the n-th piece (the first piece is the offer)."""
    count = 0

    def apply(data: bytes) -> bytes:
        nonlocal count
        count += 1
        return change(data) if count == number else data

    return apply


def test_the_code_arrives_and_runs(line: Line) -> None:
    hand(line)
    assert echoes(line)


@pytest.mark.parametrize(
    "change",
    [
        nth(1, lambda offer: offer.replace(b"CODE", b"C0DE")),
        nth(1, lambda offer: b""),
        nth(1, lambda offer: b"\xffnoise\n\n VBLK-CODE 1\n" + offer),
        nth(2, lambda block: b"?" + block[1:]),
        nth(4, lambda block: block[:100] + block[117:]),
        nth(3, lambda block: b""),
        nth(5, lambda block: block + b"noise"),
    ],
    ids=["offer damaged", "offer lost", "noise", "damaged", "bytes lost", "block lost", "more"],
)
def test_what_the_line_damaged_is_sent_again(
    line: Line, monkeypatch: pytest.MonkeyPatch, change: Change
) -> None:
    monkeypatch.setattr(handover, "STALL", 0.5)
    line.to_guest = change
    hand(line)
    assert echoes(line)


def test_noise_from_the_guest_is_passed_over(line: Line) -> None:
    line.from_guest = lambda data: b"[  1.2] usb: VBLK-\xff\n" + data + b"VBLK-GOT x\nVBLK"
    hand(line)
    assert echoes(line)


def test_a_line_that_damages_everything_is_given_up(line: Line) -> None:
    line.to_guest = lambda data: data.replace(b"# filler", b"# f1ller")
    with pytest.raises(ChannelError, match="came damaged 5 times") as caught:
        hand(line)
    assert "VBLK-BAD" in caught.value.details


def test_a_silent_guest(line: Line, bootstrap: Bootstrap) -> None:
    assert select.select([bootstrap.line], [], [], DEADLINE)[0]  # its process takes time to start
    line.from_guest = lambda data: b"what is this\n"
    with pytest.raises(ChannelError, match="waited in vain for the guest's bootstrap") as caught:
        hand(line, seconds=0.5)
    assert "what is this" in caught.value.details


def test_what_has_come_is_read_when_the_time_is_over(line: Line, bootstrap: Bootstrap) -> None:
    assert select.select([bootstrap.line], [], [], DEADLINE)[0]
    with pytest.raises(ChannelError, match=r"waited in vain for the guest to take .*\(0 of"):
        hand(line, seconds=-1.0)


def test_what_has_come_is_read_before_it_counts_as_lost(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handover, "STALL", 0.0)
    monkeypatch.setattr(handover, "POLL", DEADLINE)
    received = line.recv
    # Everything has come when it is read, however late that is.
    monkeypatch.setattr(line, "recv", lambda timeout: received(DEADLINE))
    hand(line)
    assert line.sent < 1.2 * len(code())


def test_an_image_with_another_bootstrap(line: Line) -> None:
    line.from_guest = lambda data: data.replace(b"BOOTSTRAP 1", b"BOOTSTRAP 2")
    with pytest.raises(ChannelError, match="VBLK-BOOTSTRAP 2, not VBLK-BOOTSTRAP 1: build"):
        hand(line)


def test_the_machines_reason_ends_the_wait(line: Line) -> None:
    def check() -> None:
        raise RuntimeError("QEMU ended")

    with pytest.raises(RuntimeError, match="QEMU ended"):
        hand(line, check=check)


def test_no_more_than_the_window_is_on_the_way(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "STALL", DEADLINE)
    excess: list[int] = []
    acknowledged = 0
    offer = len(f"\nVBLK-CODE {len(code())} \n") + 64

    def watch_got(data: bytes) -> bytes:
        nonlocal acknowledged
        for found in re.finditer(rb"VBLK-GOT (\d+)\n", data):
            acknowledged = int(found[1])
        return data

    def watch_sent(data: bytes) -> bytes:
        excess.append(line.sent - offer - acknowledged)
        return data

    line.from_guest, line.to_guest = watch_got, watch_sent
    hand(line)
    assert len(code()) > 3 * WINDOW
    assert BLOCK < max(excess) <= WINDOW
