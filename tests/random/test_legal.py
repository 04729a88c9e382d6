"""Operations that become illegal when earlier operations of a script are left out."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("hypothesis")

from harness.random import rounds
from harness.random.finding import Finding
from harness.random.hunt import Example, Hunt
from harness.random.legal import objection
from harness.random.operations import (
    Burst,
    CacheMode,
    Collect,
    Discard,
    Flush,
    PauseMachine,
    Plug,
    QueueReset,
    Read,
    ReadConfig,
    Resize,
    Send,
    Start,
    Suppress,
    WantInterrupts,
    Write,
)
from harness.random.session import Session
from harness.targets.registry import Settings, maker
from harness.virtio.blk import RequestType, Status

DISK = Plug(capacity=2048, queues=2)
START = Start(features=("VERSION_1", "BLK_MQ"), sizes=(8, 8))
WRITE = Write(sector=2000, count=48)


@pytest.fixture
def hunt(monkeypatch):
    # The clock limits cutting; a busy machine must not lead to another script.
    monkeypatch.setattr("harness.random.hunt.SECONDS", 120.0)
    target = maker("qtest-pci", {})(Settings())
    hunt = Hunt(target, deadline=5.0)
    yield hunt
    hunt.drop()
    target.close()


@pytest.mark.parametrize(
    ("before", "then", "reason"),
    [
        ([], Send(asks=(WRITE,)), "no Start"),
        ([START], Send(asks=(WRITE,), queue=2), "virtqueue 2"),
        ([START], WantInterrupts(wanted=False, queue=2), "virtqueue 2"),
        ([START], Send(asks=()), "no request"),
        ([START], Send(asks=(Write(sector=2000, count=49),)), "2048 sectors"),
        ([START, Resize(capacity=64)], Send(asks=(WRITE,)), "64 sectors"),
        ([START], Send(asks=(WRITE, WRITE, WRITE)), "free descriptors"),
        ([START, Send(asks=(WRITE, WRITE))], Send(asks=(WRITE,)), "free descriptors"),
        ([START], Send(asks=(Flush(),)), "FLUSH"),
        ([START], Send(asks=(Discard(segments=((0, 1),)),)), "0 segments"),
        ([START], Send(asks=(replace(WRITE, indirect=True),)), "INDIRECT_DESC"),
        ([START], Burst(sector=2041, span=8, count=1), "2048 sectors"),
        ([replace(START, sizes=(2, 8))], Burst(sector=0, count=1), "3 descriptors"),
        ([START], CacheMode(writeback=True), "CONFIG_WCE"),
        ([START], QueueReset(size=8), "RING_RESET"),
        ([], replace(START, features=("BLK_MQ",)), "features"),
        ([], replace(START, features=("VERSION_1", "BLK_ZONED")), "features"),
        ([], replace(START, features=("VERSION_1",)), "1 virtqueues"),
        ([], replace(START, sizes=(8, 12)), "size"),
        ([], replace(START, vectors=1), "vectors"),
    ],
)
def test_what_is_not_legal_there_is_objected_to(hunt, before, then, reason):
    example = hunt.legal(DISK)
    for operation in before:
        assert not objection(operation, example.session, example.shape)
        example.play(operation)

    assert reason in objection(then, example.session, example.shape)
    example.end()


def test_a_driver_of_the_legacy_interface_accepts_any_layout():
    target = maker("model-pci-legacy", {})(Settings())
    hunt = Hunt(target, deadline=5.0)
    try:
        example = hunt.legal(Plug(capacity=2048))
        start = Start(features=example.shape.required, sizes=example.shape.largest)
        without = [name for name in start.features if name != "ANY_LAYOUT"]

        assert not objection(start, example.session, example.shape)
        assert objection(replace(start, features=tuple(without)), example.session, example.shape)
        assert len(without) < len(start.features)
        example.end()
    finally:
        hunt.drop()
        target.close()


def test_all_that_is_drawn_is_legal(hunt, monkeypatch):
    play, kinds = Example.play, set()

    def play_and_look(example, operation):
        assert isinstance(example.session, Session)
        if example.finding is None:
            assert not objection(operation, example.session, example.shape), operation
            kinds.add(type(operation))
        play(example, operation)

    monkeypatch.setattr(Example, "play", play_and_look)

    for number, plug in enumerate(rounds.LEGAL_DISKS):
        assert rounds.run(hunt, plug, number, 12, 20) == []
    assert {Start, Send, Collect, Resize, QueueReset, ReadConfig, WantInterrupts} <= kinds
    assert {Burst, Suppress, PauseMachine} <= kinds


def test_suppression_is_switched_on_after_any_number_of_chains(hunt):
    """One chain fills the ring, so the device's event position comes again after two of them."""
    read = Send(asks=(Read(sector=0, count=1),))
    for rounds_before in range(5):
        example = hunt.legal(replace(DISK, packed=True))
        example.play(Start(features=("VERSION_1", "RING_PACKED", "EVENT_IDX"), sizes=(3,)))
        for _ in range(rounds_before):
            example.play(read)
            example.play(Collect(count=1))
        example.play(Suppress(enabled=True))
        for _ in range(4):
            example.play(read)
            example.play(Collect(count=1))
        example.end()
        assert example.finding is None


def test_a_finding_is_cut_to_what_is_still_legal(hunt):
    """Keep the resize in a cut script: without it the write beyond the first capacity may fail."""

    def spoil(driver):
        complete, submit = driver.complete, driver.submit
        beyond = set()

        def failing(requests, queue=0):
            tokens = submit(requests, queue)
            beyond.update(
                token
                for token, item in zip(tokens, requests, strict=True)
                if item.type == RequestType.OUT and item.sector >= 2048
            )
            return tokens

        def failed(tokens, timeout=10.0):
            return [
                replace(item, status=Status.IOERR) if token in beyond else item
                for token, item in zip(tokens, complete(tokens, timeout), strict=True)
            ]

        driver.submit, driver.complete = failing, failed

    def wrap(disk):
        spoil(disk.driver)
        return disk

    hunt.wrap = wrap
    resize = Resize(capacity=4096)
    write = Write(sector=3000, count=1)
    example = hunt.legal(DISK)
    with pytest.raises(Finding):
        for operation in (
            START,
            Send(asks=(Read(sector=0, count=1),)),
            resize,
            ReadConfig(),
            Send(asks=(Read(sector=0, count=1), write), queue=1),
            Collect(count=3),
            ReadConfig(),
        ):
            example.play(operation)
    example.end()

    (found,) = hunt.settle()

    assert found.again
    assert found.script == (DISK, START, resize, Send(asks=(write,), queue=1))
