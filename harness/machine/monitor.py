"""QMP for ordinary, synchronous code.

qemu.qmp speaks asyncio. `LoopThread` is a thread with an event loop;
`Monitor` is one QMP session on it.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import suppress
from typing import Any, TypeVar, cast

from qemu.qmp import ExecInterruptedError, ExecuteError, QMPClient, QMPError, Runstate
from qemu.qmp.protocol import StateError

from harness.machine.errors import DisconnectedError, MachineError

# A session that ends is reported by our own errors; without a handler, logging's last
# resort would print the library's view of it on the user's terminal as well.
logging.getLogger("qemu.qmp").addHandler(logging.NullHandler())

T = TypeVar("T")
Event = dict[str, Any]

EVENTS_KEPT = 1000

CLOSE_DEADLINE = 5.0
"""Seconds that the end of a session, or of a loop, may take."""


class LoopThread:
    """A thread that runs an event loop from construction to `close`."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        # daemon: a machine that nobody stopped must not keep the interpreter from its exit.
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` there and return its result here; `work` has its own deadline."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """End the loop and its thread, with what was left undone on it."""
        with suppress(TimeoutError, FutureTimeoutError):
            asyncio.run_coroutine_threadsafe(_cancel_all(), self._loop).result(CLOSE_DEADLINE)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CLOSE_DEADLINE)
        if not self._thread.is_alive():
            self._loop.close()


async def _cancel_all() -> None:
    """Cancel what still runs on this loop: work that was given up, and its helpers."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.wait_for(asyncio.gather(*others, return_exceptions=True), CLOSE_DEADLINE / 2)


class Monitor:
    """One QMP session, negotiated, over a connected socket or a UNIX socket's path.

    Raises MachineError if that fails or takes longer than `timeout` seconds.
    """

    def __init__(self, loop: LoopThread, peer: socket.socket | str, timeout: float = 10.0) -> None:
        self._loop = loop
        self._client = QMPClient()
        self._events: deque[Event] = deque(maxlen=EVENTS_KEPT)
        self._lost = False
        self.shutdown_reason: str | None = None
        loop.run(self._connect(peer, timeout))

    def execute(self, command: str, arguments: dict[str, object], timeout: float) -> Any:
        """The return value of a QMP command.

        Raises MachineError with QEMU's own words if it refuses or does not
        answer within `timeout` seconds, DisconnectedError as soon as it is gone.
        """
        return self._loop.run(self._execute(command, arguments, timeout))

    def wait_event(self, name: str, match: Callable[[Event], bool] | None, timeout: float) -> Event:
        """Take the oldest event of that name that `match` accepts, waiting for it if need be.

        Events that came before the call count, each is taken once. Raises as `execute` does.
        """
        return self._loop.run(self._wait_event(name, match, timeout))

    def close(self) -> None:
        """End the session."""
        self._loop.run(self._close())

    async def _connect(self, peer: socket.socket | str, timeout: float) -> None:
        self._changed = asyncio.Condition()
        try:
            async with asyncio.timeout(timeout):
                await self._client.connect(peer)
        except TimeoutError:
            raise MachineError(f"no QMP greeting within {timeout:g} s") from None
        except QMPError as error:
            raise DisconnectedError(f"no QMP session: {error}") from error
        self._collector = asyncio.create_task(self._collect())
        self._watcher = asyncio.create_task(self._watch())

    async def _close(self) -> None:
        with suppress(Exception):  # how the session ended is of no interest any more
            async with asyncio.timeout(CLOSE_DEADLINE):
                await self._client.disconnect()
                await self._watcher

    async def _collect(self) -> None:
        async for event in self._client.events:
            await self._take(dict(event))

    async def _watch(self) -> None:
        """Notice the session's end at once, also when nobody is in a command."""
        while self._client.runstate == Runstate.RUNNING:
            await self._client.runstate_changed()
        with suppress(Exception):
            await self._client.disconnect()
        self._collector.cancel()
        await asyncio.gather(self._collector, return_exceptions=True)
        for event in self._client.events.clear():
            await self._take(dict(event))
        async with self._changed:
            self._lost = True
            self._changed.notify_all()

    async def _take(self, event: Event) -> None:
        async with self._changed:
            self._events.append(event)
            if event["event"] == "SHUTDOWN":
                self.shutdown_reason = event["data"]["reason"]
            self._changed.notify_all()

    async def _execute(self, command: str, arguments: dict[str, object], timeout: float) -> Any:
        try:
            async with asyncio.timeout(timeout):
                return await self._client.execute(command, arguments)
        except TimeoutError:
            raise MachineError(f"QEMU did not answer {command!r} within {timeout:g} s") from None
        except ExecuteError as error:
            raise MachineError(f"QEMU refused {command!r}: {error}") from error
        except (ExecInterruptedError, StateError, OSError, EOFError) as error:
            raise DisconnectedError(f"{command!r} got no answer") from error

    async def _wait_event(
        self, name: str, match: Callable[[Event], bool] | None, timeout: float
    ) -> Event:
        try:
            async with asyncio.timeout(timeout), self._changed:
                while True:
                    for event in self._events:
                        if event["event"] == name and (match is None or match(event)):
                            self._events.remove(event)
                            return event
                    if self._lost:
                        raise DisconnectedError(f"the event {name} did not come")
                    await self._changed.wait()
        except TimeoutError:
            seen = ", ".join(cast(str, event["event"]) for event in self._events) or "none"
            raise MachineError(
                f"QEMU's event {name} did not come within {timeout:g} s (others: {seen})"
            ) from None
