"""Legal random operations find a defect that a wrapper of the driver adds, and shrink it."""

from __future__ import annotations

import os
import signal
from dataclasses import replace

import pytest

pytest.importorskip("hypothesis")

from harness.random import rounds
from harness.random.finding import Finding
from harness.random.hunt import Hunt
from harness.random.operations import Burst, Plug, Send, Start, Write
from harness.targets.registry import Settings, maker
from harness.virtio.blk import RequestType

DISK = Plug(capacity=2048)


@pytest.fixture
def hunt(monkeypatch):
    # The clock limits shrinking; a busy machine must not lead to another script.
    monkeypatch.setattr("harness.random.hunt.PATIENCE", 120.0)
    monkeypatch.setattr("harness.random.hunt.SECONDS", 120.0)
    target = maker("qtest-pci", {})(Settings())
    hunt = Hunt(target, deadline=5.0)
    yield hunt
    hunt.drop()
    target.close()


def found(hunt, spoil, first=0):
    """Return the findings of a few rounds on disks whose driver `spoil` has changed."""

    def wrap(disk):
        spoil(disk.driver)
        return disk

    hunt.wrap = wrap
    for number in range(first, first + 5):
        fresh = rounds.run(hunt, DISK, number, 30, 12)
        if fresh:
            return fresh
    return []


def test_a_sound_device_has_nothing_to_find(hunt):
    assert found(hunt, lambda driver: None) == []


def test_a_lost_write_is_found_and_shrunk_to_a_write(hunt):
    def spoil(driver):
        submit = driver.submit

        def losing(requests, queue=0):
            kept = [
                replace(item, data=bytes(len(item.data)))
                if item.type == RequestType.OUT and 5 <= item.sector < 8
                else item
                for item in requests
            ]
            return submit(kept, queue)

        driver.submit = losing

    (item, *_) = found(hunt, spoil)

    assert item.finding.check == "contents"
    # The report of a failed test has them.
    assert RequestType.IN in {request["type"] for request in hunt.requests}
    kinds = [type(operation).__name__ for operation in item.script]
    assert kinds[:2] == ["Plug", "Start"]
    assert len(kinds) <= 4
    asks = [ask for step in item.script if isinstance(step, Send) for ask in step.asks]
    bursts = [step for step in item.script if isinstance(step, Burst)]
    assert any(isinstance(ask, Write) and 5 <= ask.sector < 8 for ask in asks) or any(
        burst.sector < 8 and burst.sector + burst.span > 5 for burst in bursts
    )


def test_a_used_length_that_is_one_too_many_is_found(hunt):
    def spoil(driver):
        complete = driver.complete

        def more(tokens, timeout=10.0):
            return [
                replace(item, used_len=item.used_len + (len(item.data) > 4096))
                for item in complete(tokens, timeout)
            ]

        driver.complete = more

    (item, *_) = found(hunt, spoil)

    assert item.finding.check == "used-length"
    assert item.finding.statement == "2.7.8.2-D-02"
    assert len(item.script) <= 4


def test_interrupts_that_do_not_come_back_on_are_found(hunt):
    def spoil(driver):
        write, wait, lost = driver.memory_write, driver.wait_interrupt, set()

        def losing(at, data):
            if data == b"\0\0":
                lost.add(at)
            else:
                lost.discard(at)
                write(at, data)

        def impatient(source, above, timeout):
            # Only an interrupt that cannot come is waited for shortly: each example does so.
            off = any(driver.memory_read(at, 2) != b"\0\0" for at in lost)
            return wait(source, above, 0.2 if off else timeout)

        driver.memory_write, driver.wait_interrupt = losing, impatient

    (item, *_) = found(hunt, spoil, first=15)

    assert item.finding.check == "interrupt"
    assert [type(step).__name__ for step in item.script][2:4] == ["WantInterrupts"] * 2
    assert len(item.script) <= 6


def test_a_generation_that_stays_is_found(hunt):
    def spoil(driver):
        driver.config_generation = lambda: 7

    (item, *_) = found(hunt, spoil)

    assert item.finding.check == "generation"
    assert [type(step).__name__ for step in item.script] == ["Plug", "Start", "Resize"]


def test_a_finding_of_an_earlier_round_is_known_and_ends_nothing(hunt):
    def spoil(driver):
        driver.config_generation = lambda: 7

    assert found(hunt, spoil)
    times = next(iter(hunt.found.values())).times

    assert rounds.run(hunt, DISK, 99, 15, 12) == []
    assert next(iter(hunt.found.values())).times > times


def test_a_seed_finds_the_same_script_again(hunt):
    def spoil(driver):
        driver.config_generation = lambda: 7

    (item, *_) = found(hunt, spoil, first=3)
    again = Hunt(hunt.target, deadline=5.0)
    try:
        (other, *_) = found(again, spoil, first=3)
    finally:
        again.drop()

    assert item.script == other.script


def test_a_device_that_dies_is_a_finding_with_its_last_messages(hunt):
    example = hunt.legal(DISK)
    example.play(Start(features=example.shape.required, sizes=(8,)))
    os.kill(example.session.disk._plugged.machine.pid, signal.SIGKILL)

    with pytest.raises(Finding) as caught:
        example.play(Send(asks=(Write(sector=0, count=1),)))
    example.end()

    assert caught.value.check == "alive"
    assert "SIGKILL" in str(caught.value)
