"""Registers of the common configuration, and what they do (virtio 4.1.4.3, 4.1.5)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from harness.model.device import Device, Transport
from harness.model.loop import Loop
from harness.model.observer import Observer
from harness.model.pci.interrupts import Interrupts
from harness.model.pci.registers import Register
from harness.model.queue import Queue
from harness.model.ring import Addresses
from harness.virtio.device import DeviceStatus
from harness.virtio.features import Feature
from harness.virtio.pci import COMMON_REGISTERS, ISR_CONFIG, ISR_QUEUE, NO_VECTOR

NOTIFY_MULTIPLIER = 4
"""Distance between the notification addresses of two virtqueues, in bytes."""

QUEUE_SIZE = 256
"""Descriptors of a virtqueue, unless the disk says otherwise."""

NOTIF_CONFIG_BASE = 0x100
"""Added to a queue's index for its queue_notif_config_data, so that the two differ."""


@dataclass
class QueueRegisters:
    """The registers of one virtqueue that the driver writes."""

    vector: int = NO_VECTOR
    desc: int = 0
    driver: int = 0
    device: int = 0
    page: int = 0


class CommonConfiguration(Transport):
    """The registers of the common configuration, the notifications and the interrupts."""

    device: Device
    interrupts: Interrupts
    _loop: Loop
    _observer: Observer | None
    _legacy_driver: bool

    def _available(self, index: int) -> bool:
        """Return whether the driver can use a virtqueue with the features that it chose."""
        return index < self.device.block.queues

    def _config_bytes(self, offset: int, length: int) -> bytes:
        return self.device.read_config()[offset : offset + length].ljust(length, b"\0")

    def _common_registers(self) -> dict[str, Register]:
        def plain(name: str) -> tuple[Callable[[], int], Callable[[int], None]]:
            return lambda: int(getattr(self, "_" + name)), lambda v: setattr(self, "_" + name, v)

        accesses: dict[str, tuple[Callable[[], int], Callable[[int], None] | None]] = {
            "device_feature_select": plain("device_feature_select"),
            "device_feature": (self._device_feature, None),
            "driver_feature_select": plain("driver_feature_select"),
            "driver_feature": (
                lambda: self._driver_feature.get(self._driver_feature_select, 0),
                self._write_driver_feature,
            ),
            "config_msix_vector": (lambda: self._config_vector, self._write_config_vector),
            "num_queues": (lambda: self.device.block.queues, None),
            "device_status": (lambda: self.device.status, self.write_status),
            "config_generation": (self.device.read_generation, None),
            "queue_select": plain("queue_select"),
            "queue_size": (lambda: self._selected(lambda q, r: q.size), self._write_queue_size),
            "queue_msix_vector": (
                lambda: self._selected(lambda q, r: r.vector, NO_VECTOR),
                self._write_queue_vector,
            ),
            "queue_enable": (
                lambda: self._selected(lambda q, r: int(q.enabled)),
                self._write_queue_enable,
            ),
            "queue_notify_off": (lambda: self._selected(lambda q, r: self._queue_select), None),
            "queue_desc": (
                lambda: self._selected(lambda q, r: r.desc),
                lambda value: self._write_area("desc", value),
            ),
            "queue_driver": (
                lambda: self._selected(lambda q, r: r.driver),
                lambda value: self._write_area("driver", value),
            ),
            "queue_device": (
                lambda: self._selected(lambda q, r: r.device),
                lambda value: self._write_area("device", value),
            ),
            "queue_notif_config_data": (
                lambda: self._selected(lambda q, r: NOTIF_CONFIG_BASE + self._queue_select),
                None,
            ),
            "queue_reset": (lambda: 0, self._write_queue_reset),
            "admin_queue_index": (lambda: self._admin_queues()[0], None),
            "admin_queue_num": (lambda: self._admin_queues()[1], None),
        }
        return {
            name: Register(offset, width, *accesses[name])
            for name, (offset, width) in COMMON_REGISTERS.items()
        }

    def _reset_registers(self) -> None:
        """Give every register that a reset touches its initial value (virtio 2.4, 4.1.4.3.1)."""
        self._device_feature_select = 0
        self._driver_feature_select = 0
        self._driver_feature: dict[int, int] = {}
        self._config_vector = NO_VECTOR
        self._queue_select = 0
        self._legacy_driver = False
        self._queue_registers = [QueueRegisters() for _ in self.device.queues]
        for queue in self.device.queues:
            queue.size = self._largest_queue
        self.interrupts.isr = 0
        self.interrupts.update_line()

    def _admin_queues(self) -> tuple[int, int]:
        """Return index and number of the administration virtqueues; for subclasses."""
        return 0, 0

    @property
    def _largest_queue(self) -> int:
        return self.device.block.spec.queue_size or QUEUE_SIZE

    def _selected(self, read: Callable[[Queue, QueueRegisters], int], absent: int = 0) -> int:
        """Return what a register of the selected virtqueue reads; `absent` if there is none."""
        if not self._available(self._queue_select):
            return absent
        index = self._queue_select
        return read(self.device.queues[index], self._queue_registers[index])

    def _device_feature(self) -> int:
        return self.device.offered() >> 32 * self._device_feature_select & 0xFFFF_FFFF

    def _write_driver_feature(self, value: int) -> None:
        self._driver_feature[self._driver_feature_select] = value

    def write_status(self, value: int) -> None:
        """Take a write to the device status; 0 resets the device and these registers."""
        if value & DeviceStatus.FEATURES_OK and not self.device.status & DeviceStatus.FEATURES_OK:
            words = self._driver_feature.items()
            self.device.choose(sum(bits << 32 * select for select, bits in words))
        self.device.set_status(value)
        if value == 0:
            self._reset_registers()

    def _vector(self, value: int) -> int:
        return value if value < self.interrupts.vectors else NO_VECTOR

    def _write_config_vector(self, value: int) -> None:
        self._config_vector = self._vector(value)

    def _queue(self) -> tuple[Queue, QueueRegisters] | None:
        if not self._available(self._queue_select):
            return None
        return self.device.queues[self._queue_select], self._queue_registers[self._queue_select]

    def _write_queue_size(self, value: int) -> None:
        if (found := self._queue()) and not found[0].enabled:
            self.device.set_queue_size(found[0], value)

    def _write_queue_vector(self, value: int) -> None:
        if found := self._queue():
            found[1].vector = self._vector(value)

    def _write_area(self, name: str, value: int) -> None:
        if (found := self._queue()) and not found[0].enabled:
            setattr(found[1], name, value)

    def _write_queue_enable(self, value: int) -> None:
        if (found := self._queue()) and value == 1 and not found[0].enabled:
            queue, registers = found
            queue.addresses = Addresses(registers.desc, registers.driver, registers.device)
            packed = self.device.block.has(Feature.RING_PACKED)
            # Both wrap counters of a packed ring start at 1 (virtio 2.8.1).
            self.device.set_queue_base(queue, 1 << 15 | 1 << 31 if packed else 0)
            queue.enabled = True

    def _write_queue_reset(self, value: int) -> None:
        if (found := self._queue()) and value == 1 and self.device.block.has(Feature.RING_RESET):
            queue, _ = found
            self.device.stop(queue)
            queue.enabled = False
            self.device.set_queue_size(queue, self._largest_queue)
            self._queue_registers[self._queue_select] = QueueRegisters()

    def _notify(self, offset: int, value: int) -> None:
        """Take a write to the notification structure (virtio 4.1.5.2).

        The address tells the virtqueue. Data that does not belong to it is ignored.
        """
        index = offset // NOTIFY_MULTIPLIER
        if self._available(index) and value & 0xFFFF == self._notify_value(index):
            self._process_later(self.device.queues[index])

    def _process_later(self, queue: Queue) -> None:
        """Process a virtqueue after the answer to the write that notified the device of it.

        The driver goes on meanwhile, as with a notification that takes its time.
        """
        self._loop.at(0.0, lambda: self.device.notified(queue))

    def _notify_value(self, index: int) -> int:
        """Return the low 16 bits of a notification of a virtqueue (virtio 4.1.5.2)."""
        own_data = self.device.has(Feature.NOTIF_CONFIG_DATA)
        return NOTIF_CONFIG_BASE + index if own_data else index

    def _asked(self, index: int) -> dict[str, int]:
        """Return what the driver of a virtqueue is asked for; nothing if there is no such queue."""
        return self.device.queues[index].asked if self._available(index) else {}

    def _queue_signal(self, index: int) -> Callable[[], None]:
        return lambda: self.interrupts.raise_interrupt(
            self._queue_registers[index].vector, ISR_QUEUE
        )

    def announce_config_change(self) -> None:
        """Send a configuration change notification to a driver that has set DRIVER_OK."""
        if self.device.status & DeviceStatus.DRIVER_OK:
            self.interrupts.raise_interrupt(self._config_vector, ISR_CONFIG)

    def announce_needs_reset(self, queue: Queue) -> None:
        """Send a configuration change notification because of DEVICE_NEEDS_RESET."""
        self.announce_config_change()
