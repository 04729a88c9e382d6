"""What targets share whose device is somebody else's: it is as it is, and only read at first."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from harness.diskspec import DiskSpec, unsupported
from harness.driver.block import BlockDriver
from harness.driver.errors import BadArgumentError, DriverError
from harness.driver.interface import Driver, Repetition, Request
from harness.driver.transport.base import Transport
from harness.machine.drive import Backing as FileBacking
from harness.targets.base import Backing, DeviceIdentity, LacksError, Plugged, Target, TargetError
from harness.virtio.blk import CONFIG_FIELD, RequestType, ZonedModel
from harness.virtio.features import Feature

READING = frozenset(
    {
        RequestType.IN,
        RequestType.FLUSH,
        RequestType.GET_ID,
        RequestType.GET_LIFETIME,
        RequestType.ZONE_REPORT,
    }
)
"""Requests that leave a disk's contents alone."""


class ReadingDriver(BlockDriver):
    """A driver that sends no request but to read: for a disk that somebody needs.

    It looks at whole requests. A chain that a test builds by hand is that
    test's affair, and so is its claim not to write.
    """

    def submit(self, requests: Sequence[Request], queue: int = 0) -> list[int]:
        """As any driver; BadArgumentError for a request that might change the disk."""
        for request in requests:
            _must_read(request)
        return super().submit(requests, queue)

    def repeat(
        self,
        request: Request,
        count: int,
        queue: int = 0,
        timeout: float = 60.0,
        interrupts: bool = False,
    ) -> Repetition:
        """As any driver; BadArgumentError for a request that might change the disk."""
        _must_read(request)
        return super().repeat(request, count, queue, timeout, interrupts)

    def config_write(self, offset: int, data: bytes) -> None:
        """BadArgumentError: the cache mode outlasts the test that sets it."""
        raise BadArgumentError(f"the configuration ({len(data)} bytes at {offset}) is only read")


def _must_read(request: Request) -> None:
    if request.type not in READING:
        raise BadArgumentError(f"a request of type {request.type} on a disk that is only read")


OFFERED = {
    "packed": Feature.RING_PACKED,
    "in_order": Feature.IN_ORDER,
    "event_idx": Feature.EVENT_IDX,
    "indirect_desc": Feature.INDIRECT_DESC,
    "config_wce": Feature.BLK_CONFIG_WCE,
    "discard": Feature.BLK_DISCARD,
    "write_zeroes": Feature.BLK_WRITE_ZEROES,
    "secure_erase": Feature.BLK_SECURE_ERASE,
}
"""What of a disk says whether its device offers a feature, and so may be true of any."""

ZONES = frozenset(
    {
        *("zone_sectors", "zone_capacity", "conventional_zones", "zones_read_only"),
        *("zones_offline", "max_open_zones", "max_active_zones", "max_append_sectors"),
        "write_granularity",
    }
)
"""What the zones of a zoned disk are like: a test has to read that off the device anyway."""

HONOURED = frozenset({*OFFERED, *ZONES, "queue_size", "zoned", "read_only"})
"""Fields of `DiskSpec` that an external device may satisfy; whether it does is checked."""

ZONED = {ZonedModel.HOST_MANAGED: "host-managed", ZonedModel.HOST_AWARE: "host-aware"}


def _zoned(driver: Driver) -> str | None:
    """The model of a zoned disk, as a `DiskSpec` has it."""
    if not driver.offered() & Feature.BLK_ZONED.mask:
        return None
    field = CONFIG_FIELD["model"]
    return ZONED.get(ZonedModel(driver.config_read(field.offset, field.size)[0]))


UNKNOWN = DeviceIdentity("unknown", ())


@dataclass(frozen=True)
class HostSide:
    """What the owner of a device has said of its other side.

    `identity` is what its known deviations are filed under, `backing` the file
    with its bytes, `resize` what makes it so many sectors.
    """

    identity: DeviceIdentity = UNKNOWN
    backing: Path | None = None
    resize: Callable[[int], None] | None = None


