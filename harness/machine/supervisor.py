"""A child process and its files, supervised from its start to its end; QMP if it speaks that."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from types import TracebackType
from typing import Any, ClassVar, Self, TypeVar

from harness import interrupt
from harness.machine import cleanup
from harness.machine.blockgraph import BlockGraph
from harness.machine.errors import DisconnectedError, MachineError
from harness.machine.logs import tail
from harness.machine.monitor import LoopThread, Monitor
from harness.machine.process import Process
from harness.machine.rundir import RunDir

QUIT_DEADLINE = 3.0
"""Seconds that the process may take to end after it was asked to, or after its channel closed."""

SHOWN = 20
"""Lines at the end of stderr that `Supervised.last_words` has."""

MESSAGES = 200
"""QMP commands that are kept, the last ones, with their answers."""

T = TypeVar("T")


class Supervised:
    """A process with a run directory, from its start to `stop`. It is started only once."""

    process_name: str
    """Name of the process in messages."""

    subject: str
    """Name of the object in messages about its use."""

    process_type: ClassVar[type[Process]] = Process

    def __init__(self) -> None:
        with interrupt.shielded():
            self._dir = RunDir()
            cleanup.at_exit(self.stop)
        self._stderr = self._dir.path / "stderr.log"
        self._loop: LoopThread | None = None
        self._process: Process | None = None
        self._last_words = f"{self.process_name} was not started"
        self._stopped = False

    def _launch(
        self, line: list[str], inherited: Iterable[int] = (), terminal: int | None = None
    ) -> None:
        """Start the process. `inherited` and `terminal` are those of `Process`."""
        self._loop = LoopThread(self.process_name)
        with interrupt.shielded():
            self._process = self.process_type(
                self.process_name, line, self._stderr, self._loop, inherited, terminal
            )

    @property
    def pid(self) -> int | None:
        """Process id, None before the start."""
        return self._process.pid if self._process else None

    def alive(self) -> bool:
        """Return True while the process runs."""
        return self._process is not None and self._process.alive()

    def check(self) -> None:
        """Raise MachineError, with the end of the process's stderr, if it does not run."""
        if not self.alive():
            raise self._ended(f"{self.subject} is gone")

    def last_words(self) -> str:
        """Return in words how the process ended, and the end of its stderr. Also after `stop`."""
        if self._stopped or self._process is None:
            return self._last_words
        return "\n".join([self.fate(), *self._last_lines()])

    def fate(self) -> str:
        """Return in words if it runs, or how it ended: its exit status or the signal."""
        return self._process.fate() if self._process else self._last_words

    def stop(self) -> None:
        """End the process, by a signal if a request does not help, and remove its files.

        A second call does nothing.
        """
        with interrupt.shielded():
            if not self._stopped:
                self._stop()

    def _stop(self) -> None:
        try:
            if self._process and self._process.alive():
                self._request_end(self._process)
        finally:
            try:
                if self._process:
                    self._process.end()
            finally:
                self._keep()
                self._stopped = True
                self._dir.remove()
                if self._loop:
                    self._close_session()
                    self._loop.close()
                cleanup.forget(self.stop)

    def _request_end(self, process: Process) -> None:
        """Ask the process to end, and wait for that; `Process.end` sends signals afterwards."""

    def _close_session(self) -> None:
        """Close what uses the loop."""

    def _keep(self) -> None:
        """Keep what is needed after `stop`, before the run directory is removed."""
        self._last_words = self.last_words()

    def _last_lines(self) -> list[str]:
        """Return the last lines of its output."""
        return tail(self._stderr, SHOWN).splitlines()

    def _details(self) -> str:
        """Return the details of an error about the end of the process."""
        command = self._process.command if self._process else "(none)"
        return f"--- its command line\n{command}\n--- its last words\n{self.last_words()}"

    def _ended(self, what: str) -> MachineError:
        """Return the error for a closed channel: the cause in one line, and details."""
        if self._process and not self._stopped:
            self._process.wait(QUIT_DEADLINE)
        words = self.last_words().splitlines()
        line = words[0] if len(words) == 1 else f"{words[0]}: {words[-1]}"
        return MachineError(f"{what}: {line}", self._details())


class QmpSupervised(Supervised, ABC):
    """A supervised process with a QMP session.

    Use it as a context manager. Every method raises MachineError if the process refuses the
    command, is not running, or ends during the call.
    """

    def __init__(self) -> None:
        super().__init__()
        self._monitor: Monitor | None = None
        self.messages: deque[tuple[Any, ...]] = deque(maxlen=MESSAGES)
        """The last commands and their answers: time, "qmp", command, arguments, answer."""

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

    def qmp(self, command: str, timeout: float = 10.0, **arguments: Any) -> Any:
        """Return the value of a QMP command; names with a dash are `**{"node-name": ...}`.

        The MachineError has the process's message if it refuses, and the end of its stderr if it
        ends. `timeout` is in seconds.
        """
        asked = time.time()
        answer: Any = "no answer"
        quiet = command.startswith("query-")
        try:
            answer = self._ask(lambda monitor: monitor.execute(command, arguments, timeout))
            quiet = quiet or command.startswith("x-query-")
        except MachineError as error:
            answer = str(error)
            raise
        finally:
            if not quiet:
                self.messages.append((asked, "qmp", command, arguments, answer))
        return answer

    def _open_monitor(self, seconds: float) -> None:
        assert self._loop
        assert self._process
        try:
            self._monitor = Monitor(self._loop, self._process.channel, self.process_name, seconds)
        except DisconnectedError as error:
            if not self._process.wait(QUIT_DEADLINE):
                message = f"{self.process_name} runs, but its QMP session is broken: {error}"
                raise MachineError(message, self._details()) from error
            raise self._ended(f"{self.process_name} did not start") from error

    def _request_end(self, process: Process) -> None:
        if self._monitor:
            with suppress(MachineError):
                self._monitor.execute("quit", {}, QUIT_DEADLINE)
                process.wait(QUIT_DEADLINE)

    def _close_session(self) -> None:
        if self._monitor:
            self._monitor.close()

    def _ask(self, request: Callable[[Monitor], T]) -> T:
        if self._monitor is None:
            raise MachineError(f"{self.subject} has not been started")
        if self._stopped:
            raise self._ended(f"{self.subject} is gone")
        try:
            return request(self._monitor)
        except DisconnectedError as error:
            raise self._ended(str(error)) from error

    def _remove_nodes(self, graph: BlockGraph, objects: int, nodes: int) -> None:
        """Remove the first `nodes` block nodes of a graph, in reverse order, and then its objects.

        Of the objects only the first `objects` are removed.
        """
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
