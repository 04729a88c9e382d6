"""The disk that a test uses: its driver, its requests, and its host side."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

from harness.diskspec import SECTOR, DiskSpec
from harness.driver.interface import Completion, Driver, Negotiation, QueueLayout, Request
from harness.driver.trace import Recorded, Trace, cut, merged
from harness.driver.transport.vhost_user import VhostUser
from harness.machine.drive import IoError
from harness.robustness.device_process import DeviceProcess
from harness.targets.base import Backing, LacksError, Plugged, TargetError
from harness.targets.through_device import ThroughDevice
from harness.virtio.blk import ID_LENGTH, LIFETIME, RequestType, Status
from harness.virtio.device import DeviceStatus


class RangedBacking:
    """A disk's backing store. A range beyond the disk that was made is a LacksError."""

    def __init__(self, backing: Backing, capacity: int, trace: Trace) -> None:
        self._backing = backing
        self._capacity = capacity
        self._trace = trace

    @property
    def size(self) -> int:
        """Bytes, now."""
        return self._backing.size

    @property
    def allocated(self) -> int:
        """Bytes that they take of the host's storage, now; holes take none."""
        return self._backing.allocated

    def read(self, sector: int, count: int) -> bytes:
        """`count` sectors from `sector` on."""
        self._check(sector + count)
        return self._backing.read(sector, count)

    def write(self, sector: int, data: bytes) -> None:
        """Write whole sectors."""
        self._check(sector + len(data) // SECTOR)
        self._trace("contents", sector, len(data), cut(data))
        self._backing.write(sector, data)

    def _check(self, end: int) -> None:
        if end > self._capacity and end > self.size // SECTOR:
            raise _too_small(self._capacity, end)


def _too_small(capacity: int, needed: int) -> LacksError:
    return LacksError(f"the disk has {capacity} sectors, and this test uses {needed}")


class Disk:
    """A disk under test.

    Units: sectors of 512 bytes, data in bytes. Every request may raise
    DriverError (DeviceTimeoutError if it does not complete).
    """

    def __init__(self, plugged: Plugged) -> None:
        self._plugged = plugged
        self._trace = Trace()
        self.queues: list[QueueLayout] = []

    @property
    def driver(self) -> Driver:
        """Return the driver, for everything that is not a whole request."""
        return self._plugged.driver

    @property
    def spec(self) -> DiskSpec:
        """Return the properties that the test asked for."""
        return self._plugged.spec

    @property
    def backing(self) -> Backing:
        """The bytes behind the device, from the host's side. LacksError where there are none."""
        backing = self._plugged.backing
        transport = getattr(self.driver, "transport", None)
        handed_over = isinstance(transport, VhostUser) and transport.handed_over
        if handed_over and isinstance(backing, ThroughDevice):
            raise LacksError(
                "the disk cannot be seen through the device while another front-end uses it"
            )
        return RangedBacking(backing, self.spec.capacity, self._trace)

    @property
    def through_device(self) -> bool:
        """True if `backing` was a view through the device itself."""
        return self._plugged.through_device

    @property
    def resizable(self) -> bool:
        """False if nobody here can change the capacity, or the device cannot announce it."""
        return self._plugged.resizable and self._announces

    def needs_sectors(self, count: int) -> None:
        """Raise LacksError, which skips a test, if the disk was made with fewer sectors."""
        if self.spec.capacity < count:
            raise _too_small(self.spec.capacity, count)

    def needs_descriptors(self, count: int) -> None:
        """Raise LacksError, which skips a test, if queue 0 was set up with fewer descriptors."""
        size = self.queues[0].size
        if size < count:
            raise LacksError(f"the queue has {size} descriptors, and this test uses {count}")

    @property
    def _announces(self) -> bool:
        """False for a vhost-user back-end without the channel that a change is announced on."""
        if self.driver.transport_kind() != "vhost-user":
            return True
        return "BACKEND_REQ" in self.driver.description()["protocol_features"]

    def needs_announcements(self) -> None:
        """Raise LacksError, which skips a test, if the device cannot announce a change."""
        if not self._announces:
            raise LacksError("the back-end has no BACKEND_REQ, so it cannot announce a change")

    def needs_known_storage(self) -> None:
        """Raise LacksError, which skips a test, if nobody here knows what the blocks lie on."""
        if not self._plugged.storage_known:
            raise LacksError("nothing is known about the storage of this device")

    def resize(self, capacity: int) -> None:
        """Change the capacity, in sectors, while the device runs."""
        self._plugged.resize(capacity)

    def idle(self, within: float) -> bool:
        """Return True when the device says that it does nothing more until it is asked again.

        Return False after `within` seconds, and at once for a device that cannot say so.
        """
        return self._plugged.idle(within)

    def system_reset(self) -> None:
        """Reset the machine around the device; `driver` is a new one then. LacksError if none."""
        self._plugged.system_reset()
        self.queues = []

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop all that carries the device for the block.

        LacksError where that cannot be done, TargetError if it does not stop.

        No register may be accessed inside the block.
        """
        try:
            self._plugged.pause()
        except OSError as error:
            raise TargetError(f"the device's process cannot be stopped: {error}") from None
        try:
            yield
        finally:
            self._plugged.resume()

    def move(self) -> None:
        """Save all that carries the device, and go on in another process. LacksError if none.

        The driver stays, with its memory.
        """
        self._plugged.move()

    def remove(self) -> None:
        """Remove the device while its driver uses it. LacksError where that cannot be done.

        The driver can only read and write its own memory then.
        """
        self._plugged.remove()

    def bus_reset(self) -> None:
        """Reset the function from outside, as a reset of its bus does. LacksError if none."""
        self._plugged.bus_reset()

    def member(self, number: int) -> Driver:
        """Return a driver for an enabled member of the device's group, on a bus of its own.

        Raise LacksError, which skips a test, if no bus reaches the members.
        """
        return self._plugged.member(number)

    def wait_io_error(self) -> IoError:
        """Return the oldest report of an error of the backing store; wait 10 s if there is none.

        If the error stops the machine, it has stopped on return, and `resume` lets it continue.
        LacksError, which skips a test, where nobody reports errors to the harness.
        """
        return self._plugged.wait_io_error()

    def resume(self) -> None:
        """Let the machine continue that an error of the backing store has stopped."""
        self._plugged.resume()

    def events(self) -> list[Recorded]:
        """Return the last events of the driver, of the machine and of the backing, in order."""
        host = merged(self._plugged.messages(), self._trace.events())
        with suppress(Exception):  # the guest may be gone, and a trace is only a help
            return merged(host, self.driver.events())
        return host

    def processes(self) -> tuple[DeviceProcess, ...]:
        """Return the processes that are the device and belong to us."""
        return self._plugged.processes()

    def kill(self) -> None:
        """Kill these processes at once. Afterwards the disk can only be unplugged."""
        self._plugged.kill()

    def hand_over(self) -> str:
        """Disconnect the driver, and return the socket's path for a front-end of the test.

        The driver can be used again after a reset, when that front-end has disconnected. Raise
        LacksError, which skips a test, if the driver is not a vhost-user front-end itself.
        """
        transport = getattr(self.driver, "transport", None)
        if not isinstance(transport, VhostUser):
            raise LacksError("the driver is not the front-end of a vhost-user back-end")
        return transport.hand_over()

    def restart(self) -> None:
        """Kill the device's process, and start another with the same disk at the same socket.

        Raise LacksError, which skips a test, if that cannot be done here.
        """
        self._plugged.restart()

    def unplug(self) -> None:
        """Close the driver and remove the disk."""
        self._plugged.unplug()

    def leave(self) -> None:
        """End the test's use of the disk: `unplug` it, or leave that to the target."""
        self._plugged.leave()

    def start(
        self, features: int | None = None, queues: int = 1, queue_size: int | None = None
    ) -> Negotiation:
        """Initialise the device, up to and including DRIVER_OK (virtio 3.1.1).

        Same as `Driver.start`; in addition `self.queues` holds the addresses of the virtqueues.
        """
        agreed = self.driver.negotiate(features)
        self.queues = [self.driver.queue_setup(index, queue_size) for index in range(queues)]
        self.driver.set_status(agreed.status | DeviceStatus.DRIVER_OK)
        return replace(agreed, status=self.driver.status())

    def request(
        self,
        type: int,
        sector: int = 0,
        data: bytes = b"",
        receive: int = 0,
        **framing: Any,
    ) -> Completion:
        """Send a request of any type and wait for it; `framing` as in `Request`."""
        return self.send(Request(type, sector, data, receive, **framing))

    def send(self, request: Request) -> Completion:
        """Send a request and wait for it. A defined status byte is returned as `Status`."""
        return named(self.driver.request(request))

    def read(self, sector: int, count: int = 1, **framing: Any) -> Completion:
        """Read `count` sectors (IN)."""
        return self.request(RequestType.IN, sector, receive=count * SECTOR, **framing)

    def write(self, sector: int, data: bytes, **framing: Any) -> Completion:
        """Write `data` (OUT)."""
        return self.request(RequestType.OUT, sector, data, **framing)

    def flush(self) -> Completion:
        """Send FLUSH."""
        return self.request(RequestType.FLUSH)

    def get_id(self) -> Completion:
        """Send GET_ID."""
        return self.request(RequestType.GET_ID, receive=ID_LENGTH)

    def get_lifetime(self) -> Completion:
        """Send GET_LIFETIME."""
        return self.request(RequestType.GET_LIFETIME, receive=LIFETIME.size)

    def discard(self, *segments: bytes) -> Completion:
        """Send DISCARD with these segments (made by `harness.virtio.blk.segment`)."""
        return self.request(RequestType.DISCARD, data=b"".join(segments))

    def write_zeroes(self, *segments: bytes) -> Completion:
        """Send WRITE_ZEROES with these segments (made by `harness.virtio.blk.segment`)."""
        return self.request(RequestType.WRITE_ZEROES, data=b"".join(segments))

    def secure_erase(self, *segments: bytes) -> Completion:
        """Send SECURE_ERASE with these segments (made by `harness.virtio.blk.segment`)."""
        return self.request(RequestType.SECURE_ERASE, data=b"".join(segments))


def named(completion: Completion) -> Completion:
    """Return the completion with its status byte as a `Status` if the value is defined."""
    known = completion.status in Status._value2member_map_
    return replace(completion, status=Status(completion.status)) if known else completion
