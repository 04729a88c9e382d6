"""The targets `guest-...`: virtio-blk devices of QEMU, driven inside a guest.

A guest is cloned from a template when a test asks for its first disk, and ends with the test:
damage by one test cannot reach another. If guests may serve several tests, one ends only when a
test has left something in it, or has failed. If guests cannot be cloned, one booted guest serves
the whole run; a guest that died is replaced when the next disk is asked for.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

import images
from harness import interrupt
from harness.diskspec import DiskSpec
from harness.machine import MachineError, choose_accel, find_qemu
from harness.machine.templates import Template, TemplateError
from harness.targets.backing_sides import check_board, qemu_parts
from harness.targets.base import DeviceIdentity, LacksError, Plugged, Progress, Target, translated
from harness.targets.daemon import BackEnd, Daemon
from harness.targets.guest.disk import GuestDisk, GuestExport, StartedDisk
from harness.targets.guest.guest import Guest, Means, Trouble
from harness.targets.guest.template import template
from harness.targets.guest.variants import VARIANTS, Channel
from harness.targets.prefetch import Prefetch

Accelerator = Literal["auto", "kvm", "tcg"]

CONSOLE_LINES = 80


class GuestTarget(Target):
    """A target from `VARIANTS`."""

    def __init__(
        self,
        channel: Channel = "serial",
        qemu: str | None = None,
        accel: Accelerator = "auto",
        boot_timeout: float = 60.0,
        progress: Progress = lambda line: None,
        name: str = "guest-pci",
        clones: bool = True,
        ahead: bool = False,
        reuse: bool = False,
        back_end: BackEnd | None = None,
    ) -> None:
        """Prepare the target.

        `qemu` is a path (None: search PATH), `boot_timeout` in seconds. `back_end` is for a variant
        with vhost-user; by default it is a qemu-storage-daemon.

        Without `clones` guests are booted. With `ahead` the next guest is cloned while the present
        one is in use, unless a guest has to be started with its disk. With `reuse` a clone that is
        as new after a test serves the next one, where that is cheaper than another clone.
        """
        self.name = name
        self.variant = VARIANTS[name]
        self.description = self.variant.description
        self.traits = self.variant.traits
        self.channel: Channel = channel
        self._qemu = qemu
        self._accel: Accelerator = accel
        self._boot_timeout = boot_timeout
        self._progress = progress
        self._means: Means | None = None
        self._guest: Guest | None = None
        self._hello: dict[str, object] = {}
        self._template: Template | None = None
        self._clones_ahead = ahead
        self._reuse = reuse
        self._ahead: Prefetch[Guest] | None = None
        self._booted_because = "" if clones else "asked for"
        self._daemon: BackEnd = back_end or Daemon()
        self.made_to_order = self._daemon.made_to_order
        self._started: list[StartedDisk] = []

    @property
    def guest(self) -> Guest | None:
        """Return the guest that is in use, or the last one that was."""
        return self._guest

    def plug(self, spec: DiskSpec, writes: bool = True) -> Plugged:
        """Plug a disk into the guest; start a guest first if none works."""
        check_board(self.variant.board, spec, "legacy" in self.traits)
        try:
            if self.variant.board == "microvm":
                if self.channel == "ssh":
                    raise LacksError(f"{self.name} has no network card; use --channel serial")
                return self._start_with(spec)
            if self.variant.vhost_user:
                disk = GuestExport(self._working_guest(), spec, self._daemon, writes)
                self.made_to_order = self._daemon.made_to_order  # the first disk may have shown it
                return disk
            return GuestDisk(self._working_guest(), spec)
        except Trouble as error:
            raise translated(error) from None

    def _start_with(self, spec: DiskSpec) -> Plugged:
        """Return a disk in a guest of its own.

        A booted guest is used again if the disk is the same.
        """
        spare = [disk for disk in self._started if not disk.in_use]
        self._started = [disk for disk in self._started if disk.in_use]
        same = next((disk for disk in spare if disk.serves(spec)), None)
        for disk in spare:
            if disk is not same:
                disk.guest.end()
        self._guest = same.guest if same else self._start(spec)
        try:
            self._started.append(StartedDisk(self._guest, spec))
        except Trouble:
            self._guest.end()
            raise
        return self._started[-1]

    def distrust(self) -> None:
        """End a clone that may serve several tests with this one."""
        if self._guest and self._guest.reusable:
            self._guest.reusable = False
            self._guest.retired = True

    def release(self) -> None:
        """End the guests that were cloned, except one that may serve another test."""
        interrupted = interrupt.received() is not None
        if self._guest and self._guest.reusable and not self._guest.retired and not interrupted:
            if not self._guest.used:
                return
            if not (changes := self._guest.changes()):
                self._guest.served += 1
                self._guest.used = False
                self._guest.machine.messages.clear()
                return
            self._progress(f"the guest is not used again: {changes}")
        guests = {disk.guest for disk in self._started if disk.guest.cloned}
        self._started = [disk for disk in self._started if disk.guest not in guests]
        if self._guest and self._guest.cloned:
            guests.add(self._guest)
            self._guest = None
        for guest in guests:
            guest.end()

    def close(self) -> None:
        """End the guests, and the back-end."""
        for disk in self._started:
            disk.guest.end()
        if self._guest:
            self._guest.end()
        self._drop_ahead()
        self._daemon.stop()

    def identities(self) -> tuple[DeviceIdentity, ...]:
        """Return QEMU and its version, and the back-end's if there is one."""
        parts = qemu_parts(self.variant.board, self.variant.vhost_user)
        qemu = DeviceIdentity("qemu", self._found().qemu.version, parts)
        return (qemu, self._daemon.identity()) if self.variant.vhost_user else (qemu,)

    def facts(self) -> dict[str, str]:
        """Return QEMU, kernel, accelerator and reason, guest's Python, and how guests start."""
        means = self._found()
        facts = {
            "qemu": means.qemu.version_text,
            "accelerator": f"{means.accel.name} ({means.accel.reason})",
            "guest-kernel": means.image.kernel_release,
        }
        if self._hello:
            facts["guest-python"] = str(self._hello["python"])
            facts["guests"] = (
                f"booted ({self._booted_because})" if self._booted_because else "cloned"
            )
            if self._guest and self._guest.reusable:
                facts["guests"] += ", and used again as long as they are unchanged"
        return facts

    def evidence(self) -> dict[str, str]:
        """Return the end of the guest's console and of QEMU's stderr."""
        if not self._guest:
            return {}
        machine = self._guest.machine
        earlier = (
            {"the guest": f"tests served before: {served}"}
            if (served := self._guest.served)
            else {}
        )
        return earlier | {
            "guest console, last lines": machine.console_tail(CONSOLE_LINES),
            "QEMU, last words": machine.last_words(),
        }

    def logs(self) -> dict[str, str]:
        """Return the guest's console, QEMU's stderr and command line, and the back-end's logs."""
        return (self._guest.machine.logs() if self._guest else {}) | self._daemon.logs()

    def check(self) -> None:
        """Raise TargetError if QEMU is gone."""
        if self._guest:
            try:
                self._guest.machine.check()
                if self.variant.vhost_user:
                    self._daemon.check()
            except MachineError as error:
                raise translated(error) from None

    def _working_guest(self) -> Guest:
        if self._guest and self._guest.works():
            return self._guest
        again = self._guest is not None
        if self._guest:
            self._guest.end()
        self._guest = self._start(again=again)
        return self._guest

    def _start(self, disk: DiskSpec | None = None, again: bool = False) -> Guest:
        """Start a new guest: a clone if that is possible, otherwise a booted one."""
        prepared = time.monotonic()
        # The image and the template are for the whole run, and have deadlines of their own.
        with interrupt.paused():
            means = self._found()
            start = self._cloner(means, disk) or self._booter(means, disk, again)
        begun = time.monotonic()
        self.preparing += begun - prepared
        guest = start()
        self.starting += time.monotonic() - begun
        self._hello = guest.hello
        guest.reusable = guest.cloned and self._reuse and self._reuse_is_cheaper(means)
        return guest

    def _reuse_is_cheaper(self, means: Means) -> bool:
        """Return True if it takes less time to unplug a disk and to plug another than to clone.

        Under TCG a clone translates its code again. A microvm cannot unplug a disk, and QEMU 11.1
        aborts when the model is unplugged.
        """
        return (
            means.accel.name == "tcg"
            and self.variant.board in ("pc", "q35")
            and not self.variant.model
        )

    def _booter(self, means: Means, disk: DiskSpec | None, again: bool) -> Callable[[], Guest]:
        def boot() -> Guest:
            self._progress(
                f"booting a {'new ' if again else ''}guest ({means.accel.name}, {self.channel})"
            )
            begun = time.monotonic()
            guest = Guest.boot(means, self.channel, self._boot_timeout, self.variant, disk)
            self._progress(f"the guest answered after {time.monotonic() - begun:.1f} s")
            return guest

        return boot

    def _cloner(self, means: Means, disk: DiskSpec | None) -> Callable[[], Guest] | None:
        """Return a function that makes a clone, or None if that is impossible.

        A template is made first if there is none.
        """
        if self._booted_because:
            return None
        if self._template is None or not self._template.intact():
            self._drop_ahead()
            try:
                self._template = template(
                    means, self.channel, self.variant, self._boot_timeout, self._progress
                )
            except TemplateError as error:
                self._booted_because = str(error)
                self._progress(f"guests are booted, not cloned: {error}")
                return None
        current = self._template

        def clone() -> Guest:
            return Guest.clone(current, means, self.channel, self._boot_timeout, self.variant, disk)

        if disk or not self._clones_ahead:
            return clone
        self._ahead = self._ahead or Prefetch(clone, Guest.end)
        return self._ahead.take

    def _drop_ahead(self) -> None:
        """End the prefetched guest: it must not be used once its template has changed."""
        if self._ahead:
            self._ahead.close()
            self._ahead = None

    def _found(self) -> Means:
        if self._means is None:
            qemu = find_qemu(self._qemu)
            image = images.ensure(self._progress)
            accel = choose_accel(
                self._accel,
                qemu,
                image.kernel,
                image.initrd,
                images.cache_dir(),
                progress=self._progress,
                kernel_args=images.KERNEL_ARGS,
            )
            self._means = Means(qemu, image, accel)
        return self._means
