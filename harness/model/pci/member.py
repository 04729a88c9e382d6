"""A virtual function: a member of the group of another function (virtio 2.12.1).

Its owner accesses its legacy interface, stops it, and captures and restores its device parts
(virtio 2.12.1.1, 2.12.1.4, 2.14). A client of its own reaches its configuration space and its
BARs, and gives it memory. Without a client it uses the memory of its owner's driver.
"""

from __future__ import annotations

from collections.abc import Callable

from harness.model.block import Block
from harness.model.loop import Loop
from harness.model.memory import BrokenError, Memory
from harness.model.pci.function import Function
from harness.model.queue import Queue
from harness.model.ring import Addresses
from harness.virtio.admin import PART_INDEX, PART_OFFSET, VQ_CFG, VQ_NOTIFY_CFG, Part
from harness.virtio.blk import CONFIG_FIELDS
from harness.virtio.device import DeviceStatus
from harness.virtio.features import Feature
from harness.virtio.pci import COMMON_REGISTERS, LEGACY_REGISTERS

NO_SELECTOR = bytes(8)

CONFIGURED = ("num_queues",)
"""Fields of the common configuration that are parts: none that a driver writes."""

FIXED = frozenset({Part.DEV_FEATURES, Part.PCI_COMMON_CFG, Part.VQ_NOTIFY_CFG})
"""Parts that are compared, and not restored."""

Key = tuple[int, bytes]
"""Type and selector of a part."""

Values = dict[Key, bytes]


class MismatchError(Exception):
    """Error of an access to no single field, or of a part that is not like the member's own."""


