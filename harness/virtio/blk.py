"""Requests, status codes and configuration space of a block device (virtio 5.2.4, 5.2.6)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, fields
from enum import IntEnum

from harness.virtio.features import Feature

SECTOR = 512
"""Bytes of a sector, the unit of `capacity` and of a request's `sector` field."""

REQUEST_HEADER = struct.Struct("<IIQ")
"""Header of a request: type, ioprio (reserved in virtio 1.x), sector."""

SEGMENT = struct.Struct("<QII")
"""A discard, secure erase or write zeroes segment: sector, num_sectors, flags."""

SEGMENT_UNMAP = 1
"""Flag `unmap` of a segment (bit 0), the only flag that is defined."""

ID_LENGTH = 20
"""Bytes of the device id string that GET_ID returns."""

LIFETIME = struct.Struct("<HHH")
"""Data of GET_LIFETIME: pre_eol_info, lifetime estimate of cell type A, the same of type B."""

PRE_EOL_INFO_MOST = 3
"""The largest pre_eol_info that is not reserved."""

LIFETIME_EST_MOST = 11
"""The largest lifetime estimate that is not reserved."""

APPEND_SECTOR = struct.Struct("<Q")
"""Field append_sector, between the data and the status of ZONE_APPEND."""

ZONE_REPORT_HEADER = struct.Struct("<Q56x")
"""Header of a zone report: nr_zones."""

ZONE_DESCRIPTOR = struct.Struct("<QQQBB38x")
"""A zone in a report: z_cap, z_start, z_wp (sectors of 512 bytes), z_type, z_state."""

REQUEST_FLAG_FUA = 1
"""Flag in the second word of the header of OUT, with REQ_FLAGS_OUT_FUA (draft)."""

STATUS_UNWRITTEN = 0xFF
"""Value of the status byte before a request is sent. No device writes this value."""


class RequestType(IntEnum):
    """The `type` field of a request."""

    IN = 0
    OUT = 1
    SCSI_CMD = 2
    FLUSH = 4
    FLUSH_OUT = 5
    GET_ID = 8
    GET_LIFETIME = 10
    DISCARD = 11
    WRITE_ZEROES = 13
    SECURE_ERASE = 14
    ZONE_APPEND = 15
    ZONE_REPORT = 16
    ZONE_OPEN = 18
    ZONE_CLOSE = 20
    ZONE_FINISH = 22
    ZONE_RESET = 24
    ZONE_RESET_ALL = 26


SCSI_TYPES = (RequestType.SCSI_CMD, RequestType.SCSI_CMD + 1)
"""The two equivalent types of a SCSI command on the legacy interface (virtio 5.2.6.3)."""

SCSI_SENSE = 96
"""Bytes of the buffer for sense data."""

SCSI_RESULT = struct.Struct("<4I")
"""Result of a SCSI command: errors, data_len, sense_len and residual, for a little-endian guest."""


class Status(IntEnum):
    """The status byte of a completed request."""

    OK = 0
    IOERR = 1
    UNSUPP = 2
    ZONE_INVALID_CMD = 3
    ZONE_UNALIGNED_WP = 4
    ZONE_OPEN_RESOURCE = 5
    ZONE_ACTIVE_RESOURCE = 6
    UNWRITTEN = STATUS_UNWRITTEN


class ZonedModel(IntEnum):
    """The `model` field of the configuration space (virtio 5.2.4)."""

    NONE = 0
    HOST_MANAGED = 1
    HOST_AWARE = 2


class ZoneType(IntEnum):
    """The `z_type` of a zone: conventional, sequential write required or preferred."""

    CONV = 1
    SWR = 2
    SWP = 3


class ZoneState(IntEnum):
    """The `z_state` of a zone."""

    NOT_WP = 0
    EMPTY = 1
    IOPEN = 2
    EOPEN = 3
    CLOSED = 4
    RDONLY = 13
    FULL = 14
    OFFLINE = 15


@dataclass(frozen=True)
class Field:
    """One field of the configuration space.

    `offset` and `size` are in bytes. `feature` is the bit that makes the field
    valid, or None for a field that is always valid.
    """

    name: str
    offset: int
    size: int
    feature: Feature | None


CONFIG_FIELDS: tuple[Field, ...] = (
    Field("capacity", 0, 8, None),
    Field("size_max", 8, 4, Feature.BLK_SIZE_MAX),
    Field("seg_max", 12, 4, Feature.BLK_SEG_MAX),
    Field("cylinders", 16, 2, Feature.BLK_GEOMETRY),
    Field("heads", 18, 1, Feature.BLK_GEOMETRY),
    Field("sectors", 19, 1, Feature.BLK_GEOMETRY),
    Field("blk_size", 20, 4, Feature.BLK_BLK_SIZE),
    Field("physical_block_exp", 24, 1, Feature.BLK_TOPOLOGY),
    Field("alignment_offset", 25, 1, Feature.BLK_TOPOLOGY),
    Field("min_io_size", 26, 2, Feature.BLK_TOPOLOGY),
    Field("opt_io_size", 28, 4, Feature.BLK_TOPOLOGY),
    Field("writeback", 32, 1, Feature.BLK_CONFIG_WCE),
    Field("unused0", 33, 1, None),
    Field("num_queues", 34, 2, Feature.BLK_MQ),
    Field("max_discard_sectors", 36, 4, Feature.BLK_DISCARD),
    Field("max_discard_seg", 40, 4, Feature.BLK_DISCARD),
    Field("discard_sector_alignment", 44, 4, Feature.BLK_DISCARD),
    Field("max_write_zeroes_sectors", 48, 4, Feature.BLK_WRITE_ZEROES),
    Field("max_write_zeroes_seg", 52, 4, Feature.BLK_WRITE_ZEROES),
    Field("write_zeroes_may_unmap", 56, 1, Feature.BLK_WRITE_ZEROES),
    Field("unused1", 57, 3, None),
    Field("max_secure_erase_sectors", 60, 4, Feature.BLK_SECURE_ERASE),
    Field("max_secure_erase_seg", 64, 4, Feature.BLK_SECURE_ERASE),
    Field("secure_erase_sector_alignment", 68, 4, Feature.BLK_SECURE_ERASE),
    Field("zone_sectors", 72, 4, Feature.BLK_ZONED),
    Field("max_open_zones", 76, 4, Feature.BLK_ZONED),
    Field("max_active_zones", 80, 4, Feature.BLK_ZONED),
    Field("max_append_sectors", 84, 4, Feature.BLK_ZONED),
    Field("write_granularity", 88, 4, Feature.BLK_ZONED),
    Field("model", 92, 1, Feature.BLK_ZONED),
    Field("unused2", 93, 3, Feature.BLK_ZONED),
)
"""All fields of `struct virtio_blk_config`, in its order (virtio 5.2.4)."""


