"""Operations of a random run on a device: plain data, so that they can be saved and repeated.

Sectors are 512 bytes, lengths are in bytes. The data of a write is not stored: it follows from the
write's place in the script (see `contents`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from harness.inputs import Check, at_most, matching, within
from harness.virtio.blk import ID_LENGTH, REQUEST_HEADER, SECTOR, SEGMENT
from harness.virtio.features import Feature

MOST_SECTORS = 1 << 18
"""Sectors of a disk: a session compares all of them."""

Capacity = Annotated[int, within(1, MOST_SECTORS)]
Sector = Annotated[int, within(0, (1 << 64) - 1)]
Count = Annotated[int, within(1, MOST_SECTORS)]
Length = Annotated[int, within(1, (1 << 32) - 1)]
Lengths = Annotated[tuple[Length, ...], at_most(1024)]
Segments = Annotated[tuple[tuple[Sector, Count], ...], at_most(256)]
Size = Annotated[int, within(1, 1 << 15)]
Queue = Annotated[int, within(0, (1 << 16) - 1)]
FeatureName = Annotated[
    str, Check("the name of a feature, like BLK_FLUSH", lambda name: name in Feature.__members__)
]


@dataclass(frozen=True, kw_only=True)
class Ask:
    """A request. `readable` and `writable` divide it into descriptors as in `driver.Request`."""

    readable: Lengths = ()
    writable: Lengths = ()
    indirect: bool = False

    @property
    def sent(self) -> int:
        """Return the bytes that the device reads: header and data."""
        return REQUEST_HEADER.size

    @property
    def received(self) -> int:
        """Return the bytes that the device writes before the status byte."""
        return 0

    @property
    def pieces(self) -> int:
        """Return the number of buffers of the request."""
        default = 2 if self.sent > REQUEST_HEADER.size else 1
        return (len(self.readable) or default) + (len(self.writable) or (2 if self.received else 1))

    @property
    def descriptors(self) -> int:
        """Return the number of the virtqueue's descriptors that the request takes."""
        return 1 if self.indirect else self.pieces

    @property
    def places(self) -> tuple[tuple[int, int], ...]:
        """Return the ranges of the disk that the request uses: first sector, number of sectors."""
        return ()


@dataclass(frozen=True, kw_only=True)
class Read(Ask):
    """A read (IN)."""

    sector: Sector
    count: Count

    @property
    def received(self) -> int:
        """Return the length of the sectors."""
        return self.count * SECTOR

    @property
    def places(self) -> tuple[tuple[int, int], ...]:
        """Return the range of the sectors."""
        return ((self.sector, self.count),)


@dataclass(frozen=True, kw_only=True)
class Write(Ask):
    """A write (OUT)."""

    sector: Sector
    count: Count

    @property
    def sent(self) -> int:
        """Return the length of header and sectors."""
        return REQUEST_HEADER.size + self.count * SECTOR

    @property
    def places(self) -> tuple[tuple[int, int], ...]:
        """Return the range of the sectors."""
        return ((self.sector, self.count),)


@dataclass(frozen=True, kw_only=True)
class Flush(Ask):
    """A FLUSH."""


@dataclass(frozen=True, kw_only=True)
class GetId(Ask):
    """A GET_ID."""

    @property
    def received(self) -> int:
        """Return the length of the id string."""
        return ID_LENGTH


@dataclass(frozen=True, kw_only=True)
class Discard(Ask):
    """A DISCARD of segments: first sector, number of sectors."""

    segments: Segments

    @property
    def sent(self) -> int:
        """Return the length of header and segments."""
        return REQUEST_HEADER.size + SEGMENT.size * len(self.segments)

    @property
    def places(self) -> tuple[tuple[int, int], ...]:
        """Return the segments."""
        return self.segments


@dataclass(frozen=True, kw_only=True)
class WriteZeroes(Ask):
    """A WRITE_ZEROES of segments, all with the UNMAP flag or none."""

    segments: Segments
    unmap: bool = False

    @property
    def sent(self) -> int:
        """Return the length of header and segments."""
        return REQUEST_HEADER.size + SEGMENT.size * len(self.segments)

    @property
    def places(self) -> tuple[tuple[int, int], ...]:
        """Return the segments."""
        return self.segments


@dataclass(frozen=True)
class Operation:
    """One step of a script."""


@dataclass(frozen=True, kw_only=True)
class Plug(Operation):
    """Plug a new disk; always the first operation. The fields are those of `DiskSpec`."""

    capacity: Capacity
    queues: Annotated[int, within(1, 256)] | None = None
    queue_size: Size | None = None
    packed: bool | None = None
    iops: Annotated[int, within(1, 10**9)] | None = None
    serial: Annotated[str, matching(r"[ -~]{0,20}", "up to 20 ASCII characters")] | None = None


@dataclass(frozen=True, kw_only=True)
class Start(Operation):
    """Reset the device, whatever is in flight, and initialise it (virtio 3.1.1).

    `features` are names; `sizes` are the descriptors of each virtqueue; `vectors` is the number of
    MSI-X vectors, 0 for INTx, None to leave it as it is.
    """

    features: Annotated[tuple[FeatureName, ...], at_most(64)]
    sizes: Annotated[tuple[Size, ...], Check("1 to 256 sizes", lambda sizes: 0 < len(sizes) <= 256)]
    vectors: Annotated[int, within(0, 2048)] | None = None


@dataclass(frozen=True, kw_only=True)
class Send(Operation):
    """Make requests available together, with one notification."""

    asks: Annotated[tuple[Ask, ...], at_most(256)]
    queue: Queue = 0


@dataclass(frozen=True, kw_only=True)
class Collect(Operation):
    """Wait for the oldest requests that were sent and not collected, and check them."""

    count: Annotated[int, within(0, 1 << 16)]


@dataclass(frozen=True, kw_only=True)
class Burst(Operation):
    """Send `count` requests of one sector one by one, and then collect everything.

    Every third is a read, the others write. They use `span` sectors from `sector` on, in turn, so
    several in flight may overlap. At most `together` of the burst are in flight.
    """

    sector: Sector
    count: Annotated[int, within(1, 1024)]
    span: Annotated[int, within(1, 64)] = 8
    together: Annotated[int, within(1, 48)] = 8
    queue: Queue = 0


@dataclass(frozen=True, kw_only=True)
class Suppress(Operation):
    """Switch notification suppression on or off until the next Start.

    With it the driver notifies the device only when that asks for it, and with EVENT_IDX asks for
    an interrupt at the next used chain.
    """

    enabled: bool


@dataclass(frozen=True, kw_only=True)
class PauseMachine(Operation):
    """Stop all that carries the device for some milliseconds, whatever is in flight."""

    milliseconds: Annotated[int, within(0, 1000)]


@dataclass(frozen=True, kw_only=True)
class Resize(Operation):
    """Change the capacity, in sectors, while the device runs."""

    capacity: Capacity


@dataclass(frozen=True, kw_only=True)
class CacheMode(Operation):
    """Write the field `writeback` (CONFIG_WCE)."""

    writeback: bool


@dataclass(frozen=True, kw_only=True)
class WantInterrupts(Operation):
    """Enable or disable used buffer notifications of a virtqueue from the next request on."""

    wanted: bool
    queue: Queue = 0


@dataclass(frozen=True, kw_only=True)
class ReadConfig(Operation):
    """Read the configuration space, and compare it with the expected values."""


@dataclass(frozen=True, kw_only=True)
class QueueReset(Operation):
    """Reset one virtqueue, whatever is in flight there, and set it up again (virtio 2.6.1)."""

    size: Size
    queue: Queue = 0
