"""The block device: features, configuration space and requests (virtio 5.2)."""

from __future__ import annotations

from collections.abc import Callable

from harness.diskspec import SECTOR, DiskSpec
from harness.model.request import Request
from harness.model.storage import Storage
from harness.virtio.blk import (
    CONFIG_FIELDS,
    CONFIG_SIZE,
    ID_LENGTH,
    LIFETIME,
    LIFETIME_EST_MOST,
    PRE_EOL_INFO_MOST,
    REQUEST_FLAG_FUA,
    SCSI_RESULT,
    SCSI_SENSE,
    SCSI_TYPES,
    SEGMENT,
    SEGMENT_UNMAP,
    RequestType,
    Status,
)
from harness.virtio.features import Feature, mask

SERIAL = "vblk-model"
SEG_MAX = 126
SIZE_MAX = 1 << 20
MAX_SEGMENTS = 16
MAX_DISCARD = 1 << 22
MAX_WRITE_ZEROES = 1 << 16
"""Sectors. Zeroes are really written, unless the driver allows the device to deallocate."""

TEST_UNIT_READY, INQUIRY = 0x00, 0x12
"""Operation codes of the SCSI commands that a disk with `scsi` executes."""

INQUIRY_DATA = bytes([0x00, 0x00, 0x05, 0x02, 31, 0, 0, 0]) + b"vblk    model           1.0 "
"""A disk, SPC-3, format 2, and the names of vendor, product and revision."""

CHECK_CONDITION = 0x02
INVALID_COMMAND = bytes([0x70, 0, 0x05, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x20, 0, 0, 0, 0, 0])
"""Status of a SCSI command that failed, and the sense data for an unknown operation code."""

WRITEBACK = next(field for field in CONFIG_FIELDS if field.name == "writeback")


