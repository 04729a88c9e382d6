"""Rules on requests of a block device (virtio 5.2.6)."""

from __future__ import annotations

from collections.abc import Iterator

from harness.virtio.blk import ID_LENGTH, SECTOR, SEGMENT, SEGMENT_UNMAP, RequestType
from harness.virtio.features import Feature
from harness.witness.events import Request
from harness.witness.rules.rule import Check, rule
from harness.witness.sessions import Session, State

SEGMENTED = (RequestType.DISCARD, RequestType.SECURE_ERASE, RequestType.WRITE_ZEROES)
OF_ZONES = (
    RequestType.ZONE_OPEN,
    RequestType.ZONE_CLOSE,
    RequestType.ZONE_FINISH,
    RequestType.ZONE_RESET,
)


def requests(session: Session, *types: RequestType) -> Iterator[tuple[Request, State]]:
    """Yield the requests of some types."""
    for event, state in session.walk(Request):
        if isinstance(event, Request) and event.type in types:
            yield event, state


def data_of(request: Request) -> int:
    """Return the bytes of data of an IN or OUT request."""
    return request.room if request.type == RequestType.IN else request.sent


def segments(request: Request) -> list[tuple[int, int, int]]:
    """Return sector, count and flags of each whole segment that was recorded."""
    data = bytes.fromhex(request.data)
    whole = len(data) - len(data) % SEGMENT.size
    return list(SEGMENT.iter_unpack(data[:whole]))


