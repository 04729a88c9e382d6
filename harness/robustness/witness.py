"""A sector with known data that shows whether a device works, before and after resets."""

from __future__ import annotations

import time

from harness.driver.errors import DriverError
from harness.driver.interface import Driver, Request
from harness.virtio.blk import SECTOR, RequestType, Status

PAUSE = 0.3
"""Seconds between two resets of a device that does not work yet."""


class Witness:
    """The data that a sector (512 bytes) of the disk must hold."""

    def __init__(self, driver: Driver, sector: int, data: bytes) -> None:
        self._driver = driver
        self._sector = sector
        self._data = data

    def write(self, queue: int = 0) -> int | None:
        """Write the data on a queue, and return the request's status."""
        request = Request(RequestType.OUT, self._sector, self._data)
        return self._driver.request(request, queue).status

    def check(self, queue: int, timeout: float) -> str:
        """Read the sector on a queue within `timeout` s; return the trouble, "" if there is none.

        DeviceTimeoutError if the read does not complete.
        """
        request = Request(RequestType.IN, self._sector, receive=SECTOR)
        completion = self._driver.request(request, queue, timeout)
        if completion.status != Status.OK:
            return f"a read on queue {queue} ended with status {completion.status}"
        if completion.data != self._data or completion.damage:
            return f"a read on queue {queue} gave other data: {completion.damage}"
        return ""

    def revive(self, queues: int, seconds: float, answers: float, rewrite: bool = False) -> None:
        """Reset the device, and use all its queues as a driver should. DriverError if that fails.

        It is reset repeatedly, for `seconds`: its back-end may need a moment to come back. Each
        reset and each request may take `answers` seconds. With `rewrite` the data is written
        first.
        """
        deadline = time.monotonic() + seconds
        while True:
            try:
                return self._use(queues, answers, rewrite)
            except DriverError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(PAUSE)

    def _use(self, queues: int, answers: float, rewrite: bool) -> None:
        self._driver.reset(answers)
        negotiation = self._driver.start(queues=queues)
        if rewrite and (status := self.write()) != Status.OK:
            raise DriverError(f"a write ended with status {status}")
        for queue in range(queues):
            if trouble := self.check(queue, answers):
                raise DriverError(f"{trouble} (features {negotiation.accepted:#x})")
