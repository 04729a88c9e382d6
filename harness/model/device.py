"""The state of the model device that does not depend on its transport.

A transport (vhost-user, PCI) hands over what the driver writes, and is told what the
device has to announce. Defects and whims of this state apply to every transport.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from contextlib import suppress

from harness.model.block import Block
from harness.model.loop import Loop
from harness.model.memory import BrokenError, Memory
from harness.model.observer import SHOWN, Observer
from harness.model.queue import Queue, Throttle
from harness.virtio.device import DeviceStatus
from harness.virtio.features import Feature


class Transport(ABC):
    """The side of a transport that the device's state calls."""

    @abstractmethod
    def serves(self, queue: Queue) -> bool:
        """Return whether the transport lets the device process a virtqueue now."""

    @abstractmethod
    def announce_config_change(self) -> None:
        """Send a configuration change notification (virtio 2.3), if the driver can take one."""

    @abstractmethod
    def announce_needs_reset(self, queue: Queue) -> None:
        """Tell the driver that DEVICE_NEEDS_RESET is set because of a virtqueue."""


class Device:
    """Device status, features, virtqueues and configuration changes of one driver's session."""

    def __init__(
        self,
        block: Block,
        loop: Loop,
        transport: Transport,
        transport_features: int = 0,
        observer: Observer | None = None,
    ) -> None:
        """`transport_features` are offered in addition to those of the block device."""
        self.observer = observer
        self.block = block
        self.features = 0
        self._transport_features = transport_features
        self.memory = Memory()
        self.status = 0
        self.generation = 0
        self._transport = transport
        self._accepted = False
        self._generation_read = False
        self._change_pending = False
        throttle = Throttle(block.spec.iops)
        self.queues = [self.make_queue(throttle, loop) for _ in range(block.queues)]
        for index, queue in enumerate(self.queues):
            queue.observe(observer, index)

    def make_queue(self, throttle: Throttle, loop: Loop) -> Queue:
        """Return a virtqueue of this device, not set up."""
        return Queue(self.block, throttle, loop)

    # --- status and features (virtio 2.1, 2.2)

    def offered(self) -> int:
        """Return the feature bits that the device offers."""
        return self.block.offered() | self._transport_features

    def choose(self, features: int, legacy: bool = False) -> bool:
        """Take the driver's choice of features. Return whether the device can work with it.

        A `legacy` interface has no VERSION_1, so its driver cannot accept it (virtio 6.3).
        """
        own = features & ~self._transport_features
        required = own | (Feature.VERSION_1.mask if legacy else 0)
        self._accepted = self.block.acceptable(required)
        if self._accepted:
            self.block.accept(own, legacy)
            self.features = features
        if self.observer:
            self.observer("features", chosen=features, accepted=self._accepted, legacy=legacy)
        return self._accepted

    def has(self, feature: Feature) -> bool:
        """Return whether a feature was negotiated."""
        return bool(self.features & feature.mask)

    def set_status(self, value: int) -> None:
        """Take what the driver writes to the device status; 0 resets the device."""
        if self.observer:
            self.observer("status", value=value, before=int(self.status))
        if value == 0:
            self.reset()
            return
        if not (self._accepted or self.status & DeviceStatus.FEATURES_OK):
            value &= ~DeviceStatus.FEATURES_OK
        if self.suspended:
            self.resume(value)
        elif self.asks_to_suspend(value):
            self.suspend(value)
        else:
            self._show(value & ~DeviceStatus.SUSPEND)
            self.run_all()

    def _show(self, value: int) -> None:
        """Set the device status; only a reset clears DEVICE_NEEDS_RESET."""
        self.status = value | self.status & DeviceStatus.NEEDS_RESET

    def reset(self) -> None:
        """Reset the device; the driver's memory stays known (virtio 2.4.1)."""
        if self.observer:
            self.observer("reset")
        for queue in self.queues:
            self.stop(queue)
            queue.enabled = False
        self.status = 0
        self.features = 0
        self._accepted = False
        self._change_pending = False
        self.block.reset()

    # --- suspension (virtio 3.4)

    @property
    def suspended(self) -> bool:
        """Return whether the device is suspended."""
        return bool(self.status & DeviceStatus.SUSPEND)

    def asks_to_suspend(self, value: int) -> bool:
        """Return whether a status value suspends the device: it runs, and SUSPEND was accepted."""
        running = self.status & DeviceStatus.DRIVER_OK
        able = self.block.has(Feature.SUSPEND)
        return bool(running and able and value & DeviceStatus.SUSPEND)

    def suspend(self, value: int) -> None:
        """Use and announce everything that was taken, then stop (virtio 3.4.2)."""
        for queue in self.queues:
            try:
                queue.settle()
            except BrokenError as error:
                self.broken(queue, error)
            queue.show_waiting()
        self._show(value & ~DeviceStatus.DRIVER_OK)

    def resume(self, value: int) -> None:
        """Go on if the status value has DRIVER_OK; then announce a change that was kept back."""
        if not value & DeviceStatus.DRIVER_OK:
            return
        for queue in self.queues:
            queue.show_waiting()
        self._show(value & ~DeviceStatus.SUSPEND)
        if self._change_pending:
            self.announce_change()
        self.run_all()

    # --- configuration space (virtio 2.5)

    def read_config(self) -> bytes:
        """Return the whole configuration space."""
        return self.block.config()

    def write_config(self, offset: int, data: bytes, legacy: bool = False) -> bool:
        """Write a field of the configuration space. Return whether the device took it."""
        if self.observer:
            self.observer("config_write", offset=offset, data=data[:SHOWN].hex())
        return not self.suspended and self.block.configure(offset, data, legacy)

    def read_generation(self) -> int:
        """Return the config generation; the next change of the configuration alters it."""
        self._generation_read = True
        return self.generation

    def config_changed(self) -> None:
        """Count a change of the configuration and announce it."""
        if self.observer:
            self.observer("config", data=self.read_config().hex())
        if self._generation_read:
            self.generation = (self.generation + 1) & 0xFF
            self._generation_read = False
        self.announce_change()

    def announce_change(self) -> None:
        """Announce a configuration change, or keep it for the resumption of a suspended device."""
        self._change_pending = self.suspended
        if not self.suspended:
            if self.observer:
                self.observer("interrupt", queue=-1)
            self._transport.announce_config_change()

    # --- virtqueues (virtio 2.6)

    def set_queue_size(self, queue: Queue, size: int) -> None:
        """Take the number of descriptors of a virtqueue."""
        queue.size = size

    def set_queue_base(self, queue: Queue, base: int) -> None:
        """Take the place in the rings where a virtqueue begins."""
        queue.base = base

    def set_memory(self, memory: Memory) -> None:
        """Use another memory table, also for virtqueues that run. BrokenError if a ring is lost."""
        self.show_memory(memory)
        self.memory = memory
        for queue in self.queues:
            queue.remap(memory)

    def show_memory(self, memory: Memory) -> None:
        """Tell the observer, if there is one, where the driver's memory is on the bus."""
        if self.observer:
            self.observer("memory", regions=[list(region) for region in memory.regions()])

    def notified(self, queue: Queue, times: int = 1) -> None:
        """Process an available buffer notification (virtio 2.3) that came `times` times."""
        del times  # a notification says no more than that there may be something to do
        queue.kicked = True
        self.run(queue)

    def may_run(self, queue: Queue) -> bool:
        """Return whether a virtqueue is to be processed once the driver has notified it."""
        broken = self.status & DeviceStatus.NEEDS_RESET
        return bool(queue.enabled and not broken and self._transport.serves(queue))

    def run(self, queue: Queue) -> None:
        """Process a virtqueue that the driver has notified, if it may run."""
        if not (queue.kicked and self.may_run(queue)):
            return
        try:
            if queue.ring is None:
                queue.start(self.memory, lambda error: self.broken(queue, error))
            queue.run()
        except BrokenError as error:
            self.broken(queue, error)

    def run_all(self) -> None:
        """Process every virtqueue that was notified and may run."""
        for queue in self.queues:
            self.run(queue)

    def broken(self, queue: Queue, error: BrokenError) -> None:
        """Set DEVICE_NEEDS_RESET and announce it (virtio 2.1.2)."""
        print(f"the device needs a reset: {error}", file=sys.stderr, flush=True)
        if self.observer:
            self.observer("broken", text=str(error))
        self.status |= DeviceStatus.NEEDS_RESET
        self._transport.announce_needs_reset(queue)

    def stop(self, queue: Queue) -> None:
        """Stop a virtqueue; a ring that is broken is left as it is."""
        with suppress(BrokenError):
            queue.stop()