class Member(Function):
    """A member function from power-on, which is when its owner enables it."""

    def __init__(self, block: Block, loop: Loop) -> None:
        self.stopped = False
        self._change_kept = False
        self._hang_up: Callable[[], None] | None = None
        self._owners_memory = Memory()
        super().__init__(block, loop, "modern", lambda _: None, lambda: None)

    # --- a client of its own

    @property
    def attached(self) -> bool:
        """Return whether the member has a client of its own."""
        return self._hang_up is not None

    def attach(
        self,
        send_message: Callable[[int], None],
        send_line: Callable[[], None],
        hang_up: Callable[[], None],
    ) -> None:
        """Take a client: its interrupts, and what is called when the member is gone.

        The member is reset, and has no memory until the client maps some.
        """
        self._send_message, self._send_line, self._hang_up = send_message, send_line, hang_up
        self.reset()
        super().set_memory(Memory())

    def detach(self) -> None:
        """Reset the member and give it the memory of its owner's driver: its client is gone."""
        self._send_message, self._send_line, self._hang_up = lambda _: None, lambda: None, None
        self.reset()
        super().set_memory(self._owners_memory)

    def vanish(self) -> None:
        """Reset the member, because its owner has disabled it, and hang up on its client."""
        self.reset()
        if self._hang_up:
            self._hang_up()

    def share_memory(self, memory: Memory) -> None:
        """Use another view of the memory of the owner's driver, if there is no client."""
        self._owners_memory = memory
        if not self.attached:
            super().set_memory(memory)

    # --- stop and resume

    def serves(self, queue: Queue) -> bool:
        """Return whether the function is not stopped, and its driver uses it.

        Bus mastering and the power state are for a client of its own to set.
        """
        if self.attached:
            return super().serves(queue) and not self.stopped
        running = self._legacy_driver or self.device.status & DeviceStatus.DRIVER_OK
        return bool(running and not self.stopped)

    def announce_config_change(self) -> None:
        """Announce a change of the configuration, or keep it until the function is resumed."""
        if self.stopped:
            self._change_kept = True
        else:
            super().announce_config_change()

    def stop(self) -> None:
        """Use every buffer that was taken, then touch nothing until `resume`."""
        for queue in self.device.queues:
            self.settle(queue)
        self.stopped = True

    def settle(self, queue: Queue) -> None:
        """Finish the requests of a virtqueue that were taken."""
        try:
            queue.settle()
        except BrokenError as error:
            self.device.broken(queue, error)

    def resume(self) -> None:
        """Continue, and announce a change that was kept."""
        self.stopped = False
        if self._change_kept:
            self._change_kept = False
            super().announce_config_change()
        self.device.run_all()

    def reset(self) -> None:
        """Reset the function, which runs again."""
        self.stopped = self._change_kept = False
        super().reset()

    # --- the legacy interface (2.12.1.1)

    def check_common(self, offset: int, length: int) -> None:
        """Raise MismatchError unless the bytes are in one field of the legacy header."""
        end = self._legacy_config
        fields = [field for field in LEGACY_REGISTERS.values() if sum(field) <= end]
        _check_field(fields, offset, length)

    def check_config(self, offset: int, length: int) -> None:
        """Raise MismatchError unless the bytes are in one field of the device configuration."""
        _check_field([(field.offset, field.size) for field in CONFIG_FIELDS], offset, length)

    def read_legacy(self, offset: int, length: int) -> bytes:
        """Read bytes of the legacy header."""
        return self._legacy.read(offset, length)

    def write_legacy(self, offset: int, data: bytes) -> None:
        """Write bytes of the legacy header."""
        self._legacy.write(offset, data)

    def read_config(self, offset: int, length: int) -> bytes:
        """Read bytes of the device configuration."""
        return self._config_bytes(offset, length)

    def write_config(self, offset: int, data: bytes) -> None:
        """Write bytes of the device configuration."""
        self.device.write_config(offset, data, legacy=True)

    def notify_legacy(self, index: int) -> None:
        """Take a notification of a virtqueue, as a write to Queue Notify."""
        self._legacy_notify(index)

    # --- device parts (2.12.1.4, 2.14)

    def parts(self) -> Values:
        """Return all parts in the order of virtio 2.12.1.4.4."""
        queues = range(self.device.block.queues)
        found: Values = {
            (Part.DEV_FEATURES, NO_SELECTOR): self.device.offered().to_bytes(8, "little"),
            (Part.DRV_FEATURES, NO_SELECTOR): self._chosen().to_bytes(8, "little"),
        }
        for name in CONFIGURED:
            offset, width = COMMON_REGISTERS[name]
            found[Part.PCI_COMMON_CFG, PART_OFFSET.pack(offset)] = self._common.read(offset, width)
        found[Part.DEVICE_STATUS, NO_SELECTOR] = bytes([self.device.status])
        for index in queues:
            found[Part.VQ_CFG, PART_INDEX.pack(index)] = self._queue_part(index)
        for index in queues:
            data = VQ_NOTIFY_CFG.pack(index, 0)
            found[Part.VQ_NOTIFY_CFG, PART_INDEX.pack(index)] = data
        return found

    def _chosen(self) -> int:
        return sum(bits << 32 * select for select, bits in self._driver_feature.items())

    def _queue_part(self, index: int) -> bytes:
        queue, registers = self.device.queues[index], self._queue_registers[index]
        desc, driver, device = registers.desc, registers.driver, registers.device
        if queue.enabled and queue.addresses:
            at = queue.addresses
            desc, driver, device = at.desc, at.driver, at.device
        return VQ_CFG.pack(queue.size, registers.vector, queue.enabled, desc, driver, device)

    def check_parts(self, given: Values) -> None:
        """Raise MismatchError for a part that the member lacks, or that differs and is fixed."""
        own = self.parts()
        for (kind, selector), value in given.items():
            if (kind, selector) not in own:
                raise MismatchError(f"no part {kind:#x} with the selector {selector.hex()}")
            mine = own[kind, selector]
            if len(value) != len(mine):
                raise MismatchError(f"part {kind:#x} has {len(mine)} bytes, not {len(value)}")
            if kind in FIXED and value != mine:
                raise MismatchError(f"part {kind:#x} is {mine.hex()}, not {value.hex()}")

    def restore(self, given: Values) -> None:
        """Take these parts; they have an effect when the member is resumed."""
        for (kind, selector), value in given.items():
            if kind == Part.DRV_FEATURES:
                self._restore_features(int.from_bytes(value, "little"))
            elif kind == Part.DEVICE_STATUS:
                self.device.status = value[0]
            elif kind == Part.VQ_CFG:
                (index,) = PART_INDEX.unpack(selector)
                self._restore_queue(index, value)

    def _restore_features(self, features: int) -> None:
        self._driver_feature = {0: features & 0xFFFF_FFFF, 1: features >> 32}
        legacy = not features & Feature.VERSION_1.mask
        self._legacy_driver = legacy and bool(features)
        self.device.choose(features & ~Feature.ANY_LAYOUT.mask, legacy)

    def _restore_queue(self, index: int, value: bytes) -> None:
        size, vector, enabled, desc, driver, device = VQ_CFG.unpack(value)
        queue, registers = self.device.queues[index], self._queue_registers[index]
        if value == self._queue_part(index):
            return  # the place in the rings is no part: a queue that stays the same keeps it
        self.device.stop(queue)
        registers.vector = vector
        registers.desc, registers.driver, registers.device = desc, driver, device
        queue.addresses = Addresses(desc, driver, device)
        queue.size = size
        self.device.set_queue_base(queue, 0)
        queue.enabled = bool(enabled)


def _check_field(fields: list[tuple[int, int]], offset: int, length: int) -> None:
    if not length or not any(
        at <= offset and offset + length <= at + width for at, width in fields
    ):
        raise MismatchError(f"{length} bytes at {offset} are not in one field")
