"""What a random run does to a device: plain data, so that it can be saved and done again.

Sectors are 512 bytes, lengths bytes. What a write writes is not part of it: that follows from
its place in the script (see `contents`).
"""

from __future__ import annotations

from dataclasses import dataclass

from harness.virtio.blk import ID_LENGTH, REQUEST_HEADER, SECTOR, SEGMENT


@dataclass(frozen=True, kw_only=True)
class Ask:
    """A request. `readable` and `writable` cut it into descriptors as `driver.Request` says."""

    readable: tuple[int, ...] = ()
    writable: tuple[int, ...] = ()
    indirect: bool = False

    @property
    def sent(self) -> int:
        """Bytes that the device reads: header and data."""
        return REQUEST_HEADER.size

    @property
    def received(self) -> int:
        """Bytes that the device writes before the status byte."""
        return 0

    @property
    def pieces(self) -> int:
        """Buffers that it is cut into."""
        usual = 2 if self.sent > REQUEST_HEADER.size else 1
        return (len(self.readable) or usual) + (len(self.writable) or (2 if self.received else 1))

    @property
    def descriptors(self) -> int:
        """Descriptors of the virtqueue that it takes."""
        return 1 if self.indirect else self.pieces

    @property
    def places(self) -> tuple[tuple[int, int], ...]:
        """The stretches of the disk that it is about: first sector, number of sectors."""
        return ()


@dataclass(frozen=True, kw_only=True)
class Read(Ask):
    """IN."""

    sector: int
    count: int

    @property
    def received(self) -> int:
        """The sectors."""
        return self.count * SECTOR

    @property
    def places(self) -> tuple[tuple[int, int], ...]:
        """The sectors."""
        return ((self.sector, self.count),)


@dataclass(frozen=True, kw_only=True)
class Write(Ask):
    """OUT."""

    sector: int
    count: int

    @property
    def sent(self) -> int:
        """Header and sectors."""
        return REQUEST_HEADER.size + self.count * SECTOR

    @property
    def places(self) -> tuple[tuple[int, int], ...]:
        """The sectors."""
        return ((self.sector, self.count),)


@dataclass(frozen=True, kw_only=True)
class Flush(Ask):
    """FLUSH."""


@dataclass(frozen=True, kw_only=True)
class GetId(Ask):
    """GET_ID."""

    @property
    def received(self) -> int:
        """The id string."""
        return ID_LENGTH


@dataclass(frozen=True, kw_only=True)
class Discard(Ask):
    """DISCARD of segments: first sector, number of sectors."""

    segments: tuple[tuple[int, int], ...]

    @property
    def sent(self) -> int:
        """Header and segments."""
        return REQUEST_HEADER.size + SEGMENT.size * len(self.segments)

    @property
    def places(self) -> tuple[tuple[int, int], ...]:
        """The segments."""
        return self.segments


@dataclass(frozen=True, kw_only=True)
class WriteZeroes(Ask):
    """WRITE_ZEROES of segments, all with the UNMAP flag or none."""

    segments: tuple[tuple[int, int], ...]
    unmap: bool = False

    @property
    def sent(self) -> int:
        """Header and segments."""
        return REQUEST_HEADER.size + SEGMENT.size * len(self.segments)

    @property
    def places(self) -> tuple[tuple[int, int], ...]:
        """The segments."""
        return self.segments


@dataclass(frozen=True)
class Operation:
    """One step of a script."""


@dataclass(frozen=True, kw_only=True)
class Plug(Operation):
    """Always the first: a new disk. The fields are those of `DiskSpec`."""

    capacity: int
    queues: int | None = None
    queue_size: int | None = None
    packed: bool | None = None
    iops: int | None = None
    serial: str | None = None


@dataclass(frozen=True, kw_only=True)
class Start(Operation):
    """Reset the device, whatever is in flight, and initialise it (virtio 3.1.1).

    `features` are names; `sizes` are the descriptors of each virtqueue; `vectors` those of
    MSI-X, 0 for INTx, None to leave that as it is.
    """

    features: tuple[str, ...]
    sizes: tuple[int, ...]
    vectors: int | None = None


@dataclass(frozen=True, kw_only=True)
class Send(Operation):
    """Make requests available together, with one notification."""

    asks: tuple[Ask, ...]
    queue: int = 0


@dataclass(frozen=True, kw_only=True)
class Collect(Operation):
    """Wait for the oldest requests that were sent and not collected, and check them."""

    count: int


@dataclass(frozen=True, kw_only=True)
class Resize(Operation):
    """Another capacity, live."""

    capacity: int


@dataclass(frozen=True, kw_only=True)
class CacheMode(Operation):
    """Write the field `writeback` (CONFIG_WCE)."""

    writeback: bool


@dataclass(frozen=True, kw_only=True)
class WantInterrupts(Operation):
    """From the next request on, ask a virtqueue for used buffer notifications, or for none."""

    wanted: bool
    queue: int = 0


@dataclass(frozen=True, kw_only=True)
class ReadConfig(Operation):
    """Read the configuration space, and compare it with what is known."""


@dataclass(frozen=True, kw_only=True)
class QueueReset(Operation):
    """Reset one virtqueue, whatever is in flight there, and set it up anew (virtio 2.6.1)."""

    size: int
    queue: int = 0
