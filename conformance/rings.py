"""Tests on both virtqueue formats; a split virtqueue whose index is made to wrap."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from conformance.waiting import SOON, pause_after
from harness.virtio.blk import ID_LENGTH, REQUEST_HEADER, RequestType
from harness.virtio.features import Feature
from harness.virtio.ring import (
    DESC,
    DESC_F_NEXT,
    DESC_F_WRITE,
    EVENT_SUPPRESSION,
    avail_size,
    used_size,
)
from harness.virtio.shared import fence

if TYPE_CHECKING:
    from harness.driver.interface import QueueLayout
    from harness.pytestplugin.fixtures import Plug
    from harness.targets import Disk

both_rings = pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
"""Decorator that runs a test on a split and on a packed virtqueue, for use with `plug_ring`."""


def with_statements(
    *, split: pytest.MarkDecorator, packed: pytest.MarkDecorator
) -> pytest.MarkDecorator:
    """Return a decorator like `both_rings`; each format has its own statements."""
    formats = [
        pytest.param(False, marks=split, id="split"),
        pytest.param(True, marks=packed, id="packed"),
    ]
    return pytest.mark.parametrize("packed", formats)


def plug_ring(plug: Plug, packed: bool, **fields: Any) -> Disk:
    """Return a disk whose driver uses packed or split virtqueues; `fields` as for `plug`."""
    if packed:
        fields["extra"] = [*fields.get("extra", ()), Feature.RING_PACKED]
    return plug(packed=packed or None, **fields)


def limit_queue(disk: Disk, most: int = 1024) -> int:
    """Start the device again with a virtqueue of `most` descriptors, if it has more; return them.

    A test that goes around a virtqueue with more would take minutes on a slow device.
    """
    if disk.queues[0].size > most:
        features = disk.driver.accepted()
        disk.driver.reset()
        disk.start(features, queue_size=most)
    return disk.queues[0].size


def areas(disk: Disk, packed: bool, queue: QueueLayout) -> tuple[bytes, bytes, bytes]:
    """Return the contents of a virtqueue's descriptor area, driver area and device area."""
    driver = EVENT_SUPPRESSION.size if packed else avail_size(queue.size)
    device = EVENT_SUPPRESSION.size if packed else used_size(queue.size)
    read = disk.driver.memory_read
    return (
        read(queue.desc, DESC.size * queue.size),
        read(queue.driver, driver),
        read(queue.device, device),
    )


class RingWrapper:
    """Sends GET_ID requests through a split virtqueue, a third of a queue at a time.

    It writes the ring directly. Do not submit requests through the driver on the same queue. With
    `suppressed` it notifies the device only where avail_event asks for it (virtio 2.7.10):
    EVENT_IDX must have been accepted.
    """

    def __init__(self, disk: Disk, suppressed: bool = False) -> None:
        self._driver, self._queue = disk.driver, disk.queues[0]
        self._suppressed = suppressed
        size = self._queue.size
        if size < 3:
            pytest.skip(f"the virtqueue has {size} descriptors, and a request takes 3")
        self._chains = size // 3
        self._index = 0
        header = self._driver.alloc(REQUEST_HEADER.size)
        self._driver.memory_write(header, REQUEST_HEADER.pack(RequestType.GET_ID, 0, 0))
        data = self._driver.alloc(ID_LENGTH)
        status = self._driver.alloc(self._chains)
        table = b"".join(
            DESC.pack(header, REQUEST_HEADER.size, DESC_F_NEXT, 3 * chain + 1)
            + DESC.pack(data, ID_LENGTH, DESC_F_NEXT | DESC_F_WRITE, 3 * chain + 2)
            + DESC.pack(status + chain, 1, DESC_F_WRITE, 0)
            for chain in range(self._chains)
        )
        heads = b"".join((3 * (slot % self._chains)).to_bytes(2, "little") for slot in range(size))
        self._driver.memory_write(self._queue.desc, table)
        self._driver.memory_write(self._queue.driver + 4, heads)

    def turn(self, count: int) -> None:
        """Send `count` more requests, and assert that the device uses each batch within SOON."""
        while count:
            some = min(count, self._chains)
            count -= some
            self._index = (self._index + some) & 0xFFFF
            index = self._index.to_bytes(2, "little")
            self._driver.memory_write(self._queue.driver + 2, index)
            if not self._suppressed or self._wanted(some):
                self._driver.queue_kick(0)
            deadline = time.monotonic() + SOON
            looks, before = 0, b""
            while (used := self._driver.memory_read(self._queue.device + 2, 2)) != index:
                looks = looks + 1 if used == before else 0
                before = used
                pause_after(looks)
                assert time.monotonic() < deadline, (
                    f"the used index did not reach {self._index} in {SOON:g} s"
                )

    def _wanted(self, added: int) -> bool:
        """Return True if avail_event lies among the last `added` positions."""
        fence()
        at = self._queue.device + used_size(self._queue.size) - 2
        event = int.from_bytes(self._driver.memory_read(at, 2), "little")
        return (self._index - 1 - event) & 0xFFFF < added
