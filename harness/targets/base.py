"""Interfaces that every target implements."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from harness.diskspec import DiskSpec
from harness.driver.interface import Driver
from harness.driver.trace import Recorded
from harness.inputs import printable_lines
from harness.machine.drive import IoError
from harness.machine.errors import CommandFailedError, UnsupportedError
from harness.robustness.device_process import DeviceProcess

Progress = Callable[[str], None]
"""Function that takes one line of text about a step that takes a moment."""


class TargetError(Exception):
    """The target cannot do what it was asked; one line, printable, that says why."""

    def __init__(self, message: str) -> None:
        super().__init__(printable_lines(message))


class LacksError(TargetError):
    """Error of a target that can never provide such a disk. A test is skipped with this reason."""


class CommandRefusedError(TargetError):
    """Error of a user's command that ended by itself, with another exit status than 0."""


class StartError(TargetError):
    """The device did not start; `over` says that it will not, and that the run has to end."""

    def __init__(self, message: str, over: bool = False) -> None:
        super().__init__(message)
        self.over = over


NO_PROPERTY = re.compile(r"Property '([\w-]+)\.([\w-]+)' not found")
"""QEMU's message for a property that a device does not have in this version."""


def translated(error: Exception) -> TargetError:
    """Convert an error of a lower package to a TargetError, with its details."""
    if isinstance(error, UnsupportedError):
        return LacksError(str(error))
    refused = isinstance(error, CommandFailedError)
    if not refused and (absent := NO_PROPERTY.search(str(error))):
        return LacksError(f"this QEMU's {absent[1]} has no property {absent[2]}")
    translation = (CommandRefusedError if refused else TargetError)(str(error))
    if details := getattr(error, "details", ""):
        translation.add_note(details)
    return translation


class Backing(Protocol):
    """Bytes behind a device, accessed on the host without the device.

    Sectors are 512 bytes. `read` and `write` raise ValueError outside the backing store.
    """

    @property
    def size(self) -> int:
        """Return the present size in bytes."""
        ...

    @property
    def allocated(self) -> int:
        """Return the bytes of the host's storage in use now. Holes use none."""
        ...

    def read(self, sector: int, count: int) -> bytes:
        """Return the data of `count` sectors that start at `sector`."""
        ...

    def write(self, sector: int, data: bytes) -> None:
        """Write whole sectors."""
        ...


class Plugged(ABC):
    """A device that a target has made, with a driver attached to it, and its host side."""

    driver: Driver
    spec: DiskSpec
    resizable: bool = True
    """False if `resize` always raises LacksError."""
    storage_known: bool = True
    """True if the target made the storage of the blocks: a file, or what `spec` says."""
    through_device: bool = False
    """True if a test has looked at the disk through the device, for want of its backing store."""
    killed: bool = False
    """True after `kill`: then it is no error that the device is gone."""

    @property
    @abstractmethod
    def backing(self) -> Backing:
        """Return the bytes behind the device. Raise TargetError if the host cannot access them."""

    @abstractmethod
    def resize(self, capacity: int) -> None:
        """Change the capacity (sectors of 512 bytes) while the device runs.

        Raise TargetError for an impossible capacity; then nothing has changed.
        """

    @abstractmethod
    def unplug(self) -> None:
        """Close the driver and remove the device.

        Raise TargetError if the device cannot be removed.
        """

    def system_reset(self) -> None:
        """Reset all that carries the device, as a machine's reset button does.

        `driver` is another one then, which has not touched the device. LacksError where only
        the device can be reset.
        """
        raise LacksError("nothing but the device itself can be reset here")

    def pause(self) -> None:
        """Stop all that carries the device, as a machine is stopped for a while.

        No register may be accessed before `resume`. LacksError where nothing can be stopped.
        """
        raise LacksError("what carries the device cannot be stopped for a while here")

    def resume(self) -> None:
        """Let all that carries the device go on after `pause`."""
        raise LacksError("what carries the device cannot be stopped for a while here")

    def move(self) -> None:
        """Save the state of all that carries the device, and go on from it in another process.

        The driver stays, with its memory. LacksError where that cannot be done.
        """
        raise LacksError("the device cannot be saved and restored here")

    def remove(self) -> None:
        """Remove the device while its driver uses it, as from a running machine.

        The driver can only read and write its own memory then. Call `unplug` afterwards.
        LacksError where that cannot be done.
        """
        raise LacksError("the device cannot be removed while it is used here")

    def bus_reset(self) -> None:
        """Reset the function from outside, as a reset of its bus does. LacksError if none."""
        raise LacksError("there is no bus that can be reset here")

    def idle(self, within: float) -> bool:
        """Return True when the device says that it does nothing more until it is asked again.

        It has taken all messages and notifications that were sent before. Return False after
        `within` seconds, and at once for a device that cannot say so.
        """
        del within
        return False

    def member(self, number: int) -> Driver:
        """Return a driver for an enabled member of the device's group, on a bus of its own.

        It is closed with the device. Raise LacksError if no bus reaches the members.
        """
        raise LacksError("the members of the device are on no bus here")

    def wait_io_error(self) -> IoError:
        """Return the oldest report of an error of the backing store; wait 10 s if there is none.

        If the error stops the machine, it has stopped on return, and `resume` lets it continue.
        TargetError if no error is reported, LacksError where nobody reports them.
        """
        raise LacksError("nobody reports errors of the backing store to the harness here")

    def restart(self) -> None:
        """Kill the device's process, and start another with the same disk at the same socket.

        The driver has to connect again. Raise LacksError where that cannot be done.
        """
        raise LacksError("the device's process cannot be killed and started again here")

    def leave(self) -> None:
        """End the test's use of the disk: `unplug` it, or leave that to the target's `release`.

        The cheaper of the two is done. Raise TargetError if the device did not survive the test.
        """
        self.unplug()

    def messages(self) -> list[Recorded]:
        """Return the last messages to what carries the device, as events of a trace."""
        return []

    def processes(self) -> tuple[DeviceProcess, ...]:
        """Return our processes that are the device; none for an external device."""
        return ()

    def kill(self) -> None:
        """Kill the device's processes at once, in any state. Call `unplug` afterwards."""
        self.killed = True
        for process in self.processes():
            process.kill()


