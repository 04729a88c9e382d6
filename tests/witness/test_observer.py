"""The observer of a virtqueue sees every chain that the device takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.diskspec import DiskSpec
from harness.driver.interface import Request
from harness.model.block import Block
from harness.model.loop import Loop
from harness.model.queue import Queue, Throttle
from harness.model.ring import Chain
from harness.model.split import SplitRing
from harness.model.storage import Storage
from harness.targets.disk import Disk
from harness.targets.model import Model
from harness.virtio.blk import RequestType
from harness.virtio.features import Feature, mask
from harness.witness.events import Changed, Used, read


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


def test_descriptors_that_the_driver_may_fill_again_have_not_changed(tmp_path: Path) -> None:
    """Use later buffers of a packed virtqueue while every third is slow, around its end."""
    path = tmp_path / "events.jsonl"
    whims = ("used-out-of-order", "every-third-is-slow")
    target = Model(name="model-pci", whims=whims, observe=path)
    try:
        disk = Disk(target.plug(DiskSpec(capacity=64)))
        disk.start(mask(Feature.VERSION_1, Feature.RING_PACKED), queue_size=16)
        read_sector = Request(RequestType.IN, 0, receive=512)
        slow: list[int] = []
        for _ in range(3):
            tokens = [disk.driver.submit([read_sector])[0] for _ in range(3)]
            slow.append(tokens.pop())
            disk.driver.complete(tokens)
        disk.driver.complete(slow)
        disk.unplug()
    finally:
        target.close()

    events = read(path)
    assert sum(isinstance(event, Used) for event in events) == 9
    assert not [event for event in events if isinstance(event, Changed)]
