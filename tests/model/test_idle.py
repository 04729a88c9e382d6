"""The model says when it has nothing to do."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

import pytest

from harness.diskspec import DiskSpec
from harness.driver.interface import Request
from harness.model.loop import Loop
from harness.targets.disk import Disk
from harness.targets.model import Model
from harness.virtio.blk import RequestType

LONG = 15.0
"""Seconds that no test of these waits for."""


class Waiting(Loop):
    """A loop that ends with its first answer to somebody who waits until it is idle."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: list[bool] = []
        self._ends = os.pipe()
        self.watch(self._ends[0], lambda: None)

    def wait(self, within: float = LONG) -> list[bool]:
        """Run until the answer, and return all answers."""
        self.when_idle(time.monotonic() + within, self._answered)
        self.run()
        return self.answers

    def _answered(self, idle: bool) -> None:
        self.answers.append(idle)
        self.forget(self._ends[0])

    def close(self) -> None:
        for end in self._ends:
            os.close(end)


@pytest.fixture
def loop() -> Iterator[Waiting]:
    loop = Waiting()
    yield loop
    loop.close()


def test_an_idle_loop_says_so_at_once(loop: Waiting) -> None:
    assert loop.wait() == [True]


def test_a_loop_is_not_idle_before_its_timers_have_run(loop: Waiting) -> None:
    ran = []
    loop.at(time.monotonic() + 0.02, lambda: ran.append("timer"))

    assert (loop.wait(), ran) == ([True], ["timer"])


def test_a_loop_is_idle_without_the_timers_that_were_cancelled(loop: Waiting) -> None:
    ran = []
    late = loop.at(time.monotonic() + 2 * LONG, lambda: ran.append("cancelled"))
    loop.at(time.monotonic() + 0.02, lambda: ran.append("timer"))
    loop.cancel({late})

    assert (loop.wait(), ran) == ([True], ["timer"])


def test_a_loop_is_not_idle_while_a_descriptor_is_readable(loop: Waiting) -> None:
    reader, writer = os.pipe()
    os.write(writer, b"four")
    read = []

    def take() -> None:
        read.append(os.read(reader, 1))
        if len(read) == 4:
            loop.forget(reader)

    loop.watch(reader, take)
    answers = loop.wait()
    os.close(reader)
    os.close(writer)

    assert (answers, len(read)) == ([True], 4)


def test_a_loop_that_is_never_idle_says_so_in_time(loop: Waiting) -> None:
    def again() -> None:
        loop.at(time.monotonic() + 0.001, again)

    again()

    assert loop.wait(0.03) == [False]


Plug = Callable[[str, int], Disk]


@pytest.fixture
def plug() -> Iterator[Plug]:
    targets: list[Model] = []

    def make(way: str, iops: int) -> Disk:
        targets.append(Model(name=way))
        disk = Disk(targets[-1].plug(DiskSpec(iops=iops)))
        disk.start()
        return disk

    yield make
    for target in targets:
        target.close()


@pytest.mark.parametrize("way", ["model", "model-pci"])
def test_a_disk_is_idle_when_its_requests_are_done(plug: Plug, way: str) -> None:
    disk = plug(way, 50)
    tokens = disk.driver.submit([Request(RequestType.IN, 0, receive=512) for _ in range(4)])

    idle = disk.idle(LONG)

    assert idle
    assert sorted(disk.driver.completed()) == tokens


def test_a_disk_whose_requests_take_longer_is_not_idle(plug: Plug) -> None:
    disk = plug("model", 1)
    tokens = disk.driver.submit([Request(RequestType.IN, 0, receive=512) for _ in range(40)])

    idle = disk.idle(0.05)

    assert not idle
    assert len(disk.driver.completed()) < len(tokens)


@pytest.mark.parametrize("way", ["model", "model-pci"])
def test_a_disk_whose_slow_requests_were_dropped_by_a_reset_is_idle(plug: Plug, way: str) -> None:
    disk = plug(way, 1)
    disk.driver.submit([Request(RequestType.IN, 0, receive=512) for _ in range(40)])
    disk.driver.reset()

    assert disk.idle(LONG)