@rule("5.2.6.1-R-02", idle="no IN or OUT request was sent", legacy=None)
def within_capacity(session: Session) -> Iterator[Check]:
    """Compare the last sector with the largest capacity of the session."""
    for event, state in requests(session, RequestType.IN, RequestType.OUT):
        end = event.sector + -(-data_of(event) // SECTOR)
        wrong = f"it ends at sector {end}, the capacity is {state.capacity}"
        yield event, wrong if end > state.capacity else ""


@rule("5.2.6.1-R-04", idle="no FLUSH request was sent", legacy=None)
def flush_sector(session: Session) -> Iterator[Check]:
    """Check that the sector of a FLUSH is 0."""
    for event, _ in requests(session, RequestType.FLUSH):
        yield event, f"the sector is {event.sector}" if event.sector else ""


@rule("5.2.6.1-R-05", idle="no FLUSH request was sent", legacy=None)
def flush_without_data(session: Session) -> Iterator[Check]:
    """Check that a FLUSH has no data."""
    for event, _ in requests(session, RequestType.FLUSH):
        yield event, "it has data" if event.sent or event.room else ""


@rule("5.2.6.1-R-06", idle="no IN or OUT request was sent", legacy=None)
def whole_sectors(session: Session) -> Iterator[Check]:
    """Check that the data is a multiple of 512 bytes."""
    for event, _ in requests(session, RequestType.IN, RequestType.OUT):
        wrong = data_of(event) % SECTOR
        yield event, f"{data_of(event)} bytes are no multiple of {SECTOR}" if wrong else ""


@rule("5.2.6.1-R-07", idle="no request with segments was sent", legacy=None)
def whole_segments(session: Session) -> Iterator[Check]:
    """Check that the data is a multiple of the size of a segment."""
    for event, _ in requests(session, *SEGMENTED):
        wrong = event.sent % SEGMENT.size
        yield event, f"{event.sent} bytes are no multiple of {SEGMENT.size}" if wrong else ""


@rule("5.2.6.1-R-08", idle="no GET_ID request was sent", legacy=None)
def id_length(session: Session) -> Iterator[Check]:
    """Check that there are 20 bytes for the id."""
    for event, _ in requests(session, RequestType.GET_ID):
        yield event, "" if event.room == ID_LENGTH else f"{event.room} bytes, not {ID_LENGTH}"


def count(session: Session, kind: RequestType, field: str) -> Iterator[Check]:
    """Compare the number of segments with a field of the configuration."""
    for event, state in requests(session, kind):
        most = getattr(state.fields, field)
        if most is not None:
            number = event.sent // SEGMENT.size
            yield event, f"{number} segments, {field} is {most}" if number > most else ""


@rule("5.2.6.1-R-09", idle="no DISCARD request was sent", legacy=None)
def discard_segments(session: Session) -> Iterator[Check]:
    """Check the number of segments of a DISCARD."""
    yield from count(session, RequestType.DISCARD, "max_discard_seg")


@rule("5.2.6.1-R-10", idle="no SECURE_ERASE request was sent", legacy=None)
def secure_erase_segments(session: Session) -> Iterator[Check]:
    """Check the number of segments of a SECURE_ERASE."""
    yield from count(session, RequestType.SECURE_ERASE, "max_secure_erase_seg")


@rule("5.2.6.1-R-11", idle="no WRITE_ZEROES request was sent", legacy=None)
def write_zeroes_segments(session: Session) -> Iterator[Check]:
    """Check the number of segments of a WRITE_ZEROES."""
    yield from count(session, RequestType.WRITE_ZEROES, "max_write_zeroes_seg")


@rule("5.2.6.1-R-14", idle="no DISCARD request was sent", legacy=None)
def discard_without_unmap(session: Session) -> Iterator[Check]:
    """Check that the unmap bit is 0 in every segment."""
    for event, _ in requests(session, RequestType.DISCARD):
        wrong = any(flags & SEGMENT_UNMAP for _, _, flags in segments(event))
        yield event, "unmap is set" if wrong else ""


def zoned(session: Session, *types: RequestType) -> Iterator[tuple[Request, State, int]]:
    """Yield requests on a zoned disk with the sectors of a zone, if ZONED was negotiated."""
    for event, state in requests(session, *types):
        size = state.fields.zone_sectors
        if size and state.has(Feature.BLK_ZONED):
            yield event, state, size


@rule(
    "5.2.6.1-R-20",
    idle="no request that opens, closes, finishes or resets a zone was sent",
    legacy=None,
)
def first_sector_of_the_zone(session: Session) -> Iterator[Check]:
    """Check that the sector is the first one of a zone."""
    for event, _, size in zoned(session, *OF_ZONES):
        wrong = event.sector % size
        yield event, f"a zone has {size} sectors" if wrong else ""


@rule("5.2.6.1-R-21", idle="no ZONE_RESET_ALL request was sent", legacy=None)
def reset_all_sector(session: Session) -> Iterator[Check]:
    """Check that the sector is 0."""
    for event, _, _ in zoned(session, RequestType.ZONE_RESET_ALL):
        yield event, f"the sector is {event.sector}" if event.sector else ""


@rule("5.2.6.1-R-22", idle="no ZONE_APPEND request was sent", legacy=None)
def append_to_the_zone(session: Session) -> Iterator[Check]:
    """Check that the sector is the first one of a zone."""
    for event, _, size in zoned(session, RequestType.ZONE_APPEND):
        yield event, f"a zone has {size} sectors" if event.sector % size else ""


@rule("5.2.6.1-R-23a", idle="no ZONE_APPEND request was sent", legacy=None)
def append_granularity(session: Session) -> Iterator[Check]:
    """Check that the data is a multiple of write_granularity."""
    for event, state, _ in zoned(session, RequestType.ZONE_APPEND):
        unit = state.fields.write_granularity
        if unit:
            wrong = event.sent % unit
            yield event, f"write_granularity is {unit} bytes" if wrong else ""


@rule("5.2.6.1-R-23b", idle="no ZONE_APPEND request was sent", legacy=None)
def append_size(session: Session) -> Iterator[Check]:
    """Check that the data is no larger than max_append_sectors."""
    for event, state, _ in zoned(session, RequestType.ZONE_APPEND):
        most = state.fields.max_append_sectors
        if most is not None:
            wrong = event.sent > most * SECTOR
            yield event, f"max_append_sectors is {most}" if wrong else ""


@rule("5.2.6.2-D-38", idle="no SECURE_ERASE request was sent to a zoned disk", legacy=None)
def secure_erase_of_zones(session: Session) -> Iterator[Check]:
    """Check that each segment has whole zones."""
    for event, state, size in zoned(session, RequestType.SECURE_ERASE):
        if state.has(Feature.BLK_SECURE_ERASE):
            wrong = any(number % size for _, number, _ in segments(event))
            yield event, f"a zone has {size} sectors" if wrong else ""


@rule("5.2.6.1-R-18", idle="no ZONE_REPORT request was sent")
def report_starts_in_a_zone(session: Session) -> Iterator[Check]:
    """Check that the sector is one of the disk, so it lies in a zone."""
    for event, state, _ in zoned(session, RequestType.ZONE_REPORT):
        wrong = event.sector >= state.capacity
        yield event, f"the capacity is {state.capacity}" if wrong else ""


@rule("5.2.6.1-R-25", idle="no write to a sequential zone was sent")
def writes_of_sequential_zones(session: Session) -> Iterator[Check]:
    """Check sector and length of writes and appends, and that they end in their zone."""
    for event, state, size in zoned(session, RequestType.OUT, RequestType.ZONE_APPEND):
        append = event.type == RequestType.ZONE_APPEND
        start, most = state.device.sequential, state.device.zone_capacity
        unit = state.fields.write_granularity
        if not unit or not (append or 0 <= start <= event.sector):
            continue
        sectors = -(-event.sent // SECTOR) + (0 if append else event.sector % size)
        if event.sent % unit or event.sector * SECTOR % unit:
            yield event, f"write_granularity is {unit} bytes"
        elif most and sectors > most:
            yield event, f"a zone has a capacity of {most} sectors"
        else:
            yield event, ""


UNABLE = "A driver that cannot send FLUSH shows the same as one that has no reason to."


@rule("5.2.5.1-R-01", idle="no FLUSH request was sent", legacy=None, never_red=UNABLE)
def sends_what_it_negotiates(session: Session) -> Iterator[Check]:
    """Find FLUSH requests of a driver that has negotiated FLUSH."""
    for event, state in requests(session, RequestType.FLUSH):
        if state.has(Feature.BLK_FLUSH):
            yield event, ""


@rule(
    "5.2.5.1-R-03",
    idle="no FLUSH request with FLUSH and without CONFIG_WCE was sent",
    legacy=None,
    never_red=UNABLE,
)
def assumes_a_writeback_cache(session: Session) -> Iterator[Check]:
    """Find FLUSH requests with FLUSH and without CONFIG_WCE."""
    for event, state in requests(session, RequestType.FLUSH):
        if state.has(Feature.BLK_FLUSH) and not state.has(Feature.BLK_CONFIG_WCE):
            yield event, ""