class OwnedDisk(Plugged):
    """Somebody's device, with a driver on it."""

    storage_known = False

    def __init__(
        self, owner: str, transport: Transport, spec: DiskSpec, writes: bool, host: HostSide
    ) -> None:
        """`owner` is who has the backing store, in words."""
        self.plugged = True
        self._owner = owner
        self._host = host
        self._resized = False
        self.driver = (BlockDriver if writes else ReadingDriver)(transport)
        self.spec = replace(
            spec,
            capacity=self.driver.config().capacity,
            read_only=bool(self.driver.offered() & Feature.BLK_RO.mask),
        )

    @property
    def backing(self) -> Backing:
        """The file that the owner named. LacksError if none was."""
        if self._host.backing is None:
            raise LacksError(f"the backing store of {self._owner} is out of reach")
        return FileBacking(self._host.backing)

    def resize(self, capacity: int) -> None:
        """By the owner's command. LacksError if none was named."""
        if self._host.resize is None:
            raise LacksError(f"it is for {self._owner} to be resized to {capacity} sectors")
        self._resized = True
        self._host.resize(capacity)

    def unplug(self) -> None:
        """Reset the device and give it back, with the capacity that it had."""
        self.plugged = False
        try:
            self.driver.close()
        except (DriverError, OSError) as error:
            raise TargetError(str(error)) from None
        finally:
            if self._resized and self._host.resize:
                self._host.resize(self.spec.capacity)


class OwnedTarget(Target):
    """A device that somebody else runs. It is only read, unless `destructive`."""

    owner: str
    """Whose it is, in words: for the reason of a skip."""

    def __init__(
        self,
        name: str,
        destructive: bool = False,
        host: HostSide = HostSide(),
    ) -> None:
        self.name = name
        self._destructive = destructive
        self._host = host
        self._disk: OwnedDisk | None = None

    @abstractmethod
    def _reach(self, spec: DiskSpec) -> Transport:
        """The device's transport. TargetError or DriverError if it is not to be had."""

    def plug(self, spec: DiskSpec, writes: bool = True) -> Plugged:
        """The device as it is, with a driver on it; one at a time.

        LacksError for a disk of another kind than `DiskSpec()`, but for features
        that the device happens to have, and, unless the target is destructive, for
        a test that `writes`. What the zones of a zoned disk are like is the device's
        affair, but a host-managed one is not for tests that would write it anywhere.
        """
        if writes and not self._destructive:
            raise LacksError(f"{self.name} is only read without --destructive")
        self._refuse(unsupported(spec, HONOURED))
        if self._disk and self._disk.plugged:
            raise LacksError(f"{self.name} is one disk, and it is in use")
        try:
            transport = self._reach(spec)
            try:
                offered = transport.offered()
                self._refuse(
                    name
                    for name, feature in OFFERED.items()
                    if getattr(spec, name) not in (None, bool(offered & feature.mask))
                )
                read_only = bool(offered & Feature.BLK_RO.mask)
                if read_only != spec.read_only and (spec.read_only or writes):
                    self._refuse(["read_only"])
                disk = OwnedDisk(self.owner, transport, spec, writes, self._host)
                zoned = _zoned(disk.driver)
                if zoned != spec.zoned and (spec.zoned or (writes and zoned == "host-managed")):
                    self._refuse(["zoned"])
                self._disk = disk
            except BaseException:
                transport.close()
                raise
        except (DriverError, OSError) as error:
            raise TargetError(str(error)) from None
        return self._disk

    def _refuse(self, odd: Iterable[str]) -> None:
        if names := ", ".join(odd):
            raise LacksError(f"{self.name} is as it is: no disk with another {names}")

    def close(self) -> None:
        """Give the device back."""
        if self._disk:
            self._disk.unplug()

    def identities(self) -> tuple[DeviceIdentity, ...]:
        """What was said at the start."""
        return (self._host.identity,)

    def evidence(self) -> dict[str, str]:
        """Nothing: what somebody else's device logs is out of reach."""
        return {}

    def check(self) -> None:
        """Raise TargetError if the device in use is gone."""
        if self._disk and self._disk.plugged:
            try:
                self._disk.driver.config_generation()
            except (DriverError, OSError) as error:
                raise TargetError(str(error)) from None
