"""Hostile sessions: harm to a device is told apart from effects of its driver's actions."""

from __future__ import annotations

import os
import signal

import pytest

from harness.random.finding import Finding
from harness.random.hunt import Hunt
from harness.random.illegal import Chain, Describe, Kick, Offer, Pause, Poke, Scribble
from harness.random.operations import Plug, Start
from harness.random.script import parse, text_of
from harness.targets.registry import Settings, maker

DISK = Plug(capacity=2048, queues=2)
START = Start(features=("VERSION_1", "BLK_MQ", "INDIRECT_DESC"), sizes=(8, 8))
READ = Chain(header=(0, 4), pieces=(("arena", 0, 512, 2),))


@pytest.fixture
def hunt():
    target = maker("qtest-pci", {})(Settings())
    hunt = Hunt(target)
    yield hunt
    hunt.drop()
    target.close()


@pytest.fixture
def example(hunt):
    """An example of a hostile session whose driver has started its device correctly."""
    example = hunt.hostile(DISK)
    example.play(START)
    yield example
    if example.finding is None:
        example.end()


def ended(example):
    """Return the finding at the end of an example."""
    with pytest.raises(Finding) as caught:
        example.end()
    return caught.value


def test_a_chain_by_hand_is_a_request_that_the_device_serves(example):
    example.play(READ)
    session = example.session
    used_index = session.lanes[0].layout.device + 2

    for _ in range(10_000):  # about a minute
        if session.driver.memory_read(used_index, 2) == b"\1\0":
            break
        session.play(Pause())

    assert session.driver.memory_read(used_index, 2) == b"\1\0"
    assert session.driver.memory_read(session._places["arena"], 512) == bytes(512)


def test_a_device_that_is_only_insulted_is_sound_afterwards(hunt, example):
    for operation in (
        Chain(header=(99, 0), pieces=(("beyond", 0, 512, 2), ("low", 0, 1, 0))),
        Chain(header=(0, 1 << 63), pieces=(("arena", 0, 15, 2),), table=0, spare=-1),
        Describe(slot=3, place=("top", 5), length=0xFFFFFFFF, flags=0xFFFF, last=77),
        Offer(heads=(3, 500), jump=9),
        Scribble(place=("device", 2), value=40000),
        Poke(register="queue_enable", value=7),
        Kick(queue=1),
    ):
        example.play(operation)

    example.end()

    assert example.finding is None
    assert not hunt.fresh


def test_a_device_that_died_is_a_crash_with_its_signal(example):
    # A signal that dumps no core: that takes long on some hosts.
    os.kill(example.session.disk.processes()[0].pid, signal.SIGKILL)

    found = ended(example)

    assert found.check == "crashed"
    assert "SIGKILL" in found.what


def test_a_device_that_does_not_answer_is_wedged(example):
    os.kill(example.session.disk.processes()[0].pid, signal.SIGSTOP)
    example.play(READ)

    assert ended(example).check == "wedged"


def test_memory_that_was_not_given_and_changed_is_seen(example):
    session = example.session
    session.driver.memory_write(session.fences[1] + 100, b"?")

    found = ended(example)

    assert found.check == "wrote-outside"
    assert "1 bytes of fence 1" in found.what


@pytest.mark.parametrize(
    "given",
    [
        Chain(pieces=(("arena", 65536 - 16, 65536, 2),)),
        Chain(pieces=(("top", 0, 0xFFFFFFFF, 2),)),
        Describe(slot=0, place=("arena", 0), length=1 << 30, flags=2),
        Poke(register="queue_size", value=16),
    ],
    ids=["past-the-arena", "around-the-end", "by-hand", "a-longer-ring"],
)
def test_memory_that_a_descriptor_gave_away_is_not_complained_of(example, given):
    session = example.session
    example.play(given)
    session.driver.memory_write(session.fences[2] + 100, b"?")

    example.end()

    assert example.finding is None


def test_a_hostile_script_replays_as_one(hunt):
    script = parse(text_of([DISK, START, READ, Kick()]))

    assert hunt.replay(script) is None
    assert hunt.tally.operations == 3


def test_a_change_of_the_available_ring_by_the_device_is_found(example):
    session = example.session
    session.driver.memory_write(session.lanes[0].layout.driver + 8, b"?")

    found = ended(example)

    assert found.check == "wrote-outside"
    assert "1 bytes of the available ring" in found.what


@pytest.mark.parametrize("area", ["desc", "table"])
def test_a_device_that_may_write_descriptors_may_write_anywhere(example, area):
    session = example.session
    example.play(Chain(pieces=((area, 0, 16, 2),)))
    session.driver.memory_write(session.fences[0] + 100, b"?")

    example.end()

    assert example.finding is None
