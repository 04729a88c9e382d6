"""The lower half of the driver: registers, memory, virtqueues and interrupts of a device."""

from __future__ import annotations

import os
import platform
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

from harness.driver.errors import BadArgumentError, DeviceTimeoutError, DriverError
from harness.driver.interface import (
    REQUEST_TIMEOUT,
    Buffer,
    Capability,
    Driver,
    Interrupts,
    QueueLayout,
    QueueState,
    Source,
    TransportKind,
    Used,
)
from harness.driver.trace import cut
from harness.driver.transport.base import Transport
from harness.driver.virtqueue.base import Virtqueue
from harness.driver.virtqueue.packed import PackedQueue
from harness.driver.virtqueue.split import SplitQueue
from harness.virtio.device import DeviceStatus
from harness.virtio.features import Feature, names
from harness.virtio.pci import ISR_CONFIG, ISR_QUEUE
from harness.virtio.shared import fence, load, store

RESET_LOOK = 0.1
"""Seconds between two reads of device status while a wait looks for DEVICE_NEEDS_RESET."""

RESET_GRACE = 0.5
"""Seconds that completions are still awaited after the device has set DEVICE_NEEDS_RESET."""

SPINS = 60
"""Polls of the used ring before the first wait for an interrupt. A quick device needs no more."""

FIRST_WAIT, LONGEST_WAIT = 0.0001, 0.002
"""Seconds of the first and of the longest wait for an interrupt between two polls.

Each wait is twice as long as the one before it.
"""


