"""Common base of targets whose device is external: somebody else runs it, and it is fixed.

Such a device is only read by default.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from harness.diskspec import DiskSpec
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
"""Request types that leave a disk's contents unchanged."""


class ReadingDriver(BlockDriver):
    """A driver that sends only requests that read, for a disk whose contents must be kept.

    It checks whole requests. It does not check chains that a test builds by hand: such a test is
    responsible for not writing.
    """

    def submit(self, requests: Sequence[Request], queue: int = 0) -> list[int]:
        """Same as `BlockDriver.submit`.

        Raise BadArgumentError for a request that may change the disk.
        """
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
        """Same as `BlockDriver.repeat`.

        Raise BadArgumentError for a request that may change the disk.
        """
        _must_read(request)
        return super().repeat(request, count, queue, timeout, interrupts)

    def config_write(self, offset: int, data: bytes) -> None:
        """Raise BadArgumentError: the cache mode would outlast the test that sets it."""
        raise BadArgumentError(
            f"the configuration ({len(data)} bytes at {offset}) must not be written on this disk"
        )


def _must_read(request: Request) -> None:
    if request.type not in READING:
        raise BadArgumentError(
            f"a request of type {request.type} must not be sent to a disk that is only read"
        )


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
"""`DiskSpec` fields that only ask for a feature bit.

Any device that offers the bit satisfies them.
"""

ZONES = frozenset(
    {
        *("zone_sectors", "zone_capacity", "conventional_zones", "zones_read_only"),
        *("zones_offline", "max_open_zones", "max_active_zones", "max_append_sectors"),
        "write_granularity",
    }
)
"""Fields that describe the zones of a zoned disk. A test reads these from the device anyway."""

ZONED = {ZonedModel.HOST_MANAGED: "host-managed", ZonedModel.HOST_AWARE: "host-aware"}


def _zoned(driver: Driver) -> str | None:
    """Return the zoned model as `DiskSpec` names it, or None for a disk without zones."""
    if not driver.offered() & Feature.BLK_ZONED.mask:
        return None
    field = CONFIG_FIELD["model"]
    return ZONED.get(ZonedModel(driver.config_read(field.offset, field.size)[0]))


UNKNOWN = DeviceIdentity("unknown", ())


@dataclass(frozen=True)
class HostSide:
    """Facts that the owner of an external device has given about its host side.

    `identity` is the name and version for its known deviations, `backing` the file with its bytes,
    and `resize` a function that sets the capacity in sectors.
    """

    identity: DeviceIdentity = UNKNOWN
    backing: Path | None = None
    resize: Callable[[int], None] | None = None


class OwnedDisk(Plugged):
    """An external device with a driver on it."""

    storage_known = False

    def __init__(
        self, owner: str, transport: Transport, spec: DiskSpec, writes: bool, host: HostSide
    ) -> None:
        """Attach a driver to the device. `owner` is a phrase for messages that names the owner."""
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
        """Return the file that the owner named. Raise LacksError if none was named."""
        if self._host.backing is None:
            raise LacksError(f"the targets file names no `backing` for {self._owner}")
        return FileBacking(self._host.backing)

    def resize(self, capacity: int) -> None:
        """Resize with the owner's command. Raise LacksError if none was named."""
        if self._host.resize is None:
            raise LacksError(
                f"cannot resize {self._owner}: the targets file names no `resize` command"
            )
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
    """A target whose device somebody else runs. The device is only read, unless `destructive`."""

    owner: str
    """Phrase that names the owner in the reason of a skip."""

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
        """Return the device's transport.

        Raise TargetError or DriverError if it cannot be opened.
        """

    def plug(self, spec: DiskSpec, writes: bool = True) -> Plugged:
        """Return the device as it is, with a driver on it; only one at a time.

        Raise LacksError if `spec` differs from `DiskSpec()` in more than features that the device
        offers, and if the test `writes` and the target is not destructive. The layout of zones is
        the device's choice, but a test that writes without knowledge of zones cannot use a
        host-managed disk.
        """
        if writes and not self._destructive:
            raise LacksError(f"{self.name} is only read; tests that write need --destructive")
        default = DiskSpec()
        self._refuse(
            field.name
            for field in fields(DiskSpec)
            if field.name not in {*OFFERED, *ZONES, "queue_size", "zoned", "read_only"}
            and getattr(spec, field.name) != getattr(default, field.name)
        )
        if self._disk and self._disk.plugged:
            raise LacksError(f"{self.name} is a single disk, and it is in use")
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

    def _refuse(self, lacking: Iterable[str]) -> None:
        if names := ", ".join(lacking):
            raise LacksError(f"{self.name} cannot provide {names}: an external device is fixed")

    def close(self) -> None:
        """Unplug the disk."""
        if self._disk:
            self._disk.unplug()

    def identities(self) -> tuple[DeviceIdentity, ...]:
        """Return the identity that the owner gave."""
        return (self._host.identity,)

    def evidence(self) -> dict[str, str]:
        """Return nothing: we cannot read the logs of an external device."""
        return {}

    def check(self) -> None:
        """Raise TargetError if the device in use is gone."""
        if self._disk and self._disk.plugged:
            try:
                self._disk.driver.config_generation()
            except (DriverError, OSError) as error:
                raise TargetError(str(error)) from None
