"""What a target has to be able to do."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from harness.diskspec import DiskSpec
from harness.driver.interface import Driver
from harness.inputs import printable_lines
from harness.robustness.device_process import DeviceProcess

Progress = Callable[[str], None]
"""Takes one line that says what is being done now, because it takes a moment."""


class TargetError(Exception):
    """The target cannot do what it was asked; one line, printable, that says why."""

    def __init__(self, message: str) -> None:
        super().__init__(printable_lines(message))


class LacksError(TargetError):
    """The target has no such disk and never will: for a test, a skip with this reason."""


class StartError(TargetError):
    """The device did not start; `over` says that it will not, and that the run has to end."""

    def __init__(self, message: str, over: bool = False) -> None:
        super().__init__(message)
        self.over = over


NO_PROPERTY = re.compile(r"Property '([\w-]+)\.([\w-]+)' not found")
"""QEMU's word for an option that its device does not have, or not yet."""


def translated(error: Exception) -> TargetError:
    """A target's error for one of the packages below it, with what that knew."""
    if absent := NO_PROPERTY.search(str(error)):
        return LacksError(f"this QEMU's {absent[1]} has no property {absent[2]}")
    told = TargetError(str(error))
    if details := getattr(error, "details", ""):
        told.add_note(details)
    return told


class Backing(Protocol):
    """The bytes behind a device, from the host's side and past the device.

    Sectors are 512 bytes. `read` and `write` raise ValueError outside the backing store.
    """

    @property
    def size(self) -> int:
        """Bytes, now."""
        ...

    @property
    def allocated(self) -> int:
        """Bytes that they take of the host's storage, now; holes take none."""
        ...

    def read(self, sector: int, count: int) -> bytes:
        """`count` sectors from `sector` on."""
        ...

    def write(self, sector: int, data: bytes) -> None:
        """Write whole sectors."""
        ...


class Plugged(ABC):
    """A device as a target made it: a driver attached to it, and the host's side of it."""

    driver: Driver
    spec: DiskSpec
    resizable: bool = True
    """False if `resize` always raises LacksError."""
    storage_known: bool = True
    """Whether the target made what the blocks lie on: a file, or what `spec` says."""
    killed: bool = False
    """Whether `kill` ended it: that it is gone is no trouble then."""

    @property
    @abstractmethod
    def backing(self) -> Backing:
        """The bytes behind the device. TargetError where the host has no view of them."""

    @abstractmethod
    def resize(self, capacity: int) -> None:
        """Change the capacity (sectors of 512 bytes) while the device runs.

        TargetError, with nothing changed, for a capacity that cannot be.
        """

    @abstractmethod
    def unplug(self) -> None:
        """Give the driver back and take the device out. TargetError if it does not come out."""

    def system_reset(self) -> None:
        """Reset all that carries the device, as a machine's reset button does.

        `driver` is another one then, which has not touched the device. LacksError where only
        the device can be reset.
        """
        raise LacksError("nothing but the device itself can be reset here")

    def leave(self) -> None:
        """The test is over: `unplug`, or leave it to the target's `release`, if that is cheaper.

        TargetError if the device has not come through the test.
        """
        self.unplug()

    def processes(self) -> tuple[DeviceProcess, ...]:
        """The processes that are the device, as far as they are ours: none if it is somebody's."""
        return ()

    def kill(self) -> None:
        """End the device's processes at once, whatever state they are in. `unplug` comes after."""
        self.killed = True
        for process in self.processes():
            process.kill()


@dataclass(frozen=True)
class DeviceIdentity:
    """Who made the device under test: the name its deviations are filed under, and its version."""

    implementation: str
    version: tuple[int, ...]


class Target(ABC):
    """A device under test with all that carries it. Nothing starts before the first `plug`.

    `traits` are what a test may ask for with `@on`: "guest" (the driver runs in
    one), "pci", "mmio" or "vhost-user", "modern" or "legacy". `starting` counts the seconds
    that went into starting what carries the devices, such as a guest, `preparing` those into
    what is made once and kept, such as a template of guests.
    """

    name: str
    description: str
    traits: frozenset[str]
    made_to_order: bool = True
    """False if each disk is the same device, as it is, with the contents that it has."""
    starting: float = 0.0
    preparing: float = 0.0

    @abstractmethod
    def plug(self, spec: DiskSpec, writes: bool = True) -> Plugged:
        """A device as `spec` says, with a driver attached that has not touched it yet.

        `writes` says that the test changes the disk's contents, which a disk of
        somebody else's may not allow. Raises TargetError if there cannot be
        one, LacksError if there never will be.
        """

    def release(self) -> None:  # noqa: B027  (most targets have nothing that only one test had)
        """End what was started for one test alone; its devices were unplugged or left."""

    @abstractmethod
    def close(self) -> None:
        """End all that was started. A second call does nothing."""

    @abstractmethod
    def identities(self) -> tuple[DeviceIdentity, ...]:
        """Which implementations make up the device; known once something was plugged."""

    @abstractmethod
    def facts(self) -> dict[str, str]:
        """What a report says of the whole run; known once something was plugged."""

    @abstractmethod
    def evidence(self) -> dict[str, str]:
        """Title -> text of what a failed test's report carries of the machine, now."""

    def logs(self) -> dict[str, str]:
        """File name -> whole text of the logs and command lines of what carries the device, now."""
        return {}

    @abstractmethod
    def check(self) -> None:
        """Raise TargetError, with the reason, if what carries the device has died."""
