"""Execution of requests, one operation after the other (Haiku's IOSchedulerSimple)."""

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
"""Seconds between two tries while the device has all bounce buffers."""


class IOScheduler:
    """Executes requests in the threads that schedule them, one request at a time.

    `lock` is the driver's. It is held while an operation is cut and executed, so
    other uses of the device happen between operations, and a block that is written
    in part is read and written without interruption. `prepare` is called with the
    lock before each operation is cut. `callback` executes an operation (do_io) and
    reports to `operation_completed`. `timeout` returns the seconds to wait for the
    lock, and for a bounce buffer.
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
        """Execute and finish a request, and return its status.

        The wait for earlier requests has no own limit: each of their operations has one.
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
        """Start no further operation, and wait for the current one."""
        self._terminating = True
        with self._turn:
            pass

    def operation_completed(
        self, operation: IOOperation, status: StatusT, transferred: int
    ) -> None:
        """Record the result of an operation's phase; `transferred` is in bytes."""
        operation.complete(status, transferred)

    def _run(self, request: IORequest) -> StatusT:
        while request.remaining:
            before = request.transferred
            status = self._next_operation(request)
            if status is not StatusT.B_OK or request.transferred == before:
                return status
        return StatusT.B_OK

    def _next_operation(self, request: IORequest) -> StatusT:
        """Cut and execute one operation; wait for a bounce buffer if it needs one."""
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
        """Execute all phases of an operation, then count its bytes for the request."""
        try:
            while True:
                if operation.is_write:
                    self._dma.copy_in(operation)
                # A callback that refuses the operation has not recorded its result.
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
