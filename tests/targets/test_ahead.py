"""Machines that are started in advance, and their end."""

from __future__ import annotations

import threading

import pytest

from harness.machine import MachineError
from harness.targets.prefetch import Prefetch

SOON = 60.0


class FakeMachine:
    """A machine that records start and stop; it starts only if `can` is true."""

    def __init__(self, can: bool = True) -> None:
        self.can = can
        self.started = threading.Event()
        self.stopped = threading.Event()
        self.may_stop = threading.Event()
        self.may_stop.set()

    def start(self) -> None:
        self.started.set()
        if not self.can:
            raise MachineError("no such machine")

    def stop(self) -> None:
        assert self.may_stop.wait(SOON)
        self.stopped.set()


class Maker:
    """Starter that records its machines; those whose number is in `bad` do not start."""

    def __init__(self, *bad: int) -> None:
        self.bad = bad
        self.made: list[FakeMachine] = []

    def __call__(self) -> FakeMachine:
        machine = FakeMachine(len(self.made) not in self.bad)
        self.made.append(machine)
        machine.start()
        return machine


def new(maker: Maker) -> Prefetch[FakeMachine]:
    return Prefetch(maker, FakeMachine.stop)


def test_the_next_one_starts_while_one_is_in_use() -> None:
    maker = Maker()
    ahead = new(maker)
    assert maker.made == []

    first = ahead.take()
    second = ahead.take()

    assert [first, second] == maker.made[:2]
    ahead.close()
    assert all(machine.started.is_set() for machine in maker.made)
    assert len(maker.made) == 3


def test_only_the_machine_that_was_not_taken_is_ended() -> None:
    maker = Maker()
    ahead = new(maker)
    ahead.take()

    ahead.close()
    ahead.close()

    assert [machine.stopped.is_set() for machine in maker.made] == [False, True]


def test_a_returned_machine_ends_before_close_returns() -> None:
    maker = Maker()
    ahead = new(maker)
    machine = ahead.take()
    machine.may_stop.clear()

    ahead.give_back(machine)
    assert not machine.stopped.is_set()
    threading.Timer(0.1, machine.may_stop.set).start()
    ahead.close()

    assert machine.stopped.is_set()


def test_a_failed_start_is_reported_to_the_caller_of_take() -> None:
    ahead = new(Maker(1))
    ahead.take()

    with pytest.raises(MachineError, match="no such machine"):
        ahead.take()
    assert ahead.take()
    ahead.close()


def test_one_that_does_not_start_and_is_not_wanted_is_no_trouble() -> None:
    ahead = new(Maker(1))
    ahead.take()
    ahead.close()
