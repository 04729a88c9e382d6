"""The targets `vhost-user` and `vhost-user:PATH`: a back-end on a UNIX socket, driven from here."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import fields, replace

from harness.disks import DiskSpec
from harness.driver.block import BlockDriver
from harness.driver.errors import BadArgumentError, DriverError
from harness.driver.interface import Repetition, Request
from harness.driver.transport.vhost_user import QUEUE_SIZE, VhostUser
from harness.machine.errors import MachineError
from harness.machine.qemu import Qemu
from harness.machine.storage_daemon import (
    Export,
    StorageDaemon,
    find_storage_daemon,
    unhonoured,
)
from harness.virtio.blk import RequestType
from harness.virtio.features import Feature

from .base import Backing, DeviceIdentity, LacksError, Plugged, Target, TargetError

READING = frozenset(
    {RequestType.IN, RequestType.FLUSH, RequestType.GET_ID, RequestType.GET_LIFETIME}
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


class DaemonDisk(Plugged):
    """An export of our qemu-storage-daemon, with a driver on it."""

    def __init__(self, daemon: StorageDaemon, spec: DiskSpec) -> None:
        self._daemon = daemon
        self.spec = spec
        # The largest queue is the front-end's to choose, so it is no affair of the daemon's.
        self._export: Export = daemon.add_export(replace(spec, queue_size=None))
        try:
            self.driver = BlockDriver(
                VhostUser(str(self._export.path), spec.queue_size or QUEUE_SIZE)
            )
        except BaseException:
            with suppress(MachineError):
                daemon.remove_export(self._export)
            raise

    @property
    def backing(self) -> Backing:
        """The raw file behind the disk. TargetError for a null disk."""
        try:
            return self._export.backing
        except MachineError as error:
            raise TargetError(str(error)) from None

    def resize(self, capacity: int) -> None:
        """`block_resize`, live."""
        try:
            self._export.resize(capacity)
        except MachineError as error:
            raise _translated(error) from None

    def unplug(self) -> None:
        """Hang up, and remove the export."""
        try:
            self.driver.close()
            self._daemon.remove_export(self._export)
        except MachineError as error:
            raise _translated(error) from None


class VhostUserDaemon(Target):
    """The block export of a qemu-storage-daemon that we start; one daemon serves the run."""

    name = "vhost-user"
    description = "qemu-storage-daemon's vhost-user-blk export, driven from the host"
    traits = frozenset({"vhost-user", "modern"})

    def __init__(self, program: str | None = None) -> None:
        """`program` is the daemon's path (None: the one on PATH)."""
        self._program = program
        self._found: Qemu | None = None
        self._daemon: StorageDaemon | None = None

    def plug(self, spec: DiskSpec, writes: bool = True) -> Plugged:
        """An export and a driver on it. LacksError for what an export has no option for."""
        odd = unhonoured(replace(spec, queue_size=None))
        if odd:
            raise LacksError(f"qemu-storage-daemon has no option for a disk's {', '.join(odd)}")
        try:
            return DaemonDisk(self._working_daemon(), spec)
        except (MachineError, DriverError) as error:
            raise _translated(error) from None

    def close(self) -> None:
        """End the daemon."""
        if self._daemon:
            self._daemon.stop()

    def identity(self) -> DeviceIdentity:
        """The daemon and its version."""
        return DeviceIdentity("qemu-storage-daemon", self._known().version)

    def facts(self) -> dict[str, str]:
        """The daemon's version."""
        return {"qemu-storage-daemon": self._known().version_text}

    def evidence(self) -> dict[str, str]:
        """How the daemon fares, and the end of its stderr."""
        return (
            {"qemu-storage-daemon, last words": self._daemon.last_words()} if self._daemon else {}
        )

    def check(self) -> None:
        """Raise TargetError if the daemon is gone."""
        if self._daemon:
            try:
                self._daemon.check()
            except MachineError as error:
                raise _translated(error) from None

    def _known(self) -> Qemu:
        if self._found is None:
            self._found = find_storage_daemon(self._program)
        return self._found

    def _working_daemon(self) -> StorageDaemon:
        if self._daemon and not self._daemon.alive():
            self._daemon.stop()
            self._daemon = None
        if self._daemon is None:
            self._daemon = StorageDaemon(self._known())
            self._daemon.start()
        return self._daemon


