"""Targets whose device somebody else runs: it is taken as found, and only read at first."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from harness.diskspec import SECTOR, DiskSpec
from harness.driver.block import BlockDriver
from harness.driver.errors import BadArgumentError, DriverError
from harness.driver.interface import Repetition, Request
from harness.driver.transport.base import Transport
from harness.machine.drive import Backing as FileBacking
from harness.machine.errors import MachineError
from harness.machine.foreign import run
from harness.targets.base import (
    Backing,
    DeviceIdentity,
    LacksError,
    Target,
    TargetError,
    translated,
)
from harness.targets.behind_qemu import LentDisk, resize_by_command
from harness.targets.found import Found, unreadable
from harness.targets.through_device import ThroughDevice, unnamed
from harness.targets.userfile import START_TIMEOUT, UserTarget, words_of
from harness.virtio.blk import RequestType
from harness.virtio.features import Feature
from harness.virtio.vhost_user import ProtocolFeature

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


UNKNOWN = DeviceIdentity("unknown", ())


@dataclass(frozen=True)
class HostSide:
    """Facts that the owner of an external device has given about its host side.

    `identity` is the name and version for its known deviations, `backing` the file with its bytes,
    and `resize` a function that sets the capacity in sectors. `plug` runs before a
    driver is put on the device, `unplug` after it was taken off, `restart` when the device cannot
    be reached. The front-end of vhost-user does not accept the protocol features in `refused`.
    """

    identity: DeviceIdentity = UNKNOWN
    backing: Path | None = None
    resize: Callable[[int], None] | None = None
    plug: Callable[[], None] | None = None
    unplug: Callable[[], None] | None = None
    restart: Callable[[], None] | None = None
    restart_timeout: float = START_TIMEOUT
    refused: frozenset[ProtocolFeature] = frozenset()


def host_side(name: str, definition: UserTarget, place: str) -> HostSide:
    """Return the other side of a device as a table of the targets file has it.

    `place` is the device's socket or address.
    """

    def command(text: str, capacity: int = 0) -> None:
        values = {
            "program": definition.program,
            "control": definition.control,
            "name": name,
            "socket": place,
            "file": definition.backing,
            "dir": Path.cwd(),
            "sectors": capacity,
            "bytes": capacity * SECTOR,
        }
        try:
            run(words_of(text, values))
        except MachineError as error:
            raise translated(error) from None

    return HostSide(
        definition.identity,
        Path(definition.backing) if definition.backing else None,
        partial(command, definition.resize) if definition.resize else None,
        partial(command, definition.plug) if definition.plug else None,
        partial(command, definition.unplug) if definition.unplug else None,
        partial(command, definition.restart) if definition.restart else None,
        definition.start_timeout,
        definition.refused,
    )


class OwnedDisk(LentDisk):
    """An external device with a driver on it."""

    storage_known = False

    def __init__(
        self,
        owner: str,
        driver: BlockDriver,
        spec: DiskSpec,
        found: Found,
        host: HostSide,
    ) -> None:
        """`owner` is who has the backing store, in words. `found` is the device as it is."""
        self.plugged = True
        self._owner = owner
        self._host = host
        self._resized = False
        self._capacity = found.config.capacity
        self.file = host.backing
        self.driver = driver
        self.resizable = host.resize is not None
        self.spec = replace(
            spec,
            capacity=found.config.capacity,
            read_only=found.offers(Feature.BLK_RO),
            queues=found.transport_queues,
        )

    @property
    def backing(self) -> Backing:
        """Return the file that the owner named, else the view through the device."""
        if self.file is None:
            self.through_device = True
            return ThroughDevice(self.driver, unnamed(self._owner))
        return FileBacking(self.file)

    def resize(self, capacity: int) -> None:
        """Resize with the owner's command. Raise LacksError if none was named.

        Also LacksError if the command refuses to make the disk smaller, see `resize_by_command`.
        """
        if self._host.resize is None:
            raise LacksError("cannot resize: the targets file names no `resize` command")
        self._resized = True
        resize_by_command(self._host.resize, self._capacity, capacity, self.check)
        self._capacity = capacity

    def check(self) -> None:
        """Raise TargetError if the device is gone while it is in use."""
        if self.plugged and not self.lent:
            try:
                self.driver.config_generation()
            except (DriverError, OSError) as error:
                raise TargetError(str(error)) from None

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
            if self._host.unplug:
                self._host.unplug()


class OwnedTarget(Target):
    """A target whose device somebody else runs. The device is only read, unless `destructive`."""

    made_to_order = False
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
        self._queues: dict[str, str] = {}
        self._seen = False
        self._tried = False

    def _look(self, spec: DiskSpec) -> None:
        """TargetError if the device is not there. One look is enough for a run."""
        if not self._seen:
            try:
                self._reach(spec).close()
            except (DriverError, OSError) as error:
                raise TargetError(str(error)) from None
        self._seen = True

    @abstractmethod
    def _reach(self, spec: DiskSpec) -> Transport:
        """Return the device's transport.

        Raise TargetError or DriverError if it cannot be opened.
        """

    def plug(self, spec: DiskSpec, writes: bool = True) -> OwnedDisk:
        """Put a driver on the device as it is; one at a time.

        LacksError for a property that the test asks for and the device does not have. Also,
        unless the target is destructive, for a test that `writes`. Tests that write do not get
        a read-only device, unless they ask for one, nor a host-managed one.
        """
        if writes and not self._destructive:
            self._look(spec)
            raise LacksError(f"{self.name} is only read; tests that write need --destructive")
        if missing := "; ".join(unreadable(spec)):
            raise LacksError(missing)
        if self._disk and self._disk.plugged:
            raise LacksError(f"{self.name} is a single disk, and it is in use")
        try:
            transport = self._reach_or_restart(spec)
            try:
                driver = (BlockDriver if writes else ReadingDriver)(transport)
                found = Found.of(driver)
                self._note_queues(found, transport)
                if differences := [*self._differences(found, spec, writes)]:
                    raise LacksError("; ".join(differences))
                if not self._tried:
                    self._check_backing(driver, found, writes)
                    self._tried = True
                self._disk = OwnedDisk(self.owner, driver, spec, found, self._host)
            except BaseException:
                transport.close()
                raise
        except (DriverError, OSError) as error:
            raise TargetError(str(error)) from None
        return self._disk

    def _reach_or_restart(self, spec: DiskSpec) -> Transport:
        """Plug the device and reach it; if it cannot be reached, restart it and try again."""
        if self._host.plug:
            self._host.plug()
        try:
            return self._reach(spec)
        except (DriverError, OSError):
            if self._host.restart is None:
                raise
        self._host.restart()
        deadline = time.monotonic() + self._host.restart_timeout
        while True:
            try:
                return self._reach(spec)
            except (DriverError, OSError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def _check_backing(self, driver: BlockDriver, found: Found, writes: bool) -> None:
        """Raise TargetError unless the `backing` of the targets file has the device's bytes.

        A sector is written through the device, looked at, and put back. A device that is only
        read is compared with the file instead.
        """
        path = self._host.backing
        if path is None:
            return
        if not path.exists():
            raise TargetError(f"{self.name}: the backing {path} does not exist")
        if not path.is_file():
            raise TargetError(f"{self.name}: the backing {path} is not a regular file")
        file = FileBacking(path)
        count = max((found.config.blk_size or SECTOR) // SECTOR, 1)
        if file.size < found.config.capacity * SECTOR or found.config.capacity < count:
            raise TargetError(
                f"{self.name}: the backing {path} has {file.size} bytes, the device"
                f" {found.config.capacity * SECTOR}"
            )
        if found.zoned:
            return  # a read beyond a write pointer shows what need not be in the file
        device = ThroughDevice(driver, unnamed(self.owner))
        before = device.read(0, count)
        same = file.read(0, count) == before
        if same and writes and not found.offers(Feature.BLK_RO):
            try:
                device.write(0, bytes(byte ^ 0xFF for byte in before))
                same = file.read(0, count) != before
            finally:
                device.write(0, before)
        if not same:
            raise TargetError(f"{self.name}: the backing {path} does not have the device's bytes")

    @staticmethod
    def _differences(found: Found, spec: DiskSpec, writes: bool) -> Iterator[str]:
        """Yield the properties of the device that keep a test from running on it."""
        yield from found.differences(spec)
        if writes and not spec.read_only and found.offers(Feature.BLK_RO):
            yield "the device is read-only, and the test writes"
        if writes and not spec.zoned and found.zoned == "host-managed":
            yield "the device is host-managed, and the test writes anywhere"

    def _note_queues(self, found: Found, transport: Transport) -> None:
        """Keep for the report when configuration space and transport disagree on queues."""
        has = transport.description().get("queues", found.transport_queues)
        if found.offers(Feature.BLK_MQ) and has != found.config_queues:
            self._queues = {"queues": f"num_queues is {found.config_queues}, transport has {has}"}

    def close(self) -> None:
        """Unplug the disk."""
        if self._disk and self._disk.plugged:
            self._disk.unplug()

    def identities(self) -> tuple[DeviceIdentity, ...]:
        """Return the identity that the owner gave."""
        return (self._host.identity,)

    def evidence(self) -> dict[str, str]:
        """Return nothing: we cannot read the logs of an external device."""
        return {}

    def check(self) -> None:
        """Raise TargetError if the device in use is gone."""
        if self._disk:
            self._disk.check()


class SocketTarget(OwnedTarget):
    """A target whose device listens on a UNIX socket."""

    protocol: str
    """First part of the target's name, before the colon and the path."""

    def __init__(self, path: str, destructive: bool = False, host: HostSide = HostSide()) -> None:
        super().__init__(f"{self.protocol}:{path}", destructive, host)
        self._path = path
