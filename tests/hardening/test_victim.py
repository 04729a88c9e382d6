"""A device that dies, hangs or does harm: it gets a verdict and is removed.

The device is a real QEMU; the tests stop, kill or change its process from outside.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from conformance.hardening import victim
from conformance.hardening.victim import Victim
from harness.diskspec import DiskSpec
from harness.driver.errors import BadArgumentError
from harness.driver.interface import Buffer
from harness.robustness.fate import Fate
from harness.robustness.process_watch import Judgement
from harness.targets import Disk, Target
from harness.targets.qtest import QtestTarget
from harness.targets.vhost_user import VhostUserDaemon
from harness.virtio.blk import SECTOR


@pytest.fixture(params=["qtest-pci", "vhost-user"])
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    target = VhostUserDaemon() if request.param == "vhost-user" else QtestTarget(request.param)
    yield target
    target.close()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give a device all the time that it needs: for a test in which it does react."""
    for limit in ("LEAVES", "ANSWERS", "REVIVES"):
        monkeypatch.setattr(victim, limit, 30.0)


class Case:
    """A victim, and its recorded judgements."""

    def __init__(self, target: Target) -> None:
        self.judgements: list[Judgement] = []
        self.disk = Disk(target.plug(DiskSpec(queues=2)))
        self.victim = Victim(self.disk, False, self.judgements.append, 64)

    @property
    def pid(self) -> int:
        return self.disk.processes()[0].pid

    @property
    def fate(self) -> Fate:
        (judgement,) = self.judgements
        return judgement.fate


def ended(pid: int) -> bool:
    """Return True when the process is gone or a zombie."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as stat:  # noqa: PTH123
            return stat.read().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.usefixtures("patient")
def test_a_legal_read_is_served(target: Target) -> None:
    case = Case(target)

    with case.victim.must_survive():
        case.victim.send(*case.victim.read())

    assert case.fate is Fate.SERVED
    case.disk.unplug()


@pytest.mark.usefixtures("patient")
def test_nothing_done_is_nothing_wrong(target: Target) -> None:
    case = Case(target)

    with case.victim.must_survive():
        pass

    assert case.fate is Fate.REJECTED
    case.disk.unplug()


@pytest.mark.usefixtures("patient")
def test_an_error_is_a_failed_request(target: Target) -> None:
    case = Case(target)

    with case.victim.must_survive():
        case.victim.send(*case.victim.read(sector=2**40))

    assert case.fate is Fate.FAILED_REQUEST
    case.disk.unplug()


def test_a_process_that_is_killed_has_crashed(target: Target) -> None:
    case = Case(target)
    pid = case.pid

    with pytest.raises(AssertionError, match=r"crashed: .*SIGKILL"), case.victim.must_survive():
        os.kill(pid, signal.SIGKILL)
        case.victim.send(*case.victim.read())

    assert case.fate is Fate.CRASHED
    case.disk.unplug()
    assert Case(target).disk.processes()[0].pid != pid


def test_a_process_that_is_stopped_is_wedged_and_taken_away(target: Target) -> None:
    case = Case(target)
    pid = case.pid

    with (
        pytest.raises(AssertionError, match=r"wedged: .*no longer answers"),
        case.victim.must_survive(),
    ):
        os.kill(pid, signal.SIGSTOP)
        case.victim.send(*case.victim.read())

    case.disk.unplug()
    assert case.fate is Fate.WEDGED
    assert ended(pid)


@pytest.mark.parametrize("state", [signal.SIGCONT, signal.SIGSTOP], ids=["running", "stopped"])
def test_what_is_killed_has_ended_and_the_next_disk_is_another_processes(
    target: Target, state: signal.Signals
) -> None:
    disk = Disk(target.plug(DiskSpec(queues=2)))
    (process,) = disk.processes()
    os.kill(process.pid, state)

    disk.kill()

    assert not process.alive()
    disk.unplug()
    assert Case(target).disk.processes()[0].pid != process.pid


@pytest.mark.usefixtures("patient")
def test_memory_that_was_not_given_is_written(target: Target) -> None:
    case = Case(target)
    subject = case.victim
    header, area, status = subject.read()
    subject.lay(header, area, status)
    # This request is not known to the guarded memory: the device obeys, and writes there.
    subject.driver.memory_write(
        subject.ring.layout.desc + 16,
        subject.ring.table_entry(Buffer(area.address + 8, SECTOR, True), 1, 2),
    )
    subject.canaries.watch("the table", subject.ring.layout.desc, 48)

    outside = r"wrote outside: .*the descriptor table"
    with pytest.raises(AssertionError, match=outside), subject.must_survive():
        subject.go()

    assert case.fate is Fate.WROTE_OUTSIDE
    case.disk.unplug()


def test_a_mistake_of_the_test_is_no_verdict(target: Target) -> None:
    case = Case(target)

    with pytest.raises(BadArgumentError), case.victim.must_survive():
        case.victim.driver.memory_read(0, 1)

    assert case.judgements == []
    case.disk.unplug()