CONFIG_WIDTHS = tuple(
    1 if field.size == 3 else min(field.size, 4)
    for field in CONFIG_FIELDS
    for _ in range(field.size)
)
"""For each byte of the configuration space, the width in which its field is read, in bytes."""


def config_accesses(offset: int, length: int) -> Iterator[tuple[int, int]]:
    """Yield the accesses (offset, width in bytes) that cover a range of configuration space.

    A field of 8 or 16 bits is read with its own width, a wider field in aligned
    parts of 32 bits. Padding and bytes after the last field are read one by one
    (virtio 4.1.3.1). A range that cuts through a field gets narrower accesses.
    """
    end = offset + length
    while offset < end:
        width = CONFIG_WIDTHS[offset] if offset < len(CONFIG_WIDTHS) else 1
        while offset % width or offset + width > end:
            width //= 2
        yield offset, width
        offset += width


CONFIG_FIELD: dict[str, Field] = {field.name: field for field in CONFIG_FIELDS}
CONFIG_SIZE = 96
"""Bytes of the whole configuration space. A device without the last fields has fewer."""


@dataclass(frozen=True)
class BlockConfig:
    """A snapshot of the configuration space (virtio 5.2.4).

    `capacity` is in sectors of 512 bytes. A field is None if its feature was
    not accepted or the device's configuration space ends before the field.
    """

    capacity: int
    size_max: int | None = None
    seg_max: int | None = None
    cylinders: int | None = None
    heads: int | None = None
    sectors: int | None = None
    blk_size: int | None = None
    physical_block_exp: int | None = None
    alignment_offset: int | None = None
    min_io_size: int | None = None
    opt_io_size: int | None = None
    writeback: int | None = None
    num_queues: int | None = None
    max_discard_sectors: int | None = None
    max_discard_seg: int | None = None
    discard_sector_alignment: int | None = None
    max_write_zeroes_sectors: int | None = None
    max_write_zeroes_seg: int | None = None
    write_zeroes_may_unmap: int | None = None
    max_secure_erase_sectors: int | None = None
    max_secure_erase_seg: int | None = None
    secure_erase_sector_alignment: int | None = None
    zone_sectors: int | None = None
    max_open_zones: int | None = None
    max_active_zones: int | None = None
    max_append_sectors: int | None = None
    write_granularity: int | None = None
    model: int | None = None

    @classmethod
    def parse(cls, raw: bytes, features: int) -> BlockConfig:
        """Decode the fields of `raw` (from offset 0) that the bits in `features` make valid."""
        values: dict[str, int] = {}
        wanted = {field.name for field in fields(cls)}
        for field in CONFIG_FIELDS:
            valid = field.feature is None or features & field.feature.mask
            end = field.offset + field.size
            if field.name in wanted and valid and end <= len(raw):
                values[field.name] = int.from_bytes(raw[field.offset : end], "little")
        return cls(**values)


def segment(sector: int, count: int, flags: int = 0) -> bytes:
    """Pack a segment of a discard, secure erase or write zeroes request (sectors of 512 bytes)."""
    return SEGMENT.pack(sector, count, flags)


@dataclass(frozen=True)
class Zone:
    """A zone as a report describes it; `capacity`, `start` and `wp` are in sectors of 512 bytes.

    `wp` has a meaning only in the states EMPTY, IOPEN, EOPEN and CLOSED.
    """

    capacity: int
    start: int
    wp: int
    type: ZoneType
    state: ZoneState


def zones_of(report: bytes) -> tuple[int, list[Zone]]:
    """Return nr_zones of a zone report, and the zones whose whole descriptors follow its header.

    At most nr_zones descriptors are decoded. Raises ValueError if the report is
    shorter than its header, or has a type or a state that is not defined.
    """
    if len(report) < ZONE_REPORT_HEADER.size:
        raise ValueError(f"{len(report)} bytes are too few for a zone report")
    (count,) = ZONE_REPORT_HEADER.unpack_from(report)
    body = report[ZONE_REPORT_HEADER.size :]
    whole = min(count, len(body) // ZONE_DESCRIPTOR.size)
    return count, [
        Zone(capacity, start, wp, ZoneType(kind), ZoneState(state))
        for capacity, start, wp, kind, state in ZONE_DESCRIPTOR.iter_unpack(
            body[: whole * ZONE_DESCRIPTOR.size]
        )
    ]