class Block:
    """One device.

    `reset` returns it to its first state, but keeps the disk's contents.

    Raise ValueError for a `spec` that no device can have.
    """

    def __init__(self, spec: DiskSpec, storage: Storage) -> None:
        self.spec = spec
        self.storage = storage
        self.capacity = spec.capacity
        self.queues = spec.queues or 1
        self.block_size = _block_size(spec.logical_block_size or SECTOR)
        self.physical_size = _block_size(spec.physical_block_size or self.block_size)
        if self.physical_size < self.block_size:
            raise ValueError("physical_block_size below logical_block_size")
        adjusted = spec.seg_max_adjust is not False and spec.queue_size is not None
        self.seg_max = max((spec.queue_size or 0) - 2, 1) if adjusted else SEG_MAX
        self.reset()

    def reset(self) -> None:
        """Forget everything that the driver has set."""
        self.features = 0
        self.legacy = False
        self.writeback = self.spec.write_cache is not False

    # --- features (virtio 2.2, 5.2.3)

    def offered(self) -> int:
        """Return the feature bits that the device offers."""
        spec = self.spec
        offers = (
            (Feature.VERSION_1, True),
            (Feature.INDIRECT_DESC, spec.indirect_desc is not False),
            (Feature.EVENT_IDX, spec.event_idx is not False),
            (Feature.RING_PACKED, spec.packed is not False),
            (Feature.IN_ORDER, spec.in_order is not False),
            (Feature.RING_RESET, True),
            (Feature.SUSPEND, True),
            (Feature.BLK_SIZE_MAX, True),
            (Feature.BLK_SEG_MAX, True),
            (Feature.BLK_GEOMETRY, True),
            (Feature.BLK_RO, spec.read_only),
            (Feature.BLK_BLK_SIZE, True),
            (Feature.BLK_FLUSH, True),
            (Feature.BLK_TOPOLOGY, True),
            (Feature.BLK_CONFIG_WCE, spec.config_wce is not False),
            (Feature.BLK_MQ, self.queues > 1),
            (Feature.BLK_DISCARD, spec.discard is not False),
            (Feature.BLK_WRITE_ZEROES, spec.write_zeroes is not False),
            (Feature.BLK_LIFETIME, spec.lifetime is not None),
            (Feature.BLK_SECURE_ERASE, bool(spec.secure_erase)),
            (Feature.BLK_REQ_FLAGS, bool(spec.fua)),
            (Feature.BLK_REQ_FLAGS_OUT_FUA, bool(spec.fua)),
        )
        return mask(*(feature for feature, has in offers if has))

    def acceptable(self, features: int) -> bool:
        """Return True if the device can work with the features that the driver has chosen."""
        offered = self.offered()
        return not features & ~offered and not offered & ~features & Feature.VERSION_1.mask

    def accept(self, features: int, legacy: bool = False) -> None:
        """Take the driver's choice (virtio 5.2.5.2), which a legacy interface acts on later."""
        self.features = features
        self.legacy = legacy
        if legacy:
            return
        if self.has(Feature.BLK_CONFIG_WCE) and not self.has(Feature.BLK_FLUSH):
            self.writeback = False

    def has(self, feature: Feature) -> bool:
        """Return True if a feature was negotiated."""
        return bool(self.features & feature.mask)

    def zone_facts(self) -> dict[str, int]:
        """Return facts on the zones that the configuration does not have, for an observer."""
        return {}

    # --- configuration space (virtio 5.2.4)

    def fields(self) -> dict[str, int]:
        """Return the present values of the configuration's fields; a field without a value is 0."""
        spec = self.spec
        physical = self.physical_size // self.block_size
        alignment = self.block_size // SECTOR
        default = min(self.capacity // (16 * 63), 0xFFFF), 16, 63
        cylinders, heads, sectors = spec.geometry or default
        return {
            "capacity": self.capacity,
            "size_max": SIZE_MAX,
            "seg_max": self.seg_max,
            "cylinders": cylinders,
            "heads": heads,
            "sectors": sectors,
            "blk_size": self.block_size,
            "physical_block_exp": physical.bit_length() - 1,
            "min_io_size": (spec.min_io_size or 0) // self.block_size or physical,
            "opt_io_size": (spec.opt_io_size or 0) // self.block_size,
            "writeback": self.writeback,
            "num_queues": self.queues,
            "max_discard_sectors": spec.max_discard_sectors or MAX_DISCARD,
            "max_discard_seg": MAX_SEGMENTS,
            "discard_sector_alignment": alignment,
            "max_write_zeroes_sectors": spec.max_write_zeroes_sectors or MAX_WRITE_ZEROES,
            "max_write_zeroes_seg": MAX_SEGMENTS,
            "write_zeroes_may_unmap": int(spec.unmap),
            "max_secure_erase_sectors": MAX_DISCARD,
            "max_secure_erase_seg": MAX_SEGMENTS,
            "secure_erase_sector_alignment": alignment,
        }

    def config(self) -> bytes:
        """Return the whole configuration space; a field whose feature is not offered is 0."""
        space, offered, values = bytearray(CONFIG_SIZE), self.offered(), self.fields()
        for field in CONFIG_FIELDS:
            if field.feature is None or offered & field.feature.mask:
                value = values.get(field.name, 0)
                at = slice(field.offset, field.offset + field.size)
                space[at] = value.to_bytes(field.size, "little")
        return bytes(space)

    def configure(self, offset: int, data: bytes, legacy: bool = False) -> bool:
        """Write a field. Return whether there is such a field that a driver may write.

        A legacy driver may write before it chooses features (virtio 3.1.2), in accesses of any
        width (virtio 4.1.4.10).
        """
        at = WRITEBACK.offset - offset
        if legacy and 0 <= at < len(data):
            offset, data = WRITEBACK.offset, data[at : at + 1]
        if offset != WRITEBACK.offset or data not in (b"\0", b"\1"):
            return False
        features = self.offered() if legacy else self.features
        if not features & Feature.BLK_CONFIG_WCE.mask:
            return False
        self.writeback = bool(data[0])
        return True

    def resize(self, capacity: int) -> None:
        """Set the capacity, in sectors. Raise OSError if that is impossible."""
        if self.spec.read_only:
            raise PermissionError("a read-only disk cannot be resized")
        self.storage.resize(capacity)
        self.capacity = capacity

    # --- requests (virtio 5.2.6)

    def takes_time(self, request: Request) -> bool:
        """Return True for a request that uses the storage, which may be throttled."""
        return request.type in (
            RequestType.IN,
            RequestType.OUT,
            RequestType.FLUSH,
            RequestType.DISCARD,
            RequestType.WRITE_ZEROES,
            RequestType.SECURE_ERASE,
        )

    def serve(self, request: Request) -> int:
        """Execute a request, write its status byte, and return the used length in bytes."""
        return request.end(self.execute(request))

    def execute(self, request: Request) -> Status:
        """Execute a request and return its status. The status byte is not written here."""
        if request.type is None:
            return Status.IOERR
        if request.type in SCSI_TYPES and self.legacy and self.spec.scsi:
            return self.scsi(request)
        kind = RequestType._value2member_map_.get(request.type)
        handler = self.handlers().get(kind) if isinstance(kind, RequestType) else None
        if handler is None:
            return Status.UNSUPP
        try:
            return handler(request)
        except OSError:
            return Status.IOERR

    def handlers(self) -> dict[RequestType, Callable[[Request], Status]]:
        """Return the handler for each supported type of request."""
        handlers: dict[RequestType, Callable[[Request], Status]] = {
            RequestType.IN: self.read,
            RequestType.OUT: self.write,
            RequestType.FLUSH: self.flush,
            RequestType.GET_ID: self.get_id,
        }
        if self.legacy:
            handlers[RequestType.FLUSH_OUT] = self.flush
        if self.has(Feature.BLK_DISCARD):
            handlers[RequestType.DISCARD] = self.discard
        if self.has(Feature.BLK_WRITE_ZEROES):
            handlers[RequestType.WRITE_ZEROES] = self.write_zeroes
        if self.has(Feature.BLK_SECURE_ERASE):
            handlers[RequestType.SECURE_ERASE] = self.secure_erase
        if self.has(Feature.BLK_LIFETIME):
            handlers[RequestType.GET_LIFETIME] = self.get_lifetime
        return handlers

    def within(self, sector: int, count: int) -> bool:
        """Return True if all these sectors are on the disk."""
        return sector + count <= self.capacity

    def read_only(self) -> bool:
        """Return True if requests that write are refused."""
        return self.spec.read_only

    def read(self, request: Request) -> Status:
        """Serve IN."""
        count, rest = divmod(request.room, SECTOR)
        if rest or not self.within(request.sector, count):
            return Status.IOERR
        self.storage.read(request.sector, request.area())
        request.filled(request.room)
        return Status.OK

    def write(self, request: Request) -> Status:
        """Serve OUT."""
        count, rest = divmod(request.sent, SECTOR)
        if self.read_only() or rest or not self.within(request.sector, count):
            return Status.IOERR
        self.storage.write(request.sector, request.data())
        self.settle(self.forced(request))
        return Status.OK

    def forced(self, request: Request) -> bool:
        """Return True for a write that has to be stable when it completes (draft)."""
        has = self.has(Feature.BLK_REQ_FLAGS) and self.has(Feature.BLK_REQ_FLAGS_OUT_FUA)
        return has and bool(request.flags & REQUEST_FLAG_FUA)

    def settle(self, forced: bool = False) -> None:
        """Commit what was just written, if `forced` or if it may not stay volatile (5.2.6.2)."""
        cached = self.has(Feature.BLK_CONFIG_WCE) or self.has(Feature.BLK_FLUSH)
        if forced or not (cached and self.writeback):
            self.storage.flush()

    def flush(self, request: Request) -> Status:
        """Serve FLUSH."""
        del request
        self.storage.flush()
        return Status.OK

    def get_id(self, request: Request) -> Status:
        """Serve GET_ID."""
        serial = SERIAL if self.spec.serial is None else self.spec.serial
        request.write(0, serial.encode()[:ID_LENGTH].ljust(ID_LENGTH, b"\0"))
        return Status.OK

    def get_lifetime(self, request: Request) -> Status:
        """Serve GET_LIFETIME."""
        assert self.spec.lifetime is not None
        most = (PRE_EOL_INFO_MOST, LIFETIME_EST_MOST, LIFETIME_EST_MOST)
        # A value of the storage beyond the defined ones means unknown, which is 0.
        known = (
            value if value <= limit else 0
            for value, limit in zip(self.spec.lifetime, most, strict=True)
        )
        request.write(0, LIFETIME.pack(*known))
        return Status.OK

    def scsi(self, request: Request) -> Status:
        """Serve a SCSI command of the legacy interface (virtio 5.2.6.3).

        The data of a command that sends some are ignored.
        """
        command = request.command()
        room = request.room - SCSI_SENSE - SCSI_RESULT.size
        if not command or room < 0:
            return Status.IOERR
        length = room or request.sent - len(command)
        answer, sense = b"", b""
        if command[0] == INQUIRY and len(command) > 4:
            answer = INQUIRY_DATA[: min(int.from_bytes(command[3:5], "big"), room)]
        elif command[0] != TEST_UNIT_READY:
            sense = INVALID_COMMAND
        request.write(0, answer)
        request.write(room, sense)
        errors = CHECK_CONDITION if sense else 0
        result = SCSI_RESULT.pack(errors, length, len(sense), length - len(answer))
        request.write(room + SCSI_SENSE, result)
        return Status.OK

    def discard(self, request: Request) -> Status:
        """Serve DISCARD."""
        return self.each_segment(
            request,
            known=0,
            most=self.fields()["max_discard_sectors"],
            act=lambda sector, count, flags: self.storage.deallocate("discard", sector, count),
        )

    def write_zeroes(self, request: Request) -> Status:
        """Serve WRITE_ZEROES."""
        return self.each_segment(
            request,
            known=SEGMENT_UNMAP,
            most=self.fields()["max_write_zeroes_sectors"],
            act=self.zero,
        )

    def zero(self, sector: int, count: int, flags: int) -> None:
        """Zero one segment of WRITE_ZEROES."""
        if flags & SEGMENT_UNMAP:
            self.storage.deallocate("write-zeroes", sector, count)
        else:
            self.storage.zero(sector, count)

    def secure_erase(self, request: Request) -> Status:
        """Serve SECURE_ERASE."""
        return self.each_segment(
            request,
            known=0,
            most=self.fields()["max_secure_erase_sectors"],
            act=lambda sector, count, flags: self.storage.zero(sector, count),
        )

    def each_segment(
        self, request: Request, known: int, most: int, act: Callable[[int, int, int], None]
    ) -> Status:
        """Check all segments, then call `act` for each.

        `known` are the flags that may be set, `most` is the longest segment in sectors.
        """
        data = b"".join(request.data())
        if not data or len(data) % SEGMENT.size:
            return Status.IOERR
        segments = list(SEGMENT.iter_unpack(data))
        if any(flags & ~known for _, _, flags in segments):
            return Status.UNSUPP
        if self.read_only() or len(segments) > MAX_SEGMENTS:
            return Status.IOERR
        if any(count > most or not self.within(sector, count) for sector, count, _ in segments):
            return Status.IOERR
        for sector, count, flags in segments:
            act(sector, count, flags)
        self.settle()
        return Status.OK


def _block_size(size: int) -> int:
    if size < SECTOR or size & (size - 1):
        raise ValueError(
            f"{size} is not a block size: it has to be a power of 2, at least {SECTOR}"
        )
    return size
