# Derived from Haiku's virtio_block driver:
# Copyright 2013, Jérôme Duval, korli@users.berlios.de.
# Distributed under the terms of the MIT License.
"""A disk: start of its device, do_io, flush, and changes of its configuration."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass

from harness.driver.errors import (
    BadArgumentError,
    DeviceTimeoutError,
    DriverError,
    FeaturesRefusedError,
    NoDeviceError,
)
from harness.driver.interface import REQUEST_TIMEOUT, Buffer, Driver, Used
from harness.haiku.command import Command, CommandBuffer
from harness.haiku.constants import B_PAGE_SIZE, StatusT
from harness.haiku.dma import DMAResource, DMARestrictions
from harness.haiku.features import feature_names, wanted_features
from harness.haiku.geometry import Media
from harness.haiku.request import IOOperation, IOVec
from harness.haiku.scheduler import IOScheduler
from harness.virtio.blk import (
    REQUEST_HEADER,
    SECTOR,
    STATUS_UNWRITTEN,
    BlockConfig,
    RequestType,
    Status,
)
from harness.virtio.device import DeviceStatus
from harness.virtio.features import Feature

log = logging.getLogger("virtio_block")

IOPRIO = 1
"""Value that Haiku's driver writes to the second header field (reserved since virtio 1.0)."""

_STATUS_OF_ACK: dict[int, StatusT] = {Status.OK: StatusT.B_OK, Status.UNSUPP: StatusT.ENOTSUP}
"""Status for an ack of the device; any other ack is EIO."""

_STATUS_OF_ERROR: dict[type[DriverError], StatusT] = {
    BadArgumentError: StatusT.B_NO_MEMORY,
    DeviceTimeoutError: StatusT.B_TIMED_OUT,
    FeaturesRefusedError: StatusT.B_BAD_VALUE,
    NoDeviceError: StatusT.B_DEVICE_NOT_FOUND,
}


@dataclass
class Statistics:
    """Counters since the device was started; `bytes_*` count completed operations only."""

    reads: int = 0
    writes: int = 0
    flushes: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    errors: int = 0
    timeouts: int = 0
    late_completions: int = 0
    config_changes: int = 0


