"""Illegal behaviour of the model, for the hardening of drivers.

Each behaviour breaks a rule for devices, or shows a value that no device can mean, in a way that a
driver can notice and that could harm it: it would reach memory beyond an array, never end, or take
data that is not there. They are not for devices under test.

A behaviour of the used ring begins with the third buffer, so that a driver gets as far as its first
requests. An observer gets an event "illegal" each time.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from harness.model.block import Block
from harness.model.device import Device
from harness.model.packed import PackedRing
from harness.model.pci.function import Function
from harness.model.pci.registers import Register
from harness.model.queue import Job, Queue
from harness.model.request import Request
from harness.model.ring import Ring
from harness.model.split import SplitRing
from harness.model.whims.registry import Original, replace_method
from harness.virtio.blk import Status
from harness.virtio.ring import DESC, DESC_F_NEXT, DESC_F_WRITE, DESC_SIZE, PACKED_DESC

FIRST, EVERY = 3, 2
"""Buffers of a virtqueue, counted from 1, that are used in an illegal way: 3, 5, 7..."""

INTERRUPT_PAUSE = 0.001
"""Seconds between two interrupts of a device that does not stop to interrupt."""

CHANCE = 0.3
"""Probability that a random device does something illegal when it uses a buffer."""

SEEDS = range(1, 9)

Use = Callable[[Original, Queue, Ring, Job], None]
"""A way to use a buffer: it may call the original, which uses it as it has to be."""


@dataclass(frozen=True)
class Illegal:
    """A behaviour: its name, the section whose rule it breaks, and what the device does.

    `parts` are methods of the model with their replacements, which get the original first. `shown`
    says that an observer gets an event "illegal" each time. `pci` says that only a driver of the
    PCI function sees it: a vhost-user front-end has registers of its own.
    """

    name: str
    section: str
    text: str
    parts: tuple[tuple[Callable[..., Any], Callable[..., Any]], ...] = field(repr=False)
    shown: bool = False
    pci: bool = False

    def apply(self) -> None:
        """Put it into this process."""
        for method, change in self.parts:
            replace_method(method, change)


ILLEGAL: dict[str, Illegal] = {}


def _file(
    name: str,
    section: str,
    text: str,
    *parts: tuple[Callable[..., Any], Callable[..., Any]],
    shown: bool = False,
    pci: bool = False,
) -> None:
    assert name not in ILLEGAL, name
    ILLEGAL[name] = Illegal(name, section, text, parts, shown, pci)


def _shown(queue: Queue, name: str) -> None:
    if queue._observer:
        queue._observer("illegal", name=name)


# --- the used ring

_turns: WeakKeyDictionary[Queue, int] = WeakKeyDictionary()
_started: WeakSet[Queue] = WeakSet()
USES: dict[str, Use] = {}
ANOTHER_QUEUE = "used-on-another-queue"
"""The behaviour that needs a second virtqueue."""


def _use(section: str, text: str) -> Callable[[Use], Use]:
    """File a way to use every second buffer, from the third one on."""

    def decorate(use: Use) -> Use:
        name = use.__name__.strip("_").replace("_", "-")

        def change(original: Original, queue: Queue, ring: Ring, job: Job) -> None:
            turn = _turns[queue] = _turns.get(queue, 0) + 1
            if turn < FIRST or (turn - FIRST) % EVERY:
                original(queue, ring, job)
                return
            if name != ANOTHER_QUEUE or _another(queue):
                _shown(queue, name)
            use(original, queue, ring, job)

        USES[name] = use
        _file(name, section, text, (Queue.use, change), (Queue.start, _note_start), shown=True)
        return use

    return decorate


def _note_start(original: Original, queue: Queue, *arguments: Any) -> None:
    original(queue, *arguments)
    _started.add(queue)


def _another(queue: Queue) -> Queue | None:
    """Return another virtqueue that has been started, or None."""
    return next((other for other in _started if other is not queue and other.ring), None)


def _with(original: Original, queue: Queue, ring: Ring, job: Job, **changed: Any) -> None:
    """Use a buffer with another id or length."""
    chain = replace(job.chain, id=changed.get("id", job.chain.id))
    original(queue, ring, replace(job, chain=chain, length=changed.get("length", job.length)))


@_use("2.7.8", "a buffer is used with an id beyond the virtqueue")
def used_id_beyond_the_queue(original: Original, queue: Queue, ring: Ring, job: Job) -> None:
    _with(original, queue, ring, job, id=0xFFF0)


@_use("2.7.8", "a buffer is used with an id of which the driver has made nothing available")
def used_id_of_nothing(original: Original, queue: Queue, ring: Ring, job: Job) -> None:
    taken = {job.chain.id, *(other.chain.id for other in queue._jobs)}
    _with(original, queue, ring, job, id=next(n for n in range(ring.size) if n not in taken))


@_use("2.7.8", "a used length is 4294967295")
def used_length_beyond_the_buffer(original: Original, queue: Queue, ring: Ring, job: Job) -> None:
    _with(original, queue, ring, job, length=0xFFFF_FFFF)


@_use("2.7.8", "a buffer is used twice")
def used_twice(original: Original, queue: Queue, ring: Ring, job: Job) -> None:
    original(queue, ring, job)
    original(queue, ring, job)


@_use("2.7.8", "a buffer is never used")
def used_never(original: Original, queue: Queue, ring: Ring, job: Job) -> None:
    del original, queue, ring, job


@_use("2.7.8", "a buffer is used on another virtqueue")
def used_on_another_queue(original: Original, queue: Queue, ring: Ring, job: Job) -> None:
    other = _another(queue)
    if other and other.ring:
        original(other, other.ring, job)
        other.notify()
    else:
        original(queue, ring, job)


@_use("2.7.8", "the used index jumps ahead; packed: descriptors are left out")
def used_index_jumps(original: Original, queue: Queue, ring: Ring, job: Job) -> None:
    original(queue, ring, job)
    if isinstance(ring, SplitRing):
        ring._used[1] = (ring._used[1] + ring.size + 3) & 0xFFFF
    elif isinstance(ring, PackedRing):
        ring._used += 3


@_use("2.7.8", "the used index goes back; packed: a buffer is used in the place of another one")
def used_index_goes_back(original: Original, queue: Queue, ring: Ring, job: Job) -> None:
    original(queue, ring, job)
    if isinstance(ring, SplitRing):
        ring._used[1] = (ring._used[1] - 2) & 0xFFFF
    elif isinstance(ring, PackedRing):
        ring._used -= 2 * job.chain.slots


@_use("2.7.5.1", "the descriptors of a buffer are rewritten before it is used")
def descriptors_rewritten(original: Original, queue: Queue, ring: Ring, job: Job) -> None:
    if isinstance(ring, SplitRing):
        for slot in range(ring.size):
            loop = DESC.pack(0xDEAD_0000, 0xFFFF_FFFF, DESC_F_NEXT | DESC_F_WRITE, 0xFFFE)
            ring._desc[DESC_SIZE * slot : DESC_SIZE * (slot + 1)] = loop
    elif isinstance(ring, PackedRing):
        for number in range(job.chain.slots):
            at = DESC_SIZE * ((job.chain.position + number) % ring.size)
            flags = PACKED_DESC.unpack_from(ring._ring, at)[3]
            PACKED_DESC.pack_into(ring._ring, at, 0xDEAD_0000, 0xFFFF_FFFF, 0xFFFE, flags)
    original(queue, ring, job)


@_use("2.7.6", "the available ring, or the driver's event suppression area, is overwritten")
def driver_area_overwritten(original: Original, queue: Queue, ring: Ring, job: Job) -> None:
    if isinstance(ring, SplitRing):
        for place in range(len(ring._avail)):
            if place != 1:  # the model itself needs the index
                ring._avail[place] = 0xFFFF
    elif isinstance(ring, PackedRing):
        ring._driver[0] = 0xFFFF_FFFF
    original(queue, ring, job)


def _random(seed: int) -> None:
    chance = random.Random(seed)
    name = f"random-{seed}"

    def change(original: Original, queue: Queue, ring: Ring, job: Job) -> None:
        turn = _turns[queue] = _turns.get(queue, 0) + 1
        if turn < FIRST or chance.random() > CHANCE:
            original(queue, ring, job)
            return
        chosen = chance.choice(sorted(USES))
        _shown(queue, f"{name}: {chosen}")
        USES[chosen](original, queue, ring, job)

    text = f"chance decides what is wrong with a buffer when it is used, seed {seed}"
    _file(name, "2.7.8", text, (Queue.use, change), (Queue.start, _note_start), shown=True)


for _seed in SEEDS:
    _random(_seed)


# --- requests and notifications


def _undefined_status(original: Original, request: Request, status: Status) -> int:
    del status
    return int(original(request, 0xAB))


_file(
    "status-byte-undefined",
    "5.2.6",
    "the status byte of every request is 0xAB",
    (Request.end, _undefined_status),
)


def _interrupts(original: Original, queue: Queue, *arguments: Any) -> None:
    original(queue, *arguments)
    ring = queue.ring

    def interrupt() -> None:
        if queue.ring is ring and ring is not None:
            queue.notify()
            queue._loop.at(time.monotonic() + INTERRUPT_PAUSE, interrupt)

    _shown(queue, "interrupts-without-end")
    interrupt()


_file(
    "interrupts-without-end",
    "2.7.7",
    "the device interrupts every millisecond, whether it has used a buffer or not",
    (Queue.start, _interrupts),
    shown=True,
)


# --- the configuration


def _fields(name: str, text: str, **values: int) -> None:
    """File a device whose configuration has these values."""

    def change(original: Original, block: Block) -> dict[str, int]:
        return {**original(block), **values}

    _file(name, "5.2.4", text, (Block.fields, change))


_fields("capacity-of-all-bits", "the capacity is 2^64 - 1 sectors", capacity=(1 << 64) - 1)
_fields("blk-size-0", "blk_size is 0", blk_size=0)
_fields("blk-size-of-7-bytes", "blk_size is 7", blk_size=7)
_fields("blk-size-of-all-bits", "blk_size is 2^32 - 1", blk_size=(1 << 32) - 1)
_fields("seg-max-0", "seg_max is 0", seg_max=0)
_fields("seg-max-of-all-bits", "seg_max is 2^32 - 1", seg_max=(1 << 32) - 1)
_fields("size-max-0", "size_max is 0", size_max=0)
_fields("num-queues-0", "num_queues is 0", num_queues=0)
_fields("num-queues-of-all-bits", "num_queues is 65535", num_queues=0xFFFF)
_fields(
    "discard-limits-0",
    "the limits of discard and write zeroes are 0",
    max_discard_sectors=0,
    max_discard_seg=0,
    max_write_zeroes_sectors=0,
    max_write_zeroes_seg=0,
    discard_sector_alignment=0,
)
_fields("exponents-too-large", "physical_block_exp is 255", physical_block_exp=255)

_reads = count()


def _other_configuration(original: Original, block: Block) -> dict[str, int]:
    fields: dict[str, int] = original(block)
    shift = 8 * (next(_reads) % 8)
    return {**fields, "capacity": fields["capacity"] << shift & (1 << 64) - 1}


_file(
    "configuration-of-every-read",
    "2.5.3",
    "the capacity is another one at every read, and the generation stays",
    (Block.fields, _other_configuration),
)


def _other_generation(original: Original, device: Device) -> int:
    original(device)
    return next(_reads) & 0xFF


_file(
    "generation-of-every-read",
    "2.5.3",
    "the config generation is another one at every read",
    (Device.read_generation, _other_generation),
    pci=True,
)


# --- registers of a PCI function


def _register(name: str, section: str, text: str, register: str, value: int) -> None:
    """File a device one of whose registers always reads as a value."""

    def change(original: Original, function: Function) -> dict[str, Register]:
        registers: dict[str, Register] = original(function)
        return {**registers, register: replace(registers[register], read=lambda: value)}

    _file(name, section, text, (Function._common_registers, change), pci=True)


_register("queue-size-of-3", "4.1.4.3", "queue_size is 3", "queue_size", 3)
_register("queue-size-of-65535", "4.1.4.3", "queue_size is 65535", "queue_size", 0xFFFF)
_register("no-queue-has-a-size", "4.1.4.3", "queue_size is 0", "queue_size", 0)
_register(
    "notify-offset-beyond-the-bar",
    "4.1.4.4",
    "queue_notify_off is 65535",
    "queue_notify_off",
    0xFFFF,
)
_register("num-queues-register-0", "4.1.4.3", "num_queues is 0", "num_queues", 0)
_register("status-of-all-bits", "2.1", "the device status reads as 0xFF", "device_status", 0xFF)


# --- the device status


def _never_reset(original: Original, device: Device) -> None:
    original(device)
    device.status = 0x20


_file(
    "reset-never-ends",
    "2.4",
    "the device status never reads as 0 after a reset",
    (Device.reset, _never_reset),
    pci=True,
)
