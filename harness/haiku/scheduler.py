"""Carrying requests out, one operation after the other (Haiku's IOSchedulerSimple)."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from harness.driver.errors import DriverError
from harness.haiku.constants import StatusT
from harness.haiku.dma import DMAResource, RefusedError
from harness.haiku.request import IOOperation, IORequest, Phase

log = logging.getLogger("virtio_block")

BUSY_PAUSE = 0.001
"""Seconds between two tries while every bounce buffer is in the device's hands."""


class IOScheduler:
    """Runs requests in the threads that schedule them, in turn.

    `lock` is the driver's: it is held while an operation is cut and carried
    out, so that whatever else needs the device comes between operations, and a
    block that is written in part is read and written without a gap. `prepare`
    is called under it before each operation is cut. `callback` carries out one
    operation (do_io) and reports to `operation_completed`. `timeout` gives the
    seconds to wait for the lock, and for a bounce buffer.
    """

    def __init__(
        self,
        dma: DMAResource,
        callback: Callable[[IOOperation], StatusT],
        prepare: Callable[[], None],
        lock: threading.RLock,
        timeout: Callable[[], float],
    ) -> None:
        self._dma = dma
        self._callback = callback
        self._prepare = prepare
        self._lock = lock
        self._timeout = timeout
        self._turn = threading.Lock()
        self._terminating = False

    def schedule_request(self, request: IORequest) -> StatusT:
        """Carry a request out and finish it; its status tells how it went.

        The wait for a turn has no limit of its own: the operations ahead have.
        """
        status = StatusT.EIO
        try:
            with self._turn:
                status = self._run(request)
        except DriverError as error:
            log.error("request at %d failed: %s", request.offset, error)
        finally:
            request.finish(status)
        return StatusT.B_OK

    def terminate(self) -> None:
        """Let no further operation begin, and wait for the one that is being done."""
        self._terminating = True
        with self._turn:
            pass

    def operation_completed(
        self, operation: IOOperation, status: StatusT, transferred: int
    ) -> None:
        """Record the outcome of an operation's phase; `transferred` in bytes."""
        operation.complete(status, transferred)

    def _run(self, request: IORequest) -> StatusT:
        while request.remaining:
            before = request.transferred
            status = self._next_operation(request)
            if status is not StatusT.B_OK or request.transferred == before:
                return status
        return StatusT.B_OK

    def _next_operation(self, request: IORequest) -> StatusT:
        """Cut and carry out one operation, once there is a bounce buffer for it."""
        deadline = time.monotonic() + self._timeout()
        while True:
            if not self._lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
                return StatusT.B_BUSY
            try:
                if self._terminating:
                    return StatusT.B_CANCELED
                self._prepare()
                return self._carry_out(self._dma.translate_next(request))
            except RefusedError as refusal:
                if refusal.status is not StatusT.B_BUSY or time.monotonic() > deadline:
                    return refusal.status
            finally:
                self._lock.release()
            time.sleep(BUSY_PAUSE)

    def _carry_out(self, operation: IOOperation) -> StatusT:
        """Every phase of an operation, then its share of the request's bytes."""
        try:
            while True:
                if operation.is_write:
                    self._dma.copy_in(operation)
                # A callback that did not take the operation has not completed it.
                operation.complete(self._callback(operation), 0)
                if operation.status is not StatusT.B_OK or operation.phase is Phase.DO_ALL:
                    break
                operation.next_phase()
            if operation.phase is Phase.DO_ALL:
                done = operation.original_transferred
                if not operation.request.is_write:
                    self._dma.copy_out(operation, done)
                operation.request.transferred += done
        finally:
            if not operation.in_device:
                self._dma.recycle(operation)
        assert operation.status is not None
        return operation.status
