"""View of a disk's bytes through the device itself, where the backing store is out of reach.

Tests look at the backing store to see what a request did, or to prepare data. A second request
shows the same, unless the test is about the difference between the device and its storage.
"""

from __future__ import annotations

from collections.abc import Callable

from harness.diskspec import SECTOR
from harness.driver.block import BlockDriver
from harness.driver.errors import BadArgumentError, DriverError
from harness.driver.interface import Completion, Driver, Request
from harness.targets.base import LacksError, TargetError
from harness.virtio.blk import RequestType, Status
from harness.virtio.device import DeviceStatus
from harness.virtio.features import Feature

CHUNK = 64
"""Sectors of 512 bytes in a request of a view; less where SIZE_MAX or the disk is smaller."""

RUNNING = DeviceStatus.DRIVER_OK


def unnamed(owner: str) -> str:
    """Return why the backing store of a device of the user is out of reach."""
    return f"the targets file names no `backing` for {owner}"


class ThroughDevice:
    """A disk's bytes, read and written by requests on the device's first virtqueue.

    A device that has not been initialised is started for each look, and reset after it. One that
    runs, but has used no buffer yet, is initialised again after the look, so that the test finds
    the virtqueues as it made them. A device in another state cannot be looked through: that is a
    LacksError, as are questions that only the host can answer.
    """

    def __init__(self, driver: Driver, missing: str) -> None:
        """`missing` says in words why the backing store is out of reach."""
        assert isinstance(driver, BlockDriver)  # such a device is driven from this process
        self._driver = driver
        self._missing = missing

    @property
    def size(self) -> int:
        """Raise LacksError: the device shows its capacity, which may be another."""
        raise LacksError(self._missing)

    @property
    def allocated(self) -> int:
        """Raise LacksError: no device shows what is allocated."""
        raise LacksError(self._missing)

    def read(self, sector: int, count: int) -> bytes:
        """Read `count` sectors. TargetError if the device fails the request."""
        data = b""
        requests = []
        for start in range(sector, sector + count, CHUNK):
            length = min(CHUNK, sector + count - start) * SECTOR
            requests.append(Request(RequestType.IN, start, receive=length))
        for completion in self._send(requests):
            data += completion
        return data

    def write(self, sector: int, data: bytes) -> None:
        """Write whole sectors. TargetError if the device fails the request."""
        step = CHUNK * SECTOR
        self._send(
            [
                Request(RequestType.OUT, sector + start // SECTOR, data[start : start + step])
                for start in range(0, len(data), step)
            ]
        )

    def _send(self, requests: list[Request]) -> list[bytes]:
        driver = self._driver
        status = driver.status()
        running = status & RUNNING
        if status and (not running or status & ~_USUAL or 0 not in driver.queues):
            raise LacksError(f"the disk cannot be seen through the device at status {status:#04x}")
        if running and any(driver.queue_state(index).in_flight for index in driver.queues):
            raise LacksError("the disk cannot be seen through the device with requests under way")
        unused = running and all(
            (state.avail_idx, state.used_idx, state.last_used) == (0, 0, 0)
            for state in map(driver.queue_state, driver.queues)
        )
        try:
            if unused:
                completions = self._apart(requests, self._again())
            elif not running:
                completions = self._apart(requests, driver.reset)
            else:
                completions = [driver.request(request) for request in requests]
        except BadArgumentError as error:
            raise LacksError(f"the disk cannot be seen through the device: {error}") from None
        except DriverError as error:
            raise TargetError(f"a look through the device failed: {error}") from None
        for request, completion in zip(requests, completions, strict=True):
            if completion.status != Status.OK:
                raise TargetError(
                    f"a look through the device at sector {request.sector} ended with status"
                    f" {completion.status}"
                )
        return [completion.data for completion in completions]

    def _apart(self, requests: list[Request], after: Callable[[], None]) -> list[Completion]:
        """Start the device for requests, and call `after` when they are done."""
        self._driver.start(self._driver.offered() & _NEEDED)
        try:
            return [self._driver.request(request) for request in requests]
        finally:
            after()

    def _again(self) -> Callable[[], None]:
        """Return a function that initialises the device as it is now."""
        driver = self._driver
        features, status = driver.accepted(), driver.status()
        sizes = {index: driver.queue_state(index).size for index in driver.queues}
        allocations = driver.memory.allocations()

        def initialise() -> None:
            driver.negotiate(features)
            for index, size in sizes.items():
                driver.queue_setup(index, size)
            driver.set_status(status)
            if driver.memory.allocations() != allocations:
                raise LacksError("the disk cannot be seen through the device with memory in use")

        return initialise


_USUAL = (
    DeviceStatus.ACKNOWLEDGE
    | DeviceStatus.DRIVER
    | DeviceStatus.FEATURES_OK
    | DeviceStatus.DRIVER_OK
)

_NEEDED = (
    Feature.VERSION_1.mask
    | Feature.ACCESS_PLATFORM.mask
    | Feature.ORDER_PLATFORM.mask
    | Feature.BLK_ZONED.mask
    | Feature.BLK_RO.mask
    | Feature.BLK_BLK_SIZE.mask
)
"""Features of a start for a look: as few as a device may ask for."""
