"""Defects of the packed virtqueue (virtio 2.8)."""

from __future__ import annotations

from harness.model.defects.registry import Original, defect
from harness.model.packed import PackedRing
from harness.model.ring import Chain
from harness.virtio.ring import (
    DESC_SIZE,
    EVENT_SUPPRESSION,
    PACKED_DESC,
    PACKED_DESC_F_AVAIL,
    PACKED_DESC_F_USED,
    RING_EVENT_FLAGS_DESC,
    RING_EVENT_FLAGS_DISABLE,
)


@defect(PackedRing.use, "2.8.15-D-01a", text="packed: a request's header is overwritten")
def packed_readable_buffer_written(
    original: Original, ring: PackedRing, chain: Chain, length: int
) -> None:
    chain.readable[0][:1] = b"\xee"
    original(ring, chain, length)


@defect(
    PackedRing.available,
    "2.8.15-D-02",
    text="packed: a descriptor with an address counts as available, whatever its flags are",
)
def flags_of_a_descriptor_ignored(original: Original, ring: PackedRing, position: int) -> bool:
    at = DESC_SIZE * (position % ring.size)
    address, _, _, flags = PACKED_DESC.unpack_from(ring._ring, at)
    fresh = not flags & (PACKED_DESC_F_AVAIL | PACKED_DESC_F_USED)
    return bool(original(ring, position)) or (address != 0 and fresh)


@defect(
    PackedRing.available,
    "2.8.15-D-02",
    "2.8.1-P-01",
    text="packed: the device ignores the wrap counter when it looks for available descriptors",
)
def wrap_counter_ignored(original: Original, ring: PackedRing, position: int) -> bool:
    return bool(original(ring, position)) or bool(original(ring, position + ring.size))


@defect(
    PackedRing.use,
    "2.8.15-D-03",
    text="packed: the length of a used descriptor is set to 0 when the next one is used",
)
def used_descriptor_changed(
    original: Original, ring: PackedRing, chain: Chain, length: int
) -> None:
    original(ring, chain, length)
    if (last := vars(ring).get("last")) is not None:
        ring.table.write_used(last[0], 0, last[1])
    vars(ring)["last"] = (ring._used - chain.slots) % ring.size, chain.id


@defect(
    PackedRing.take,
    "2.8.18-D-01",
    text="packed: the first two device-readable elements of a chain are swapped",
)
def elements_out_of_order(original: Original, ring: PackedRing) -> Chain | None:
    chain: Chain | None = original(ring)
    if chain and len(chain.readable) > 2:
        chain.readable[0], chain.readable[1] = chain.readable[1], chain.readable[0]
    return chain


@defect(
    PackedRing.take,
    "2.8.18-D-01",
    text="packed: the first two device-writable elements of a chain are swapped",
)
def writable_elements_out_of_order(original: Original, ring: PackedRing) -> Chain | None:
    chain: Chain | None = original(ring)
    if chain and len(chain.writable) > 2:
        chain.writable[0], chain.writable[1] = chain.writable[1], chain.writable[0]
    return chain


@defect(
    PackedRing.take,
    "2.8.1-P-01",
    text="packed: a chain across the ring's end loses its device-readable elements",
)
def chain_across_the_rings_end(original: Original, ring: PackedRing) -> Chain | None:
    chain: Chain | None = original(ring)
    if chain and chain.position % ring.size + chain.slots > ring.size:
        chain.readable.clear()
    return chain


@defect(
    PackedRing.take,
    "2.8.10.1-P-01",
    text="packed: a queue whose size is not a power of 2 serves nothing",
)
def size_has_to_be_a_power_of_2(original: Original, ring: PackedRing) -> Chain | None:
    chain: Chain | None = original(ring)
    if chain and ring.size & (ring.size - 1):
        chain.readable.clear()
    return chain


@defect(
    PackedRing.use,
    "2.8.4-P-01",
    text="packed: the used length of every request is 512 too high",
)
def packed_used_length_too_long(
    original: Original, ring: PackedRing, chain: Chain, length: int
) -> None:
    original(ring, chain, length + 512)


@defect(
    PackedRing.use,
    "2.8.21-P-01",
    text="packed: every 8th chain is never used",
)
def packed_chain_lost(original: Original, ring: PackedRing, chain: Chain, length: int) -> None:
    used = vars(ring)["used"] = vars(ring).get("used", 0) + 1
    if used % 8:
        original(ring, chain, length)


@defect(
    PackedRing.wanted,
    "2.8.10-P-03",
    text="packed: interrupts are sent although the driver disabled them",
)
def packed_disable_ignored(original: Original, ring: PackedRing, old: int, new: int) -> bool:
    _, flags = EVENT_SUPPRESSION.unpack(ring._driver)
    return flags == RING_EVENT_FLAGS_DISABLE or bool(original(ring, old, new))


@defect(
    PackedRing.wanted,
    "2.8.10-P-03",
    "2.8.10-P-02",
    text="packed: every 4th interrupt is lost",
)
def packed_interrupt_lost(original: Original, ring: PackedRing, old: int, new: int) -> bool:
    asked = vars(ring)["interrupts_asked"] = vars(ring).get("interrupts_asked", 0) + 1
    return asked % 4 != 0 and bool(original(ring, old, new))


@defect(
    PackedRing.wanted,
    "2.8.10-P-02",
    text="packed: the event for one descriptor comes in any round of the ring",
)
def packed_event_in_any_round(original: Original, ring: PackedRing, old: int, new: int) -> bool:
    return bool(original(ring, old, new)) or bool(original(ring, old + ring.size, new + ring.size))


@defect(
    PackedRing.wanted,
    "2.8.10-P-02",
    text="packed: the event for one descriptor never comes",
)
def packed_event_never(original: Original, ring: PackedRing, old: int, new: int) -> bool:
    _, flags = EVENT_SUPPRESSION.unpack(ring._driver)
    return flags != RING_EVENT_FLAGS_DESC and bool(original(ring, old, new))


@defect(
    PackedRing.want_kicks,
    "2.8.10-P-01",
    text="packed: the device disables notifications, and then misses available descriptors",
)
def packed_kicks_not_wanted(original: Original, ring: PackedRing) -> None:
    ring._device[1] = RING_EVENT_FLAGS_DISABLE
