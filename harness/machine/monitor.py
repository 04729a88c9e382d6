"""QMP for synchronous code.

qemu.qmp uses asyncio. `LoopThread` is a thread with an event loop, `Monitor` is
a QMP session in it.
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

from qemu.qmp import (
    EventListener,
    ExecInterruptedError,
    ExecuteError,
    Message,
    QMPClient,
    QMPError,
    Runstate,
)
from qemu.qmp.protocol import StateError

from harness.machine.errors import DisconnectedError, MachineError

# Our own errors report the end of a session. The library's messages would go to the user's
# terminal, or be kept by pytest: one for each message of a peer that sends nonsense without end.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)

T = TypeVar("T")
Event = dict[str, Any]

EVENTS_KEPT = 1000

EVENT_LIMIT = 1 << 16
"""Characters of an event that is kept; QEMU's have some hundreds."""

MESSAGE_LIMIT = 1 << 20
"""Bytes of a QMP message. A longer one ends the session."""

CLOSE_DEADLINE = 5.0
"""Seconds that the end of a session, or of a loop, may take."""


class LoopThread:
    """Thread with an event loop that runs from construction to `close`."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        # daemon: a machine that nobody stopped must not block the exit of the interpreter.
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` in the thread and return its result. `work` has its own deadline."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """End the loop and its thread, and cancel its tasks."""
        with suppress(TimeoutError, FutureTimeoutError):
            asyncio.run_coroutine_threadsafe(_cancel_all(), self._loop).result(CLOSE_DEADLINE)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CLOSE_DEADLINE)
        if not self._thread.is_alive():
            self._loop.close()


async def _cancel_all() -> None:
    """Cancel all tasks that still run on this loop: abandoned work, and its helpers."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.wait_for(asyncio.gather(*others, return_exceptions=True), CLOSE_DEADLINE / 2)


class _Listener(EventListener):
    """Gives each event away. The library's own listener keeps each event it accepts, for ever."""

    def __init__(self, take: Callable[[Event], Coroutine[Any, Any, None]]) -> None:
        super().__init__()
        self._take = take

    async def put(self, event: Message) -> None:
        await self._take(dict(event))


class Monitor:
    """A negotiated QMP session over a connected socket or the path of a UNIX socket.

    Raises MachineError if negotiation fails or takes longer than `timeout` seconds.
    """

    def __init__(
        self, loop: LoopThread, peer: socket.socket | str, name: str, timeout: float = 10.0
    ) -> None:
        self._loop = loop
        self._name = name
        self._client = QMPClient(readbuflen=MESSAGE_LIMIT)
        self._client.events.event_filter = lambda event: False
        self._client.register_listener(_Listener(self._take))
        self._events: deque[Event] = deque(maxlen=EVENTS_KEPT)
        self._lost = False
        self.shutdown_reason: str | None = None
        loop.run(self._connect(peer, timeout))

    def execute(self, command: str, arguments: dict[str, object], timeout: float) -> Any:
        """Execute a QMP command and return its value.

        Raises MachineError, with the process's message, if that refuses it or does not answer
        within `timeout` seconds, DisconnectedError as soon as the session ends.
        """
        return self._loop.run(self._execute(command, arguments, timeout))

    def wait_event(self, name: str, match: Callable[[Event], bool] | None, timeout: float) -> Event:
        """Return the oldest event of that name that `match` accepts; wait if there is none.

        Events from before the call count. Each is returned once. Raises the same as `execute`.
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
            raise MachineError(f"{self._name} sent no QMP greeting within {timeout:g} s") from None
        except (QMPError, AssertionError) as error:  # the library asserts that no error was first
            raise DisconnectedError(f"no QMP session: {error}") from error
        self._watcher = asyncio.create_task(self._watch())

    async def _close(self) -> None:
        with suppress(Exception):  # the session ends in any case
            async with asyncio.timeout(CLOSE_DEADLINE):
                await self._client.disconnect()
                await self._watcher

    async def _watch(self) -> None:
        """Notice the end of the session at once, also between commands."""
        while self._client.runstate == Runstate.RUNNING:
            await self._client.runstate_changed()
        with suppress(Exception):
            await self._client.disconnect()
        async with self._changed:
            self._lost = True
            self._changed.notify_all()

    async def _take(self, event: Event) -> None:
        async with self._changed:
            if len(str(event)) <= EVENT_LIMIT:
                self._events.append(event)
            if event["event"] == "SHUTDOWN":
                self.shutdown_reason = event["data"]["reason"]
            self._changed.notify_all()

    async def _execute(self, command: str, arguments: dict[str, object], timeout: float) -> Any:
        try:
            async with asyncio.timeout(timeout):
                return await self._client.execute(command, arguments)
        except TimeoutError:
            raise MachineError(
                f"{self._name} did not answer {command!r} within {timeout:g} s"
            ) from None
        except ExecuteError as error:
            raise MachineError(f"{self._name} refused {command!r}: {error}") from error
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
            seen = ", ".join({cast(str, event["event"]): None for event in self._events}) or "none"
            raise MachineError(
                f"{self._name} sent no event {name} within {timeout:g} s (others: {seen})"
            ) from None
