"""A user's VMM that the harness starts, with our guest in it, as the targets file says.

The agent answers over the guest's only serial port. The disk is found in the guest: on PCI, or on
virtio-mmio. Where the VMM's command has {file}, a guest has one disk from its start, and is used
again for tests that ask for the same disk. Otherwise one guest serves the run, and a `plug`
command adds the disks.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import images
from harness import interrupt
from harness.channel.console import Console, make_raw, open_terminal
from harness.channel.serial import PortStream, SerialStream
from harness.channel.stream import ChannelError
from harness.diskspec import SECTOR, DiskSpec
from harness.driver.errors import DriverError
from harness.driver.interface import Driver
from harness.guest.client import Agent, AgentError, payload
from harness.machine.drive import Backing as FileBacking
from harness.machine.drive import make_raw as make_raw_file
from harness.machine.errors import MachineError
from harness.machine.foreign import ForeignDaemon, run
from harness.machine.vmlinux import extract
from harness.targets.base import LacksError, Progress, StartError, TargetError
from harness.targets.found import Found
from harness.targets.started import CLOSING, PROBE, STARTS, TROUBLE, StartedDisk, StartedTarget
from harness.targets.userfile import UserTarget, words_of

KERNEL_ARGS = " ".join(word for word in images.KERNEL_ARGS.split() if word != "acpi=noirq")
"""Arguments of the kernel for any VMM: only ACPI may know the interrupts of its devices."""

APPEARS = 10.0
"""Seconds that a disk may take to appear in the guest, or to disappear."""

LOOK_AGAIN = 0.05
"""Seconds between two searches for the disk."""

CONSOLE_LINES = 80

TROUBLE_IN_A_GUEST = (*TROUBLE, ChannelError, AgentError, images.ImageError)


class VmmTarget(StartedTarget):
    """A VMM that is started with each disk, or once for the run."""

    description = "a VMM that the harness starts, driven inside a guest"

    def __init__(
        self, name: str, definition: UserTarget, boot_timeout: float, progress: Progress
    ) -> None:
        """`boot_timeout` is the time that a guest may take until its agent answers, in seconds."""
        super().__init__(name, definition)
        self._transport = ""
        self._boot_timeout = boot_timeout
        self._progress = progress
        self._image: images.Image | None = None
        self._console: Console | None = None
        self._console_text = ""
        self._agent: Agent | None = None
        self._shape: tuple[object, ...] = ()
        self._name = ""
        self._place: tuple[str, str] | None = None
        self._broken = False
        self._last_failure = ""

    @property
    def traits(self) -> frozenset[str]:
        """Return the traits, with "pci" or "mmio" as the first disk in the guest shows it."""
        if not self._transport:
            self.plug(DiskSpec(), writes=False).unplug()
        return frozenset({"guest", "modern", self._transport})

    @traits.setter
    def traits(self, traits: frozenset[str]) -> None:
        """Do nothing: the guest shows the traits."""

    # --- disks

    def plug(self, spec: DiskSpec, writes: bool = True) -> StartedDisk:
        """Same as `StartedTarget.plug`, with the disk in a guest."""
        if self._failed_starts >= STARTS:
            raise StartError(self._last_failure, over=True)
        return super().plug(spec, writes)

    def _make(self, spec: DiskSpec, words: list[str], provided: set[str]) -> StartedDisk:
        try:
            return self._make_in_guest(spec, words, provided)
        except LacksError:
            raise
        except BaseException as error:
            if isinstance(error, Exception):  # after Ctrl-C nothing says that it will end
                self._await_end(CLOSING)
            gone = self._gone()
            self._broken = True
            self._end()
            if isinstance(error, TROUBLE_IN_A_GUEST):
                message = error.message if isinstance(error, DriverError) else str(error)
                if gone and gone not in message:
                    message = f"{gone} ({message})"
                raise MachineError(message) from None
            raise

    def _make_in_guest(self, spec: DiskSpec, words: list[str], provided: set[str]) -> StartedDisk:
        driver = self._attach(spec, words)
        try:
            found = Found.of(driver)
            self._try(driver, found, self._probe)
            if not self.serves_file:
                raise MachineError(f"the guest's disk does not show the bytes of {self._file()}")
            if self._probe:
                FileBacking(self._file()).write(0, bytes(len(self._probe)))
                self._probe = b""
            if differences := "; ".join(self._differences(found, spec, provided)):
                raise LacksError(differences)
        except LacksError:
            driver.close()
            self._remove(self._name)
            raise
        if spec.faults:
            self._shape = ()  # this disk does not serve as a new one
        spec = replace(spec, capacity=found.config.capacity)
        if "queues" not in provided and found.transport_queues > 1:
            spec = replace(spec, queues=found.transport_queues)
        disk = StartedDisk(self, self._name, spec, driver, self._file())
        self._disks.append(disk)
        return disk

    _probe = b""

    def _attach(self, spec: DiskSpec, words: list[str]) -> Driver:
        """Return a driver in a guest for a new disk, with the words of the options."""
        before: list[tuple[str, str]] = []
        if self._definition.plug:
            if not self._works():
                self._end()
                self._boot([], self._values("", 0))
            assert self._agent
            before = self._agent.disks()
            self._new_file(spec.capacity)
            values = self._values(self._name, spec.capacity)
            self._plug_command(words_of(self._definition.plug, values, words))
        elif not self._serves(shape := (spec.capacity, *words)):
            self._end()
            self._new_file(spec.capacity)
            self._boot(words, self._values(self._name, spec.capacity))
            self._shape = shape
        assert self._agent
        self._place = kind, address = self._find(before)
        self._transport = kind.partition("-")[0]
        self.alike = f"guest-{self._transport}"
        return self._agent.attach(kind, address)

    def _new_file(self, capacity: int) -> None:
        self._name = f"disk{self._made}"
        self._made += 1
        make_raw_file(self._file(), capacity)
        if not self._tried:
            self._probe = os.urandom(min(PROBE, capacity * SECTOR))
            FileBacking(self._file()).write(0, self._probe)

    def _file(self) -> Path:
        assert self._dir
        return self._dir.path / f"{self._name}.raw"

    def _serves(self, shape: tuple[object, ...]) -> bool:
        """Empty the disk and return True if the guest that runs has such a disk."""
        if self._shape != shape or not self._works():
            return False
        # Holes read as zeroes, and the device was reset.
        size = self._file().stat().st_size
        os.truncate(self._file(), 0)
        os.truncate(self._file(), size)
        return True

    def _works(self) -> bool:
        """Return True if the VMM runs, and the agent answers."""
        if self._agent is None or self._broken:
            return False
        try:
            self._agent.ping()
        except TROUBLE_IN_A_GUEST:
            self._broken = True
        return not self._broken

    def _find(self, before: list[tuple[str, str]]) -> tuple[str, str]:
        """Return kind and address of the disk that is not among those of `before`."""
        assert self._agent
        deadline = time.monotonic() + APPEARS
        while not (disks := [disk for disk in self._agent.disks() if disk not in before]):
            if time.monotonic() > deadline:
                raise MachineError(
                    "the guest has no virtio block device: none on PCI, in ACPI or on the kernel's"
                    f" command line after {APPEARS:g} s"
                )
            time.sleep(LOOK_AGAIN)
        if len(disks) > 1:
            there = ", ".join(f"{kind} {address}" for kind, address in disks)
            raise MachineError(f"the guest has {len(disks)} virtio block devices: {there}")
        if disks[0][0] == "mmio-legacy":
            raise MachineError(
                f"the disk at {disks[0][1]} has the legacy interface of virtio-mmio (version 1),"
                " for which there is no driver in a guest"
            )
        return disks[0]

    def resize(self, name: str, capacity: int) -> None:
        """Same as `StartedTarget.resize`; the disk does not serve as another one then."""
        self._shape = ()
        super().resize(name, capacity)

    def unplug(self, disk: StartedDisk) -> None:
        """Detach the driver, and remove the disk if it was added. TargetError if the VMM died."""
        self._disks = [other for other in self._disks if other is not disk]
        failure = "" if disk.killed else self._gone()
        self._broken = self._broken or disk.killed or bool(failure)
        if not self._broken:
            try:
                disk.driver.close()
                self._remove(disk.name)
            except TROUBLE_IN_A_GUEST as error:
                self._broken = True
                failure = self._gone() or str(error)
        if self._broken:
            self._end()
        if failure:
            raise TargetError(failure)

    def _remove(self, name: str) -> None:
        """Remove a disk that was added, or end the guest if there is no command for it."""
        if not self._definition.plug:
            return
        if not self._definition.unplug:
            self._end()
            return
        assert self._agent
        run(words_of(self._definition.unplug, self._values(name, 0)))
        deadline = time.monotonic() + APPEARS
        while self._place in self._agent.disks():
            if time.monotonic() > deadline:
                raise MachineError(f"{name} is still in the guest {APPEARS:g} s after `unplug`")
            time.sleep(LOOK_AGAIN)
        self._file().unlink(missing_ok=True)

    def _gone(self) -> str:
        if self._daemon is None or self._daemon.alive():
            return ""
        if self._console:
            self._console.drain()
        return self._daemon.last_line()

    def _printed(self) -> str:
        """Return what came from the guest's serial port, of a long text the end."""
        return self._console.text() if self._console else self._console_text

    # --- the guest

    def _boot(self, words: list[str], values: Mapping[str, object]) -> None:
        """Start the VMM with the words of the options, and the agent in its guest."""
        assert self._dir
        prepared = time.monotonic()
        with interrupt.paused():
            image = self._image = self._image or images.ensure(self._progress)
        begun = time.monotonic()
        self.preparing += begun - prepared
        if self._broken and self._definition.restart:
            run(words_of(self._definition.restart, values))
        self._broken = self._plug_tried = False
        self._console_text = ""
        serial = self._dir.path / f"serial{self._made}"
        more: dict[str, Any] = {
            "kernel": image.kernel,
            "vmlinux": self._dir.path / "vmlinux",
            "initrd": image.initrd,
            "append": f"{KERNEL_ARGS} {self._definition.append}".strip(),
            "serial": serial,
        }
        if "{vmlinux}" in self._definition.vmm and not more["vmlinux"].exists():
            more["vmlinux"].write_bytes(extract(image.kernel))
        self._line = words_of(self._definition.vmm, {**values, **more}, words)
        self._progress(f"booting a guest in {self._program}")
        self._console = Console(self._open_port(serial))
        self._console.start_agent(payload(), self._boot_timeout, self._check_process)
        self._agent = Agent(self._console, self._check_process)
        kernel = self._agent.hello()["kernel"]
        took = time.monotonic() - begun
        self.starting += took
        self._facts |= {"guest-kernel": str(kernel), "guests": "booted"}
        self._progress(f"the guest answered after {took:.1f} s")

    def _open_port(self, serial: Path) -> PortStream:
        """Start the VMM and return its guest's serial port."""
        seconds = self._definition.start_timeout
        if self._definition.serial == "stdio":
            ours, theirs = os.openpty()
            try:
                make_raw(theirs)
                self._start_process(theirs)
            except BaseException:
                os.close(ours)
                raise
            finally:
                os.close(theirs)
            return PortStream(ours)
        daemon = self._start_process(None)
        if self._definition.serial == "socket":
            daemon.wait_until_ready(serial, self._definition.ready, seconds)
            return SerialStream(serial)
        deadline = time.monotonic() + seconds
        while not (named := re.search(self._definition.pty, daemon.output())):
            self._check_process()
            if time.monotonic() > deadline:
                raise MachineError(
                    f"{self._program} named no terminal within {seconds:g} s; awaited was"
                    f" {self._definition.pty!r} in its output. {daemon.last_line()}"
                )
            time.sleep(LOOK_AGAIN)
        return open_terminal(Path(named[1] if named.re.groups else named[0]))

    def _start_process(self, terminal: int | None) -> ForeignDaemon:
        with interrupt.shielded():
            self._daemon = ForeignDaemon(
                self._program,
                self._line,
                terminal,
                (lambda: "") if terminal is None else self._printed,
            )
        return self._daemon

    def _check_process(self) -> None:
        """Raise DriverError if the VMM has ended: for a driver, its device is gone."""
        if gone := self._gone():
            raise DriverError(gone)

    def _end(self) -> None:
        """End the VMM, keep its last words and the console, and remove the guest's disk."""
        self._shape = ()
        if self._console:
            self._console_text = self._console.text()
        if self._agent:
            self._agent.close()
        elif self._console:
            self._console.close()
        self._agent = self._console = None
        super()._end()
        if self._dir and self._name:
            self._file().unlink(missing_ok=True)

    # --- the run

    def close(self) -> None:
        """End all that was started."""
        self._disks = []
        super().close()

    def _failed(self, error: Exception) -> TargetError:
        failure = super()._failed(error)
        self._last_failure = str(failure)
        return failure

    def _words_at_the_end(self) -> str:
        words = super()._words_at_the_end()
        console = self._printed()
        if not console or self._definition.serial == "stdio":
            return words
        return "\n".join([words, "the guest's console:", *console.splitlines()[-CONSOLE_LINES:]])

    def logs(self) -> dict[str, str]:
        """Return the VMM's output and command line, and the end of the guest's console."""
        console = self._printed()
        return super().logs() | ({"console.log": console} if console else {})
