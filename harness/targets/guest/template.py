"""Templates of guests: their key, their making, and a trial clone."""

from __future__ import annotations

import hashlib
import inspect
import platform
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import images
from harness.channel import serial
from harness.diskspec import DiskSpec
from harness.driver.errors import NoDeviceError
from harness.driver.interface import Driver, Request
from harness.guest.client import payload
from harness.machine import Machine, MachineConfig, MachineError
from harness.machine.command import Paths, Saved, command_line
from harness.machine.rundir import check_room
from harness.machine.templates import Facts, Template, TemplateError, ensure, key_of
from harness.targets.base import Progress
from harness.targets.guest.disk import GuestDisk, StartedDisk, window
from harness.targets.guest.guest import Guest, Means, Trouble, connect_agent, open_agent
from harness.targets.guest.variants import VARIANTS, Channel, Variant
from harness.virtio.blk import SECTOR, RequestType, Status

STATE_ROOM = 8 << 20
"""Bytes for a template's files besides the guest's memory."""

READ = Request(RequestType.IN, receive=SECTOR)


def template(
    means: Means,
    channel: Channel,
    variant: Variant,
    timeout: float,
    progress: Progress,
    directory: Path | None = None,
) -> Template:
    """Return the template of a variant's guests; make it first if needed.

    `timeout` (seconds) is the boot's.

    It is kept in `directory` (None: the cache). Raise TemplateError if such guests cannot be cloned
    here, and otherwise the errors of `Guest.boot`.
    """

    def make(saved: Saved) -> Facts:
        progress(f"making a template of the guest ({means.accel.name}; done once, then kept)")
        begun = time.monotonic()
        facts = _make(saved, means, channel, owner, timeout, progress)
        seconds = round(time.monotonic() - begun, 1)
        progress(f"the template is ready after {seconds} s")
        return {**facts, "seconds": seconds}

    owner = shared(variant)
    key = key_of(_parts(means, channel, owner))
    return ensure(directory or images.cache_dir() / "templates", key, make, progress)


def shared(variant: Variant) -> Variant:
    """Return the variant whose template this one uses, too.

    On most boards variants differ only in their disks, which a template does not have. On
    microvm the interface is a property of the machine (virtio-mmio.force-legacy).
    """
    return next(
        (
            other
            for other in VARIANTS.values()
            if (other.board, other.kernel_args) == (variant.board, variant.kernel_args)
            and (other.board != "microvm" or other.interface == variant.interface)
        ),
        variant,
    )


def _parts(means: Means, channel: Channel, variant: Variant) -> dict[str, object]:
    """Return everything that a template depends on, by name."""
    program = means.qemu.path.resolve().stat()
    line = command_line(_config(means, channel, variant, Path("ram")), Paths(Path("run")))
    parts: dict[str, object] = {
        "QEMU": f"{means.qemu.version_text} {program.st_size} {program.st_mtime_ns}",
        "machine": line,
        "image": means.image.key,
        "SSH keys": means.image.ssh_host_key + means.image.ssh_key.read_text(),
        "agent": hashlib.sha256(payload()).hexdigest(),
        "its start": inspect.getsource(serial),
        "maker": inspect.getsource(sys.modules[__name__]),
    }
    if means.accel.name == "kvm":
        # The guest has detected the host's processor, and the hypervisor's features.
        parts["host"] = platform.release() + _processor()
    return parts


def _config(means: Means, channel: Channel, variant: Variant, ram: Path) -> MachineConfig:
    config = means.config(channel, variant)
    return replace(config, ram_file=ram, shared_memory=False, name="template")


def _make(
    saved: Saved,
    means: Means,
    channel: Channel,
    variant: Variant,
    timeout: float,
    progress: Progress,
) -> Facts:
    config = _config(means, channel, variant, saved.ram)
    _check_room(config, saved)
    machine = Machine(config)
    try:
        machine.start()
        agent = open_agent(machine, "serial", means.image, timeout)
        guest = Guest(machine, agent, agent.hello(), variant.kind)
        progress("the template's guest answers")
        _warm(guest)
        agent.remains()  # the first call starts to listen to the kernel
        remains = agent.remains()
        if channel == "ssh":
            # The agent and the SSH server wait for a connection then, in every clone, too.
            agent.listen(images.AGENT_PORT)
            over_ssh = connect_agent(machine, means.image, timeout)
            over_ssh.ping()
            over_ssh.close()
        # QEMU loses what a serial port has not sent yet. Nothing is left to send after a call whose
        # answer fits into the line.
        agent.ping()
        try:
            machine.save(saved.state)
        except Trouble as error:
            raise TemplateError(f"the guest cannot be saved: {error}") from error
        facts = {"hello": guest.hello, "remains": remains}
    except MachineError:
        _check_room(config, saved, spent=True)  # QEMU dies where its memory finds no room
        raise
    finally:
        machine.stop()
    progress("the template is saved")
    try:
        _check_clone(Template(saved, facts, ()), means, channel, variant, timeout)
    except Trouble as error:
        raise TemplateError(f"the guest cannot be cloned: {error}") from error
    return facts


def _check_room(config: MachineConfig, saved: Saved, spent: bool = False) -> None:
    """TemplateError if the cache has no room for a guest's memory, or has none left."""
    try:
        check_room(saved.ram.parent, STATE_ROOM + (0 if spent else config.memory << 20))
    except MachineError as error:
        raise TemplateError(str(error)) from None


def _warm(guest: Guest) -> None:
    """Let the agent load its modules and do everything once, so that clones need not."""
    if guest.machine.config.board == "microvm":
        # Its disks are present from the start, and a clone has another one.
        with suppress(NoDeviceError):
            guest.agent.attach(guest.kind, window(0), timeout=0.0)
        return
    disk = GuestDisk(guest, DiskSpec())
    _read(disk.driver)
    disk.unplug()


def _check_clone(
    template: Template, means: Means, channel: Channel, variant: Variant, timeout: float
) -> None:
    """Clone the template once, with a disk, and read from the disk."""
    cold = variant.board == "microvm"
    spec = DiskSpec()
    guest = Guest.clone(template, means, channel, timeout, variant, spec if cold else None)
    try:
        _read((StartedDisk(guest, spec) if cold else GuestDisk(guest, spec)).driver)
    finally:
        guest.end()


def _read(driver: Driver) -> None:
    driver.start()
    completion = driver.request(READ)
    if completion.status != Status.OK:
        raise TemplateError(f"the clone's disk cannot be read: status {completion.status}")


def _processor() -> str:
    """Return the host's processor, as the kernel describes its first core."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0]
    wanted = ("model name", "microcode", "flags")
    return "\n".join(line for line in text.splitlines() if line.startswith(wanted))
