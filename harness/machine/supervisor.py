"""A child process with a QMP session: started once, watched, and ended with its files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, ClassVar, Self, TypeVar

from harness import interrupt
from harness.machine import cleanup
from harness.machine.blockgraph import BlockGraph
from harness.machine.errors import DisconnectedError, MachineError
from harness.machine.monitor import LoopThread, Monitor
from harness.machine.process import Process
from harness.machine.rundir import RunDir

QUIT_DEADLINE = 3.0
"""Seconds that the process may take to end after the command `quit`."""

T = TypeVar("T")


class Supervised(ABC):
    """A process with a run directory and a QMP session, from `start` to `stop`.

    Use it as a context manager. Every method raises MachineError if the process refuses the
    command, is not running, or ends during the call.
    """

    process_name: ClassVar[str]
    subject: ClassVar[str]
    """Name of the process in messages about its end, and of the object in the others."""

    def __init__(self) -> None:
        with interrupt.shielded():
            self._dir = RunDir()
            cleanup.at_exit(self.stop)
        self._loop: LoopThread | None = None
        self._process: Process | None = None
        self._monitor: Monitor | None = None
        self._last_words = f"{self.process_name} was not started"
        self._stopped = False

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @abstractmethod
    def start(self) -> None:
        """Start the process, once."""

    @abstractmethod
    def last_words(self) -> str:
        """Return in words how the process ended, and the end of its stderr. Also after `stop`."""

    @abstractmethod
    def _details(self) -> str:
        """Return the details of an error about the end of the process."""

    def _keep(self) -> None:
        """Keep what is needed after `stop`, before the run directory is removed."""
        self._last_words = self.last_words()

    @property
    def pid(self) -> int | None:
        """Process id, None before `start`."""
        return self._process.pid if self._process else None

    def stop(self) -> None:
        """End the process by QMP, else SIGTERM, else SIGKILL, and remove its files. Idempotent."""
        with interrupt.shielded():
            if not self._stopped:
                self._stop()

    def _stop(self) -> None:
        try:
            if self._process and self._monitor and self._process.alive():
                with suppress(MachineError):  # `Process.end` sends a signal then
                    self._monitor.execute("quit", {}, QUIT_DEADLINE)
                    self._process.wait(QUIT_DEADLINE)
        finally:
            try:
                if self._process:
                    self._process.end()
            finally:
                self._keep()
                self._stopped = True
                self._dir.remove()
                if self._loop:
                    if self._monitor:
                        self._monitor.close()
                    self._loop.close()
                cleanup.forget(self.stop)

    def alive(self) -> bool:
        """True while the process runs."""
        return self._process is not None and self._process.alive()

    def check(self) -> None:
        """Raise MachineError, with the end of the process's stderr, if it does not run."""
        if not self.alive():
            raise self._ended(f"{self.subject} is gone")

    def qmp(self, command: str, timeout: float = 10.0, **arguments: Any) -> Any:
        """Return the value of a QMP command; names with a dash are `**{"node-name": ...}`.

        The MachineError has the process's message if it refuses, and the end of its stderr if it
        ends. `timeout` is in seconds.
        """
        return self._ask(lambda monitor: monitor.execute(command, arguments, timeout))

    def _open_monitor(self, seconds: float) -> None:
        assert self._loop
        assert self._process
        try:
            self._monitor = Monitor(self._loop, self._process.qmp_socket, seconds)
        except DisconnectedError as error:
            ended = self._ended(f"{self.process_name} did not start")
            if self.alive():
                message = f"{self.process_name} runs, but its QMP session is broken: {error}"
                raise MachineError(message, ended.details) from error
            raise ended from error

    def _ask(self, request: Callable[[Monitor], T]) -> T:
        if self._monitor is None:
            raise MachineError(f"{self.subject} has not been started")
        if self._stopped:
            raise self._ended(f"{self.subject} is gone")
        try:
            return request(self._monitor)
        except DisconnectedError as error:
            raise self._ended(str(error)) from error

    def _ended(self, what: str) -> MachineError:
        """Return the error for a closed QMP session: the cause in one line, and details."""
        if self._process and not self._stopped:
            self._process.wait(QUIT_DEADLINE)
        words = self.last_words().splitlines()
        line = words[0] if len(words) == 1 else f"{words[0]}: {words[-1]}"
        return MachineError(f"{what}: {line}", self._details())

    def _remove_nodes(self, graph: BlockGraph, objects: int, nodes: int) -> None:
        """Remove the first block nodes and objects of a graph, the last first."""
        for options in reversed(graph.nodes[:nodes]):
            self.qmp("blockdev-del", **{"node-name": options["node-name"]})
        for options in graph.objects[:objects]:
            self.qmp("object-del", id=options["id"])

    def _resize(self, node: str, size: int) -> None:
        """Resize a block node to `size` bytes."""
        try:
            arguments: dict[str, Any] = {"node-name": node, "size": size}
            self.qmp("block_resize", **arguments)
        except MachineError as error:
            raise MachineError(
                f"{node} was not resized to {size} bytes: {error}", error.details
            ) from error