class DeviceDriver(Driver):
    """The methods of `Driver` below whole requests, on a transport. Not thread-safe."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.memory = transport.memory
        self.trace = transport.trace
        self.queues: dict[int, Virtqueue] = {}
        self._loose: defaultdict[int, list[Used]] = defaultdict(list)
        self._interrupts = Interrupts(queues=transport.signals_by_queue())
        self._servicing = True
        self._suppressing = False
        self._notification_data = False
        self._closed = False

    # --- the device as it is

    def description(self) -> dict[str, Any]:
        return {
            **self.transport.description(),
            "translated": self.transport.access_platform,
            "kernel": platform.release(),
            "python": platform.python_version(),
            "pid": os.getpid(),
        }

    def transport_kind(self) -> TransportKind:
        return self.transport.kind

    def owns_pci_configuration(self) -> bool:
        return self.transport.owns_pci_configuration

    def state(self) -> dict[str, Any]:
        status = self.status()
        return {
            "status": f"{status:#04x} {DeviceStatus(status).name or 'nothing set'}",
            "offered": names(self.offered()),
            "accepted": names(self.accepted()),
            "queues": [asdict(queue.state()) for queue in self.queues.values()],
            "interrupts": asdict(self._interrupts),
            "config_generation": self.config_generation(),
        }

    def events(self) -> list[tuple[Any, ...]]:
        return self.trace.events()

    def _wait_state(self) -> dict[str, Any]:
        """Return the state that a timeout error shows, to tell which side stopped."""
        shown: dict[str, Any] = {"status": f"{self.status():#04x}"}
        for queue in self.queues.values():
            state = queue.state()
            shown[f"queue{queue.index}"] = (
                f"avail_idx={state.avail_idx} used_idx={state.used_idx}"
                f" last_used={state.last_used} in_flight={state.in_flight}"
            )
        shown["interrupts"] = asdict(self._interrupts)
        return shown

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            self.reset()
        except DriverError:
            # A device that cannot be reset is released nevertheless: its next user resets it.
            pass
        finally:
            self.transport.close()

    # --- registers

    def status(self) -> int:
        return self.transport.status()

    def set_status(self, value: int) -> None:
        self.transport.set_status(value)

    def reset(self, timeout: float = 5.0) -> None:
        self.set_status(0)
        self._wait(lambda: self.status() == 0, timeout, "device status to read 0 after a reset")
        # The reset removed the cause of the interrupt, so no later read of ISR unmasks the line.
        self.transport.unmask_interrupts()
        self.queues.clear()
        self._loose.clear()
        self.memory.free_all()

    def offered(self) -> int:
        return self.transport.offered()

    def accept(self, features: int) -> None:
        self.transport.accept(features)

    def accepted(self) -> int:
        return self.transport.accepted()

    def register_read(self, name: str, width: int | None = None) -> int:
        return self.transport.register_read(name, width)

    def register_write(self, name: str, value: int, width: int | None = None) -> None:
        self.transport.register_write(name, value, width)

    def config_read(self, offset: int, length: int) -> bytes:
        return self.transport.config_read(offset, length)

    def config_write(self, offset: int, data: bytes) -> None:
        self.transport.config_write(offset, data)

    def config_size(self) -> int:
        return self.transport.config_size()

    def config_generation(self) -> int:
        return self.transport.config_generation()

    def isr(self) -> int:
        value = self.transport.isr()
        self.transport.unmask_interrupts()
        return value

    def pci_read(self, offset: int, length: int) -> bytes:
        return self.transport.pci_read(offset, length)

    def pci_write(self, offset: int, data: bytes) -> None:
        self.transport.pci_write(offset, data)

    def bar_read(self, bar: int, offset: int, width: int) -> int:
        return self.transport.bar_read(bar, offset, width)

    def bar_write(self, bar: int, offset: int, width: int, value: int) -> None:
        self.transport.bar_write(bar, offset, width, value)

    def capabilities(self) -> list[Capability]:
        return self.transport.capabilities()

    # --- memory

    def alloc(self, length: int, align: int = 16) -> int:
        address = self.memory.alloc(length, align)
        self.trace("zeroed", address, length)
        return address

    def allocate_from(self, address: int | None) -> None:
        self.memory.begin_at(address)

    def memory_read(self, address: int, length: int) -> bytes:
        data = load(self.memory.view(address, length))
        self.trace.access("loaded", address, length, cut(data))
        return data

    def memory_write(self, address: int, data: bytes) -> None:
        self.trace("stored", address, len(data), cut(data))
        store(self.memory.view(address, len(data)), data)

    # --- virtqueues

    def queue_setup(
        self,
        index: int,
        size: int | None = None,
        vector: int | None = None,
        least_aligned: bool = False,
    ) -> QueueLayout:
        largest = self.transport.queue_max_size(index)
        if not largest:
            raise BadArgumentError(f"the device has no queue {index}")
        size = largest if size is None else size
        accepted = self.accepted()
        in_order = bool(accepted & Feature.IN_ORDER.mask)
        event_idx = bool(accepted & Feature.EVENT_IDX.mask)
        queue: Virtqueue
        if self.transport.legacy:
            if size != largest:
                raise BadArgumentError(f"a legacy virtqueue must have the device's size, {largest}")
            if least_aligned:
                raise BadArgumentError("a legacy virtqueue has one alignment, that of its device")
            align = self.transport.queue_align
            queue = SplitQueue(self.memory, index, size, align, event_idx=event_idx)
        elif accepted & Feature.RING_PACKED.mask:
            queue = PackedQueue(self.memory, index, size, in_order, event_idx, least_aligned)
        else:
            queue = SplitQueue(self.memory, index, size, None, in_order, event_idx, least_aligned)
        self.transport.queue_vector = vector
        packed = isinstance(queue, PackedQueue)
        layout = queue.layout
        self.trace("ring", index, size, layout.desc, layout.driver, layout.device, packed)
        self.transport.queue_enable(layout)
        self._notification_data = bool(accepted & Feature.NOTIFICATION_DATA.mask)
        self.queues[index] = queue
        return queue.layout

    def _queue(self, index: int) -> Virtqueue:
        try:
            return self.queues[index]
        except KeyError:
            raise BadArgumentError(f"queue {index} was not set up") from None

    def queue_add(self, index: int, buffers: Sequence[Buffer], indirect: bool = False) -> int:
        queue = self._queue(index)
        head = queue.add(buffers, indirect)
        self.trace("chain", index, head, *queue.described(head, queue.chain(head)))
        return head

    def queue_publish(self, index: int, heads: Sequence[int]) -> None:
        queue = self._queue(index)
        queue.publish(heads)
        self.trace("available", index, list(heads), queue.next_available())

    def queue_kick(self, index: int) -> None:
        with_data = self._notification_data and index in self.queues
        self.transport.notify(index, self.queues[index].next_available() if with_data else None)

    def suppress_notifications(self, enabled: bool) -> None:
        self._suppressing = enabled
        for queue in self.queues.values():
            if queue.event_idx and enabled:
                queue.set_interrupts_enabled(True)

    def _notify(self, queue: Virtqueue) -> None:
        """Notify the device of published chains, unless it suppresses notifications."""
        if not self._suppressing or queue.needs_notification():
            self.queue_kick(queue.index)

    def queue_poll(
        self, index: int, count: int = 1, timeout: float = REQUEST_TIMEOUT
    ) -> list[Used]:
        queue, loose = self._queue(index), self._loose[index]

        def enough() -> bool:
            self._reap(queue)
            return len(loose) >= count

        self._wait(enough, timeout, f"{count} used chains on queue {index}", served=True)
        taken = list(loose)
        loose.clear()
        return taken

    def _reap(self, queue: Virtqueue) -> None:
        """Take used chains. `_claim` may take a chain; the others wait for `queue_poll`."""
        while taken := queue.take_used():
            for used in taken:
                self.trace("used", queue.index, used.id, used.length)
                if not self._claim(queue, used):
                    queue.release(used.id)
                    self._loose[queue.index].append(used)
            if not (self._suppressing and queue.event_idx):
                return
            queue.set_interrupts_enabled(True)
            fence()  # no interrupt comes for chains used before the device read this: poll again

    def _claim(self, queue: Virtqueue, used: Used) -> bool:
        """Return True if a used chain is not one of `queue_add`; for subclasses."""
        del queue, used
        return False

    def queue_reset(self, index: int, timeout: float = 5.0) -> None:
        self._queue(index)
        self.transport.queue_reset(index)
        self._wait(
            lambda: not self.transport.queue_resetting(index), timeout, f"queue {index} to be reset"
        )
        del self.queues[index]
        self._loose.pop(index, None)

    def queue_state(self, index: int) -> QueueState:
        return self._queue(index).state()

    # --- interrupts

    def fileno(self) -> int | None:
        """Return a descriptor that is readable while an interrupt is pending, None without one."""
        return self.transport.fileno() if self._servicing else None

    def service(self, timeout: float = 0.0) -> None:
        """Take an interrupt that is raised now or within `timeout` seconds, and handle it."""
        if self.transport.vectors:
            self._take_messages(timeout)
            return
        raised = self.transport.take_interrupts(timeout)
        if not raised:
            return
        self._interrupts = replace(
            self._interrupts,
            raised=self._interrupts.raised + raised,
            queues=self.transport.signals_by_queue(),
        )
        if not self._servicing:
            return
        isr = self.isr()
        self._interrupts = replace(
            self._interrupts,
            queue=self._interrupts.queue + bool(isr & ISR_QUEUE),
            config=self._interrupts.config + bool(isr & ISR_CONFIG),
            unexplained=self._interrupts.unexplained + (isr == 0),
        )
        if isr & ISR_CONFIG:
            self._config_changed()

    def _take_messages(self, timeout: float) -> None:
        """Take MSI-X messages. The vector tells their cause, so ISR status is not read."""
        messages = self.transport.take_messages(timeout)
        if not messages:
            return
        counts = self._interrupts
        config = messages[0]
        total = messages.total()
        self._interrupts = replace(
            counts,
            queue=counts.queue + (total if self.transport.vectors == 1 else total - config),
            config=counts.config + config,
            raised=counts.raised + total,
            vectors=tuple(count + messages[vector] for vector, count in enumerate(counts.vectors)),
        )
        if config and self._servicing:
            self._config_changed()

    def _config_changed(self) -> None:
        """Handle a configuration change. Does nothing here; for subclasses."""

    def interrupts(self) -> Interrupts:
        self.service()
        return self._interrupts

    def wait_interrupt(self, source: Source, above: int, timeout: float = 5.0) -> Interrupts:
        def seen() -> bool:
            count: int = getattr(self._interrupts, source)
            return count > above

        self._wait(seen, timeout, f"more than {above} interrupts ({source})")
        return self._interrupts

    def use_msix(self, vectors: int) -> None:
        if self.queues:
            raise BadArgumentError("cannot switch MSI-X while a queue is set up: reset first")
        self.transport.use_msix(vectors)
        self._interrupts = replace(self._interrupts, vectors=(0,) * vectors)

    def service_interrupts(self, enabled: bool) -> None:
        self._servicing = enabled

    def _wait(
        self, done: Callable[[], bool], timeout: float, what: str, served: bool = False
    ) -> None:
        """Poll until `done` returns True, and service interrupts in between.

        Raises DeviceTimeoutError, with a message about `what`, after `timeout`
        seconds. With `served` (`done` waits for completions), the wait ends
        RESET_GRACE seconds after the device sets DEVICE_NEEDS_RESET (virtio 2.1.2).
        """
        self.trace.poll(True)
        try:
            self._poll(done, timeout, what, served)
        except DeviceTimeoutError as error:
            self.trace("timeout", error.message)
            raise
        finally:
            self.trace.poll(False)

    def _poll(self, done: Callable[[], bool], timeout: float, what: str, served: bool) -> None:
        begun = time.monotonic()
        deadline, look = begun + timeout, begun + RESET_LOOK
        message = f"waited {timeout:g} s for {what}"
        lost, wait = False, FIRST_WAIT
        for _ in range(SPINS):
            if done():
                return
            os.sched_yield()  # the device may need this processor
        while True:
            self.service(wait)
            if done():
                return
            wait = min(2 * wait, LONGEST_WAIT)
            now = time.monotonic()
            if now > deadline:
                raise DeviceTimeoutError(message, self._wait_state())
            if served and not lost and now > look:
                look = now + RESET_LOOK
                if lost := self._needs_reset():
                    message = f"waited for {what}, but the device needs a reset"
                    deadline = min(deadline, now + RESET_GRACE)

    def _needs_reset(self) -> bool:
        """Return True if the device shows DEVICE_NEEDS_RESET, never on a legacy interface."""
        return not self.transport.legacy and bool(self.status() & DeviceStatus.NEEDS_RESET)
