"""Defects of a legacy device's virtqueue and of its requests (virtio 2.7.3, 5.2.6.3).

A bus does not see the device's accesses to memory. But a driver that writes a notification waits
for that access to return. Changes to memory before the write is forwarded are seen by the device.
Changes after it, once the device has used all available buffers, are seen by the driver.
"""

from __future__ import annotations

import time

from harness.defects.bus import AlteredPci
from harness.defects.registers import LEGACY, defect
from harness.virtio.blk import REQUEST_HEADER, RequestType
from harness.virtio.pci import LEGACY_PAGE
from harness.virtio.ring import (
    DESC,
    DESC_SIZE,
    PACKED_DESC_F_AVAIL,
    PACKED_DESC_F_USED,
    avail_size,
    used_size,
)

PATIENCE = 1.0
"""Longest time for the device to use the available buffers, in seconds."""

NO_TYPE = 99


class _AltersRings(AlteredPci):
    size = 0
    base = 0
    served = 0

    def alter_read(self, name: str, offset: int, width: int, value: int) -> int:
        if name == "queue_size":
            self.size = value
        return value

    def bar_write(self, bar: int, offset: int, width: int, value: int) -> None:
        name, _ = self._named(bar, offset)
        if name == "queue_address":
            self.base, self.served = value * LEGACY_PAGE, 0
        if name != "queue_notify" or not self.base:
            super().bar_write(bar, offset, width, value)
            return
        at = self.base + DESC_SIZE * self.size
        available = self.memory.view(at, avail_size(self.size)).cast("H")
        at = -(-(at + len(available) * 2) // LEGACY_PAGE) * LEGACY_PAGE
        used = self.memory.view(at, used_size(self.size))
        index = used.cast("H")
        slots = []
        while self.served != available[1]:
            slots.append(self.served % self.size)
            self.served = (self.served + 1) & 0xFFFF
        for slot in slots:
            address, length, _, _ = DESC.unpack_from(self.descriptor(available[2 + slot]))
            if length == REQUEST_HEADER.size:
                self.alter_header(self.memory.view(address, length))
        super().bar_write(bar, offset, width, value)
        deadline = time.monotonic() + PATIENCE
        while index[1] != self.served and time.monotonic() < deadline:
            pass
        for slot in slots:
            self.alter_used(index, used[4 + 8 * slot : 12 + 8 * slot])

    def descriptor(self, number: int) -> memoryview:
        """Return one entry of the descriptor table."""
        return self.memory.view(self.base + DESC_SIZE * number, DESC_SIZE)

    def alter_header(self, header: memoryview) -> None:
        """Change a request's header before the device reads it."""
        del header

    def alter_used(self, index: memoryview, element: memoryview) -> None:
        """Change a used element before the driver reads it. The used index is `index[1]`."""
        del index, element


@defect(
    "legacy-used-length-big-endian",
    "2.7.3-L-01",
    text="the length of a used element is big-endian for a little-endian guest",
    target=LEGACY,
)
class LengthBigEndian(_AltersRings):
    def alter_used(self, index: memoryview, element: memoryview) -> None:
        element[4:] = bytes(element[:3:-1])


@defect(
    "legacy-queue-used-as-packed",
    "4.1.4.10-L-06",
    text="the virtqueue of a legacy driver is used as a packed one",
    target=LEGACY,
)
class UsedAsPacked(_AltersRings):
    def alter_used(self, index: memoryview, element: memoryview) -> None:
        first = self.descriptor(int.from_bytes(element[:4], "little"))
        flags = int.from_bytes(first[12:14], "little") | PACKED_DESC_F_AVAIL | PACKED_DESC_F_USED
        first[12:14] = flags.to_bytes(2, "little")
        index[1] = 0


@defect(
    "legacy-sector-big-endian",
    "5.2.6.3-L-01",
    text="the sector of a request is big-endian for a little-endian guest",
    target=LEGACY,
)
class SectorBigEndian(_AltersRings):
    def alter_header(self, header: memoryview) -> None:
        header[8:] = bytes(header[:7:-1])


@defect(
    "legacy-flush-out-unsupported",
    "5.2.6.3-L-03",
    text="a legacy device answers FLUSH_OUT with UNSUPP",
    target=LEGACY,
)
class FlushOutUnsupported(_AltersRings):
    def alter_header(self, header: memoryview) -> None:
        if int.from_bytes(header[:4], "little") == RequestType.FLUSH_OUT:
            header[:4] = NO_TYPE.to_bytes(4, "little")
