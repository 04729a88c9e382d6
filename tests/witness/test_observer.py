"""The observer of a virtqueue sees every chain that the device takes."""

from __future__ import annotations

from typing import Any

from harness.diskspec import DiskSpec
from harness.model.block import Block
from harness.model.loop import Loop
from harness.model.queue import Queue, Throttle
from harness.model.ring import Chain
from harness.model.split import SplitRing
from harness.model.storage import Storage


class LateRing(SplitRing):
    """A ring in which a chain becomes available after the observer has looked."""

    def look(self) -> dict[str, Any] | None:
        return None

    def impossible(self) -> int | None:
        return None

    def take(self) -> Chain | None:
        return Chain(0, 0)


def test_a_chain_that_the_observer_has_not_seen_is_left_for_the_next_look() -> None:
    shown: list[str] = []
    queue = Queue(Block(DiskSpec(), Storage(None, False, (), True)), Throttle(None), Loop())
    ring = LateRing(4, False, 0)

    assert queue._take(ring) is not None, "nobody observes"
    queue.observe(lambda event, **values: shown.append(event), 0)
    assert queue._take(ring) is None
    assert shown == []