class DriverInfo:
    """A disk that is driven through a `Driver` (virtio_block_driver_info).

    `timeout` (seconds) limits an operation; it can be set at any time. Methods
    return a status and do not raise for faults of a device.

    A lock protects the `Driver`, which is not thread-safe. A method that finds
    it taken does not use the device: it returns B_BUSY, or what is known.
    """

    def __init__(self, driver: Driver, timeout: float = REQUEST_TIMEOUT) -> None:
        self.driver = driver
        self.timeout = timeout
        self.lock = threading.RLock()
        self.initialized = False
        self._status_lock = threading.Lock()
        self._clear()

    def _clear(self) -> None:
        self.features = 0
        self.media = Media(0, SECTOR, SECTOR)
        self.media_status = StatusT.B_OK
        self.statistics = Statistics()
        self._changes = 0

    # --- start and stop of the device

    def init_device(self) -> StatusT:
        """Negotiate, read the configuration, set up queue 0, set DRIVER_OK (virtio 3.1.1).

        Returns B_BUSY if the device is started already. After any other error the
        device is reset and marked FAILED, and all resources are released:
        B_BAD_VALUE if it refuses the features or shows an impossible block size,
        B_NO_MEMORY, B_TIMED_OUT, B_DEVICE_NOT_FOUND.
        """
        with self.lock:
            if self.initialized:
                return StatusT.B_BUSY
            self._clear()
            try:
                status = self._bring_up()
            except DriverError as error:
                log.error("initialization failed: %s", error)
                status = _STATUS_OF_ERROR.get(type(error), StatusT.B_ERROR)
            if status is StatusT.B_OK:
                self.initialized = True
            else:
                self._give_up()
            return status

    def _bring_up(self) -> StatusT:
        driver = self.driver
        trial = driver.negotiate()
        self.features = wanted_features(trial.offered, trial.accepted)
        agreed = driver.negotiate(self.features)
        log.info("negotiated features: %s", ", ".join(feature_names(self.features)))
        self._queue_size = driver.queue_setup(0).size
        # Haiku's init_driver allocates this page. Here every negotiation begins with a reset,
        # which frees all device-visible memory.
        self.commands = CommandBuffer(driver.alloc(B_PAGE_SIZE, B_PAGE_SIZE))
        self._changes = len(driver.config_changes())
        config = driver.config()
        try:
            self.media = Media.from_config(config)
        except ValueError as error:
            log.error("%s", error)
            return StatusT.B_BAD_VALUE
        self.dma_resource = DMAResource(driver, self._restrictions(config), self.media.block_size)
        self.io_scheduler = IOScheduler(
            self.dma_resource, self.do_io, self._service, self.lock, lambda: self.timeout
        )
        driver.set_status(agreed.status | DeviceStatus.DRIVER_OK)
        return StatusT.B_OK

    def _give_up(self) -> None:
        try:
            self.driver.reset()
            self.driver.set_status(DeviceStatus.FAILED)
        except DriverError as error:
            log.error("reset failed: %s", error)

    def uninit_device(self) -> None:
        """End all I/O and reset the device, which then does not access our memory any more.

        Waiting requests get B_CANCELED; the current operation is awaited. Raises
        DriverError if the reset of the device does not end.
        """
        if not self.initialized:
            return
        self.io_scheduler.terminate()
        with self.lock:
            self.initialized = False
            self.driver.reset()

    # --- configuration

    def service(self) -> None:
        """Handle configuration changes and late completions, unless I/O is in progress.

        I/O handles them itself, before each operation.
        """
        if not self.lock.acquire(blocking=False):
            return
        try:
            if self.initialized:
                self._service()
        finally:
            self.lock.release()

    def _service(self) -> None:
        try:
            if self.commands.in_flight:
                self._take_used(self.driver.queue_poll(0, count=0))
            self._follow_config()
        except DriverError as error:
            # The known configuration stays valid; the next call tries again.
            log.error("cannot follow the configuration: %s", error)

    def _follow_config(self) -> None:
        """Run the config callback once for all changes since the last call."""
        changes = len(self.driver.config_changes())
        if changes == self._changes:
            return
        changed = self.set_capacity(self.driver.config())
        self.statistics.config_changes += changes - self._changes
        self._changes = changes
        if changed:
            with self._status_lock:
                self.media_status = StatusT.B_DEV_MEDIA_CHANGED

    def set_capacity(self, config: BlockConfig) -> bool:
        """Use this configuration from now on; return True if capacity or block sizes changed.

        A configuration with an impossible block size is ignored.
        """
        try:
            media = Media.from_config(config)
        except ValueError as error:
            log.error("%s: ignored", error)
            return False
        self.dma_resource.update(self._restrictions(config), media.block_size)
        changed = media != self.media
        self.media = media
        return changed

    def _restrictions(self, config: BlockConfig) -> DMARestrictions:
        return DMARestrictions.from_config(config, self._queue_size)

    def take_media_status(self) -> StatusT:
        """Return B_DEV_MEDIA_CHANGED if the disk changed since the last call, else B_OK."""
        with self._status_lock:
            status, self.media_status = self.media_status, StatusT.B_OK
        return status

    @property
    def read_only(self) -> bool:
        """True if the device is read-only (VIRTIO_BLK_F_RO)."""
        return bool(self.features & Feature.BLK_RO.mask)

    # --- commands

    def do_io(self, operation: IOOperation) -> StatusT:
        """Execute one phase of an operation and report it to the scheduler.

        Returns B_BUSY, with nothing done, while another thread uses the device, and
        B_NO_INIT while the device is stopped. Returns EIO after `timeout`, for an
        operation beyond the end of the disk (which no driver may send, virtio
        5.2.6.1), and for any status of the device except OK and UNSUPP; ENOTSUP for
        UNSUPP.
        """
        if not self.lock.acquire(blocking=False):
            return StatusT.B_BUSY
        try:
            if not self.initialized:
                return StatusT.B_NO_INIT
            if operation.offset + operation.length > self.media.size:
                status = StatusT.EIO
            else:
                kind = RequestType.OUT if operation.is_write else RequestType.IN
                status = self._execute(kind, operation.offset // SECTOR, operation)
            done = operation.length if status is StatusT.B_OK else 0
            if operation.is_write:
                self.statistics.writes += 1
                self.statistics.bytes_written += done
            else:
                self.statistics.reads += 1
                self.statistics.bytes_read += done
            self.io_scheduler.operation_completed(operation, status, done)
            return status
        finally:
            self.lock.release()

    def synchronize_cache(self) -> StatusT:
        """Flush the device's cache: earlier writes are then persistent.

        Returns ENOTSUP if the device offers no flush, B_BUSY if the device is in use
        for all of `timeout`; otherwise as `do_io`.
        """
        if not self.features & Feature.BLK_FLUSH.mask:
            return StatusT.ENOTSUP
        if not self.lock.acquire(timeout=self.timeout):
            return StatusT.B_BUSY
        try:
            if not self.initialized:
                return StatusT.B_NO_INIT
            self.statistics.flushes += 1
            return self._execute(RequestType.FLUSH, 0, None)
        finally:
            self.lock.release()

    def _execute(self, kind: RequestType, sector: int, operation: IOOperation | None) -> StatusT:
        """Send a command and wait for it; return the status that Haiku's driver has for its ack."""
        deadline = time.monotonic() + self.timeout
        status = StatusT.EIO
        try:
            command = self._prepare(kind, sector, operation, deadline)
            if command is not None and self._carry_out(command, deadline):
                ack = self.driver.memory_read(command.ack, 1)[0]
                self.commands.give_back(command)
                status = _STATUS_OF_ACK.get(ack, StatusT.EIO)
        except DriverError as error:
            log.error("%s of sector %d failed: %s", kind.name, sector, error)
        if status is not StatusT.B_OK:
            self.statistics.errors += 1
        return status

    def _prepare(
        self, kind: RequestType, sector: int, operation: IOOperation | None, deadline: float
    ) -> Command | None:
        """Write a command's chain: header, data, ack.

        Waits for slots and descriptors of abandoned commands; returns None if they
        are not released before the deadline.
        """
        vecs: list[IOVec] = operation.vecs if operation is not None else []
        indirect = bool(self.features & Feature.INDIRECT_DESC.mask)
        while True:
            command = self.commands.take(operation)
            if command is not None:
                header = REQUEST_HEADER.pack(kind, IOPRIO, sector)
                self.driver.memory_write(command.address, header + bytes([STATUS_UNWRITTEN]))
                buffers = [
                    Buffer(command.address, len(header)),
                    *(Buffer(vec.base, vec.length, kind is RequestType.IN) for vec in vecs),
                    Buffer(command.ack, 1, writable=True),
                ]
                try:
                    command.head = self.driver.queue_add(0, buffers, indirect)
                    return command
                except BadArgumentError:
                    self.commands.give_back(command)
                    if not self.commands.in_flight:
                        raise
            if not self._reap(deadline):
                return None

    def _carry_out(self, command: Command, deadline: float) -> bool:
        """Return True if the device uses a command in time, else keep the command's resources."""
        self.commands.in_flight[command.head] = command
        try:
            self.driver.queue_publish(0, [command.head])
            self.driver.queue_kick(0)
            while not command.used and self._reap(deadline):
                pass
        finally:
            if not command.used:
                self.statistics.timeouts += 1
                command.abandoned = True
                if command.operation is not None:
                    command.operation.in_device = True
        return command.used

    def _reap(self, deadline: float) -> bool:
        """Wait until the device uses a chain; return False if the deadline passes first."""
        left = max(0.0, deadline - time.monotonic())
        try:
            self._take_used(self.driver.queue_poll(0, 1, left))
        except DeviceTimeoutError:
            return False
        return True

    def _take_used(self, chains: list[Used]) -> None:
        for used in chains:
            command = self.commands.in_flight.pop(used.id, None)
            if command is None:
                log.error("the device used chain %d, which it was not given", used.id)
                continue
            command.used = True
            if command.abandoned:
                self.statistics.late_completions += 1
                self.commands.give_back(command)
                if command.operation is not None:
                    command.operation.in_device = False
                    self.dma_resource.recycle(command.operation)

    def in_device(self) -> list[IOOperation]:
        """Return operations that timed out, and whose memory the device may still use.

        The owner of a request's scatter list must keep its memory until the
        operations of the request are not in this list any more, or `uninit_device`
        has returned. Bounce buffers are kept by this driver.
        """
        commands = self.commands.abandoned if self.initialized else []
        return [command.operation for command in commands if command.operation is not None]
