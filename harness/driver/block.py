"""The virtio-blk driver: negotiation, configuration, requests, resizes (virtio 3.1, 5.2)."""

from __future__ import annotations

import os
import time
from collections import Counter, deque
from collections.abc import Sequence
from typing import Any

from harness.driver.device import FIRST_WAIT, DeviceDriver
from harness.driver.errors import (
    BadArgumentError,
    DeviceTimeoutError,
    DriverError,
    FeaturesRefusedError,
)
from harness.driver.flight import Flight, Sent
from harness.driver.interface import (
    REQUEST_TIMEOUT,
    Completion,
    ConfigChange,
    Negotiation,
    Repetition,
    Request,
    Used,
)
from harness.driver.trace import cut
from harness.driver.transport.base import Transport
from harness.driver.virtqueue.base import Virtqueue
from harness.virtio.blk import (
    CONFIG_FIELD,
    CONFIG_FIELDS,
    STATUS_UNWRITTEN,
    BlockConfig,
    ZonedModel,
)
from harness.virtio.device import DeviceStatus
from harness.virtio.features import Feature, mask, names

POLLS = 200
"""Polls of the used ring without a pause and a look at the clock, for each repeated request."""

SUPPORTED = mask(
    Feature.BLK_SIZE_MAX,
    Feature.BLK_SEG_MAX,
    Feature.BLK_GEOMETRY,
    Feature.BLK_RO,
    Feature.BLK_BLK_SIZE,
    Feature.BLK_FLUSH,
    Feature.BLK_TOPOLOGY,
    Feature.BLK_CONFIG_WCE,
    Feature.BLK_MQ,
    Feature.BLK_DISCARD,
    Feature.BLK_WRITE_ZEROES,
    Feature.BLK_LIFETIME,
    Feature.BLK_SECURE_ERASE,
    Feature.BLK_ZONED,
    Feature.INDIRECT_DESC,
    Feature.VERSION_1,
    Feature.IN_ORDER,
    Feature.ORDER_PLATFORM,
    Feature.NOTIFICATION_DATA,
    Feature.NOTIF_CONFIG_DATA,
)
"""Features that this driver implements and accepts whenever they are offered."""

REMEMBERED = 64
"""Number of requests, the last ones, whose properties the driver keeps for reports."""

CONFIG_TRIES = 100
"""Tries to read the configuration space without a change meanwhile, before a DriverError."""