PARTS = {
    "qemu": frozenset({"virtio-blk", "virtio-pci", "virtio-mmio", "vhost-user-blk-pci"}),
}
"""Implementation -> its parts, by the names in our files of deviations."""


@dataclass(frozen=True)
class DeviceIdentity:
    """Name under which a device's deviations are filed, and the device's version.

    `parts` are the parts of the implementation that the device consists of, by the names in the
    files of deviations; none means all of them.
    """

    implementation: str
    version: tuple[int, ...]
    parts: frozenset[str] = frozenset()


class Target(ABC):
    """A device under test with everything that it needs.

    Nothing starts before the first `plug`.

    `traits` are what a test may ask for with `@on`: "guest" (the driver runs in a guest), "pci",
    "mmio" or "vhost-user", "modern" or "legacy". `starting` counts the seconds spent on starting
    what carries the devices, such as a guest; `preparing` counts the seconds for what is made once
    and kept, such as a template of guests. `alike` is the name of the target of ours that reaches
    its device in the same way, "" if this is such a target: a recorded deviation that is for some
    of our targets only applies to it as well.
    """

    name: str
    description: str
    traits: frozenset[str]
    alike: str = ""
    made_to_order: bool = True
    """False if each disk is the same device, as it is, with the contents that it has."""
    starting: float = 0.0
    preparing: float = 0.0

    @abstractmethod
    def plug(self, spec: DiskSpec, writes: bool = True) -> Plugged:
        """Return a device as `spec` asks, with a driver attached that has not touched it yet.

        `writes` says that the test changes the disk's contents; an external disk may not allow
        that. Raise TargetError if there cannot be such a device now, LacksError if there never can
        be.
        """

    def distrust(self) -> None:  # noqa: B027  (most targets keep nothing for another test)
        """Note that a test has failed: what serves it now serves no other test."""

    def release(self) -> None:  # noqa: B027  (most targets start nothing for one test alone)
        """End what was started for one test alone. Its devices were unplugged or left before."""

    @abstractmethod
    def close(self) -> None:
        """End everything that was started. A second call does nothing."""

    @abstractmethod
    def identities(self) -> tuple[DeviceIdentity, ...]:
        """Return the implementations that make up the device; known after the first `plug`."""

    @abstractmethod
    def facts(self) -> dict[str, str]:
        """Return facts for the report of the whole run; known after the first `plug`."""

    @abstractmethod
    def evidence(self) -> dict[str, str]:
        """Return title -> text about the machine's present state, for a failed test's report."""

    def logs(self) -> dict[str, str]:
        """Return file name -> text of the logs and command lines of what carries the device."""
        return {}

    @abstractmethod
    def check(self) -> None:
        """Raise TargetError, with the reason, if what carries the device has died."""
