"""A member that a test drives through its owner's commands for the legacy interface.

The lengths of these commands are those of the field (virtio 2.12.1.1), not multiples of 64 bits.
"""

from __future__ import annotations

import pytest

from conformance.administration import Members, need
from conformance.data import untouched
from conformance.waiting import SOON, eventually
from harness.driver.admin import Answer
from harness.virtio.admin import LEGACY_ACCESS, LEGACY_ACCESS_HEAD, Opcode
from harness.virtio.blk import REQUEST_HEADER, SECTOR, STATUS_UNWRITTEN, RequestType
from harness.virtio.device import DeviceStatus
from harness.virtio.pci import LEGACY_PAGE, LEGACY_REGISTERS
from harness.virtio.ring import DESC, DESC_F_NEXT, DESC_F_WRITE, DESC_SIZE, legacy_areas, used_size

LAID_OUT = REQUEST_HEADER.size + SECTOR + 1


class LegacyMember:
    """The first member, driven as a legacy driver would."""

    def __init__(self, members: Members) -> None:
        """Use all commands; skip a device without those for the legacy interface."""
        members.needs(*(Opcode(opcode) for opcode in sorted(LEGACY_ACCESS)))
        self.members = members
        self.driver = members.driver
        self._published = 0

    # --- registers

    def read_at(self, offset: int, length: int) -> Answer:
        """Read bytes of the legacy header."""
        data = LEGACY_ACCESS_HEAD.pack(offset)
        return self.members.command(Opcode.LEGACY_COMMON_CFG_READ, data, room=length)

    def write_at(self, offset: int, data: bytes) -> Answer:
        """Write bytes of the legacy header."""
        whole = LEGACY_ACCESS_HEAD.pack(offset) + data
        return self.members.command(Opcode.LEGACY_COMMON_CFG_WRITE, whole, room=0)

    def config_read(self, offset: int, length: int) -> Answer:
        """Read bytes of the legacy device configuration."""
        data = LEGACY_ACCESS_HEAD.pack(offset)
        return self.members.command(Opcode.LEGACY_DEV_CFG_READ, data, room=length)

    def config_write(self, offset: int, data: bytes) -> Answer:
        """Write bytes of the legacy device configuration."""
        whole = LEGACY_ACCESS_HEAD.pack(offset) + data
        return self.members.command(Opcode.LEGACY_DEV_CFG_WRITE, whole, room=0)

    def read(self, name: str) -> int:
        """Return a register of the legacy header; skip the test if that fails."""
        offset, width = LEGACY_REGISTERS[name]
        return int.from_bytes(need(self.read_at(offset, width), f"read of {name}").result, "little")

    def write(self, name: str, value: int) -> None:
        """Write a register of the legacy header; skip the test if that fails."""
        offset, width = LEGACY_REGISTERS[name]
        need(self.write_at(offset, value.to_bytes(width, "little")), f"write of {name}")

    # --- requests

    def start(self, features: int = 0) -> None:
        """Initialise the member with virtqueue 0 and these features."""
        for status in (0, DeviceStatus.ACKNOWLEDGE, DeviceStatus.ACKNOWLEDGE | DeviceStatus.DRIVER):
            self.write("device_status", status)
        self.write("driver_features", features)
        self.write("queue_select", 0)
        self.size = self.read("queue_size")
        if not self.size:
            pytest.skip("the member has no virtqueue 0")
        driver, device, whole = legacy_areas(self.size, LEGACY_PAGE)
        self.ring = self.driver.alloc(whole, LEGACY_PAGE)
        self.driver.memory_write(self.ring, bytes(whole))
        self.available, self.used = self.ring + driver, self.ring + device
        self.write("queue_address", self.ring // LEGACY_PAGE)
        running = DeviceStatus.ACKNOWLEDGE | DeviceStatus.DRIVER | DeviceStatus.DRIVER_OK
        self.write("device_status", running)
        self._published = 0

    def publish(self, sectors: list[int]) -> list[int]:
        """Make reads of sectors (512 bytes) available, without a notification.

        Return the address of each: the header, the area for the data, and the status byte follow
        one another. Skip a member whose virtqueue has no room for them.
        """
        if 3 * (self._published + len(sectors)) > self.size:
            pytest.skip(f"the member's virtqueue has {self.size} descriptors")
        places = []
        for sector in sectors:
            at = self.driver.alloc(LAID_OUT)
            header = REQUEST_HEADER.pack(RequestType.IN, 0, sector)
            self.driver.memory_write(at, header + untouched(SECTOR) + bytes([STATUS_UNWRITTEN]))
            head = 3 * self._published
            data, end = at + REQUEST_HEADER.size, at + REQUEST_HEADER.size + SECTOR
            table = DESC.pack(at, REQUEST_HEADER.size, DESC_F_NEXT, head + 1)
            table += DESC.pack(data, SECTOR, DESC_F_NEXT | DESC_F_WRITE, head + 2)
            table += DESC.pack(end, 1, DESC_F_WRITE, 0)
            self.driver.memory_write(self.ring + DESC_SIZE * head, table)
            slot = self.available + 4 + 2 * (self._published % self.size)
            self.driver.memory_write(slot, head.to_bytes(2, "little"))
            self._published += 1
            places.append(at)
        self.driver.memory_write(self.available + 2, self._published.to_bytes(2, "little"))
        return places

    def notify(self) -> None:
        """Notify virtqueue 0 by a write to Queue Notify."""
        self.write("queue_notify", 0)

    def used_index(self) -> int:
        """Return the index of the used ring."""
        return int.from_bytes(self.driver.memory_read(self.used + 2, 2), "little")

    def wait_used(self, count: int, timeout: float = SOON) -> bool:
        """Wait until `count` requests were used since `start`. Return True if they were."""
        return eventually(lambda: self.used_index() >= count, timeout)

    def data(self, place: int) -> bytes:
        """Return the data area of a request."""
        return self.driver.memory_read(place + REQUEST_HEADER.size, SECTOR)

    def status(self, place: int) -> int:
        """Return the status byte of a request."""
        return self.driver.memory_read(place + LAID_OUT - 1, 1)[0]

    def memory(self, places: list[int]) -> list[bytes]:
        """Return all memory that the member may write: the used ring, and the requests."""
        ring = self.driver.memory_read(self.used, used_size(self.size))
        return [ring, *(self.driver.memory_read(place, LAID_OUT) for place in places)]