class BlockDriver(DeviceDriver):
    """A complete virtio-blk driver. It polls every virtqueue, and also counts interrupts."""

    def __init__(self, transport: Transport) -> None:
        super().__init__(transport)
        self._features = 0
        self._flights: dict[int, Flight] = {}
        self._by_head: dict[tuple[int, int], int] = {}
        self._next_token = 1
        self._changes: list[ConfigChange] = []
        self.sent: deque[Sent] = deque(maxlen=REMEMBERED)
        self._after_reset = False

    def state(self) -> dict[str, Any]:
        return {
            **super().state(),
            "capacity": self.config().capacity,
            "config_changes": len(self._changes),
            "in_flight": [
                f"token {token}: type {flight.request.type}, sector {flight.request.sector}"
                for token, flight in self._flights.items()
                if flight.completion is None
            ],
            "requests": [sent.plain() for sent in self.sent],
        }

    def reset(self, timeout: float = 5.0) -> None:
        self._after_reset = bool(self.sent)
        super().reset(timeout)
        self._features = 0
        self._flights.clear()
        self._by_head.clear()

    def queue_reset(self, index: int, timeout: float = 5.0) -> None:
        super().queue_reset(index, timeout)
        for key in [key for key in self._by_head if key[0] == index]:
            del self._flights[self._by_head.pop(key)]

    # --- initialisation

    def negotiate(self, features: int | None = None) -> Negotiation:
        self.reset()
        self.set_status(DeviceStatus.ACKNOWLEDGE)
        self.set_status(DeviceStatus.ACKNOWLEDGE | DeviceStatus.DRIVER)
        offered = self.offered()
        if features is None:
            supported = SUPPORTED | (
                Feature.ACCESS_PLATFORM.mask if self.transport.access_platform else 0
            )
            if self.transport.legacy:
                # ZONED cannot be negotiated without FEATURES_OK (virtio 5.2.5.2).
                supported &= ~Feature.BLK_ZONED.mask
                supported |= Feature.ANY_LAYOUT.mask  # a MUST (virtio 6.3)
            wanted = offered & supported
            if wanted & Feature.BLK_ZONED.mask and self._model() == ZonedModel.HOST_MANAGED:
                # DISCARD is not for host-managed disks, even if offered (virtio 5.2.5.1).
                wanted &= ~Feature.BLK_DISCARD.mask
        else:
            wanted = features
        self.accept(wanted)
        if not self.transport.legacy:
            self.set_status(self.status() | DeviceStatus.FEATURES_OK)
        status = self.status()
        if not self.transport.legacy and not status & DeviceStatus.FEATURES_OK:
            raise FeaturesRefusedError(
                f"the device refuses the features {names(wanted)}",
                {"offered": names(offered), "status": f"{status:#04x}"},
            )
        self._features = wanted
        self.transport.map_config_vector()
        return Negotiation(offered, wanted, status)

    def _model(self) -> int:
        """Return the zoned model, which may be read to choose features (virtio 3.1.1, step 4)."""
        field = CONFIG_FIELD["model"]
        return self.config_read(field.offset, field.size)[0]

    def start(
        self, features: int | None = None, queues: int = 1, queue_size: int | None = None
    ) -> Negotiation:
        agreed = self.negotiate(features)
        for index in range(queues):
            self.queue_setup(index, queue_size)
        self.set_status(agreed.status | DeviceStatus.DRIVER_OK)
        return Negotiation(agreed.offered, agreed.accepted, self.status())

    # --- configuration space

    def config(self) -> BlockConfig:
        return self._snapshot()[0]

    def _snapshot(self) -> tuple[BlockConfig, int]:
        """Return the valid fields, and the generation that all of them belong to (virtio 2.5.3)."""
        valid = [
            field
            for field in CONFIG_FIELDS
            if field.name == "capacity"
            or (field.feature is not None and self._features & field.feature.mask)
        ]
        size = min(valid[-1].offset + valid[-1].size, self.config_size())
        places = [(field.offset, field.size) for field in valid]
        places = [(offset, length) for offset, length in places if offset + length <= size]
        last = None
        for _ in range(CONFIG_TRIES):
            before = self.config_generation()
            raw = bytearray(size)
            pieces = self.transport.config_pieces(places)
            for (offset, length), piece in zip(places, pieces, strict=True):
                raw[offset : offset + length] = piece
            # A legacy device has no generation: two equal reads are taken instead (virtio 2.5.4).
            whole = last == raw if self.transport.legacy else self.config_generation() == before
            if whole:
                return BlockConfig.parse(bytes(raw), self._features), before
            last = raw
        raise DriverError(f"the config generation changed during each of {CONFIG_TRIES} reads")

    def _config_changed(self) -> None:
        config, generation = self._snapshot()
        self._changes.append(ConfigChange(config.capacity, generation))

    def config_changes(self) -> list[ConfigChange]:
        self.service()
        return list(self._changes)

    def wait_config_change(self, above: int, timeout: float = 5.0) -> list[ConfigChange]:
        self._wait(
            lambda: len(self._changes) > above,
            timeout,
            f"the config-change callback to run more than {above} times",
        )
        return list(self._changes)

    # --- requests

    def request(
        self, request: Request, queue: int = 0, timeout: float = REQUEST_TIMEOUT
    ) -> Completion:
        (token,) = self.submit([request], queue)
        try:
            return self.complete([token], timeout)[0]
        except DeviceTimeoutError:
            # The device may still use its memory: it is freed when used or after a reset.
            self._flights[token].abandoned = True
            raise

    def submit(self, requests: Sequence[Request], queue: int = 0) -> list[int]:
        ring = self._queue(queue)
        prepared: list[Flight] = []
        try:
            for request in requests:
                prepared.append(Flight.prepare(request, self.memory, ring))
        except BadArgumentError:
            for flight in reversed(prepared):
                ring.release(flight.head)
                self.memory.free(flight.block)
            raise
        tokens = list(range(self._next_token, self._next_token + len(prepared)))
        self._next_token += len(prepared)
        packed = bool(self._features & Feature.RING_PACKED.mask)
        for token, flight in zip(tokens, prepared, strict=True):
            self._flights[token] = flight
            self._by_head[queue, flight.head] = token
            flight.record = Sent.of(flight, packed, self._after_reset)
            self.sent.append(flight.record)
            self._show(flight)
        ring.publish(flight.head for flight in prepared)
        self.trace("available", queue, [flight.head for flight in prepared], ring.next_available())
        self._notify(ring)
        return tokens

    def _show(self, flight: Flight) -> None:
        """Record a request in the trace: its memory, its chain, and its properties."""
        trace, ring, request = self.trace, flight.queue, flight.request
        trace("stored", flight.block, len(flight.image), cut(flight.image))
        trace("chain", ring.index, flight.head, *ring.described(flight.head, flight.chain))
        size = len(request.data)
        trace("request", ring.index, request.type, request.sector, size, request.receive)

    def complete(self, tokens: Sequence[int], timeout: float = REQUEST_TIMEOUT) -> list[Completion]:
        unknown = [token for token in tokens if token not in self._flights]
        if unknown:
            raise BadArgumentError(f"no such requests: tokens {unknown}")
        flights = [self._flights[token] for token in tokens]

        def done() -> bool:
            self._reap_all()
            return all(flight.completion is not None for flight in flights)

        self._wait(done, timeout, f"{len(tokens)} requests to complete", served=True)
        for token in tokens:
            self._flights.pop(token, None)
        return [flight.completion for flight in flights if flight.completion is not None]

    def completed(self) -> list[int]:
        self._reap_all()
        return [token for token, flight in self._flights.items() if flight.completion is not None]

    def _reap_all(self) -> None:
        for queue in self.queues.values():
            self._reap(queue)

    def _claim(self, queue: Virtqueue, used: Used) -> bool:
        token = self._by_head.pop((queue.index, used.id), None)
        if token is None:
            return False
        flight = self._flights[token]
        completion = flight.complete(used.length, self.memory)
        self.trace(
            "completed",
            *(queue.index, used.id, completion.status, cut(completion.data)),
            *(flight.status_address, list(completion.damage)),
        )
        if flight.abandoned:
            del self._flights[token]
        return True

    def repeat(
        self,
        request: Request,
        count: int,
        queue: int = 0,
        timeout: float = 60.0,
        interrupts: bool = False,
    ) -> Repetition:
        ring = self._queue(queue)
        flight = Flight.prepare(request, self.memory, ring)
        status = self.memory.view(flight.status_address, 1)
        statuses: Counter[int] = Counter()
        deadline = time.monotonic() + timeout
        ring.set_interrupts_enabled(interrupts)
        begun = time.perf_counter()
        for turn in range(count):
            if turn and interrupts and ring.event_idx:
                ring.set_interrupts_enabled(True)
            status[0] = STATUS_UNWRITTEN
            if turn:
                ring.republish(flight.head)
            else:
                ring.publish((flight.head,))
            self._await_used(ring, flight, deadline, interrupts)
            statuses[status[0]] += 1
        seconds = time.perf_counter() - begun
        ring.set_interrupts_enabled(True)
        ring.release(flight.head)
        self.memory.free(flight.block)
        return Repetition(count, seconds, dict(statuses))

    def _await_used(
        self, ring: Virtqueue, flight: Flight, deadline: float, interrupts: bool
    ) -> None:
        """Notify the device and wait until it has used one chain."""
        self._notify(ring)
        polls = 0
        while not ring.used_pending():
            polls += 1
            if polls < POLLS:
                os.sched_yield()  # the device may need this processor
            else:
                time.sleep(FIRST_WAIT)
            if interrupts:
                self.service()
            if polls >= POLLS and time.monotonic() > deadline:
                raise DeviceTimeoutError("waited for a repeated request", self._wait_state())
        (used,) = ring.take_used()
        if used.id != flight.head:
            raise DriverError(
                f"the device used chain {used.id} where only {flight.head} is available",
                self._wait_state(),
            )