class SocketDisk(Plugged):
    """Whatever listens on a socket, with a driver on it. It is as it is."""

    def __init__(self, path: str, spec: DiskSpec, writes: bool) -> None:
        self.plugged = True
        self.transport = VhostUser(path, spec.queue_size or QUEUE_SIZE)
        self.driver = (BlockDriver if writes else ReadingDriver)(self.transport)
        self.spec = replace(
            spec,
            capacity=self.driver.config().capacity,
            read_only=bool(self.driver.offered() & Feature.BLK_RO.mask),
        )

    @property
    def backing(self) -> Backing:
        """TargetError: the bytes behind somebody else's back-end are out of reach."""
        raise LacksError("the backing store of somebody else's back-end is out of reach")

    def resize(self, capacity: int) -> None:
        """LacksError: somebody else's back-end is theirs to resize."""
        raise LacksError(f"somebody else's back-end is theirs to resize to {capacity} sectors")

    def unplug(self) -> None:
        """Reset the device and hang up."""
        self.plugged = False
        self.driver.close()


class VhostUserSocket(Target):
    """A back-end that somebody else runs. It is only read, unless `destructive`."""

    description = "whatever listens on the UNIX socket PATH, driven from the host"
    traits = frozenset({"vhost-user", "modern"})

    def __init__(
        self,
        path: str,
        destructive: bool = False,
        identity: DeviceIdentity = DeviceIdentity("unknown", ()),  # noqa: B008 (frozen)
    ) -> None:
        """`identity` is what its known deviations are filed under."""
        self.name = f"vhost-user:{path}"
        self._path = path
        self._destructive = destructive
        self._identity = identity
        self._disk: SocketDisk | None = None

    def plug(self, spec: DiskSpec, writes: bool = True) -> Plugged:
        """The back-end as it is, with a driver on it; one at a time.

        LacksError for a disk of another kind than `DiskSpec()`, and, unless
        the target is destructive, for a test that `writes`.
        """
        if writes and not self._destructive:
            raise LacksError(f"{self._path} is only read without --destructive")
        usual = DiskSpec(queue_size=spec.queue_size)
        odd = [
            field.name
            for field in fields(DiskSpec)
            if getattr(spec, field.name) != getattr(usual, field.name)
        ]
        if odd:
            raise LacksError(f"{self._path} is as it is: no disk with another {', '.join(odd)}")
        if self._disk and self._disk.plugged:
            raise LacksError(f"{self._path} is one disk, and it is in use")
        try:
            self._disk = SocketDisk(self._path, spec, writes)
        except DriverError as error:
            raise _translated(error) from None
        return self._disk

    def close(self) -> None:
        """Hang up."""
        if self._disk:
            self._disk.unplug()

    def identity(self) -> DeviceIdentity:
        """What was said at the start."""
        return self._identity

    def facts(self) -> dict[str, str]:
        """The socket, and the protocol features that are in use."""
        if not self._disk:
            return {"socket": self._path}
        features = self._disk.driver.description()["protocol_features"]
        return {"socket": self._path, "protocol-features": ", ".join(features)}

    def evidence(self) -> dict[str, str]:
        """Nothing: what a stranger's back-end logs is out of reach."""
        return {}

    def check(self) -> None:
        """Raise TargetError if the back-end has hung up on the disk in use."""
        if self._disk and self._disk.plugged:
            try:
                self._disk.transport.config_generation()
            except DriverError as error:
                raise _translated(error) from None


def _translated(error: Exception) -> TargetError:
    """A target's error for one of the packages below it, with what that knew."""
    translated = TargetError(str(error))
    if details := getattr(error, "details", ""):
        translated.add_note(details)
    return translated
