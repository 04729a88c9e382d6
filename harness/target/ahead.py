"""Machines that start, and end, while a test is busy with another one."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

from harness.machine import Machine, MachineError


class Ahead:
    """Machines without disks, each started before it is asked for.

    Who takes one owns it, until it is given back to be ended. `close` ends the
    one that nobody took, and waits for those that are ending.
    """

    def __init__(self, make: Callable[[], Machine]) -> None:
        """`make` makes a machine that was not started."""
        self._make = make
        # One starts while another one ends.
        self._workers = ThreadPoolExecutor(2, "qemu-ahead")
        self._next: Future[Machine] | None = None

    def _start(self) -> Machine:
        machine = self._make()
        machine.start()
        return machine

    def take(self) -> Machine:
        """A machine that runs. MachineError if it does not start."""
        ready, self._next = self._next, None
        machine = ready.result() if ready else self._start()
        self._next = self._workers.submit(self._start)
        return machine

    def give_back(self, machine: Machine) -> None:
        """End a machine, in its own time."""
        self._workers.submit(machine.stop)

    def close(self) -> None:
        """End all that is left. A second call does nothing."""
        ready, self._next = self._next, None
        if ready:
            with suppress(MachineError):  # one that did not start has ended
                ready.result().stop()
        self._workers.shutdown()
