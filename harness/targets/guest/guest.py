"""A guest with the agent in it: booted, or cloned from a template."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import Any

import images
from harness.channel.serial import SerialStream, open_serial
from harness.channel.stream import ChannelError, Check, Stream
from harness.diskspec import DiskSpec
from harness.driver.errors import DriverError
from harness.guest.client import Agent, AgentError, payload
from harness.machine import Accel, Machine, MachineConfig, MachineError, Qemu
from harness.machine.templates import Template
from harness.targets.guest.variants import VARIANTS, Channel, Variant

Trouble = (MachineError, ChannelError, AgentError, DriverError, images.ImageError)


@dataclass(frozen=True)
class Means:
    """QEMU, image and accelerator for booting a guest; determined once."""

    qemu: Qemu
    image: images.Image
    accel: Accel

    def config(self, channel: Channel, variant: Variant) -> MachineConfig:
        """Return the configuration of a machine whose guest boots."""
        return MachineConfig(
            self.qemu,
            self.image.kernel,
            self.image.initrd,
            variant.kernel_args,
            accel=self.accel.name,
            ssh=channel == "ssh",
            board=variant.board,
            interface=variant.interface,
            shared_memory=variant.vhost_user or variant.model,
        )


class Guest:
    """A guest with the agent in it; made by `boot` or `clone`.

    `kind` is the way its disks are driven. `cloned` is True for a clone of a template. With
    `reusable` it may serve another test if nothing is in `changes`; `served` counts the tests that
    it has served, and `used` is True after the first disk of a test.
    """

    def __init__(
        self,
        machine: Machine,
        agent: Agent,
        hello: dict[str, Any],
        kind: str,
        cloned: bool = False,
    ) -> None:
        self.kind = kind
        self.machine = machine
        self.agent = agent
        self.hello = hello
        self.cloned = cloned
        self.retired = False
        self.reusable = False
        self.served = 0
        self.used = False
        self._remains: dict[str, Any] = {}
        self._words = machine.last_words()
        self._at_end = ExitStack()

    @classmethod
    def boot(
        cls,
        means: Means,
        channel: Channel,
        timeout: float,
        variant: Variant = VARIANTS["guest-pci"],
        disk: DiskSpec | None = None,
    ) -> Guest:
        """Start QEMU and the agent within `timeout` seconds.

        If that fails, nothing is left behind.

        With a `disk` the machine has it from the start. Raise MachineError, ChannelError or
        AgentError.
        """
        machine = Machine(means.config(channel, variant))
        try:
            if disk:
                machine.add_disk(disk)
            machine.start()
            agent = open_agent(machine, channel, means.image, timeout)
            return cls(machine, agent, agent.hello(), variant.kind)
        except BaseException:
            machine.stop()
            raise

    @classmethod
    def clone(
        cls,
        template: Template,
        means: Means,
        channel: Channel,
        timeout: float,
        variant: Variant = VARIANTS["guest-pci"],
        disk: DiskSpec | None = None,
    ) -> Guest:
        """Start a guest from a template made by `harness.targets.guest.template`; else as `boot`.

        The agent runs already; over SSH it is connected within `timeout` seconds.
        """
        config = means.config(channel, variant)
        machine = Machine(replace(config, saved=template.saved, name="clone"))
        try:
            if disk:
                machine.add_disk(disk)
            machine.start()
            agent = Agent(SerialStream(machine.stream_path), _check(machine))
            # First of all, so that two clones never draw the same random number.
            agent.renew()
            if channel == "ssh":
                agent.close()
                agent = connect_agent(machine, means.image, timeout)
            guest = cls(machine, agent, template.facts["hello"], variant.kind, cloned=True)
            guest._remains = template.facts["remains"]
            return guest
        except BaseException:
            machine.stop()
            raise

    def works(self) -> bool:
        """Return True if QEMU runs, the agent answers, and no disk is stuck in it (`retired`)."""
        if self.retired:
            return False
        try:
            self.agent.ping()
        except Trouble:
            return False
        return True

    def changes(self) -> str:
        """Return in words what a test has left in the guest or in its QEMU, "" if nothing.

        A guest is unchanged if the agent answers; no driver is attached, and no disk plugged; the
        drivers' memory was given back; no process of ours runs; and neither the kernel nor QEMU
        has printed a warning.
        """
        if not self.machine.alive():
            return self.machine.fate()
        if self.machine.drives:
            return "a disk is still plugged"
        if self.machine.last_words() != self._words:
            return f"QEMU has printed: {self.machine.last_words().splitlines()[-1]}"
        try:
            remains = self.agent.remains()
        except Trouble as error:
            return f"the agent does not answer: {error}"
        before = self._remains
        changed = [name for name, value in remains.items() if value != before.get(name)]
        return "; ".join(f"{name}: {before.get(name)} became {remains[name]}" for name in changed)

    def at_end(self, clean: Callable[[], None]) -> None:
        """Call `clean` once the guest has ended."""
        self._at_end.callback(clean)

    def end(self) -> None:
        """Stop QEMU, and with it everything in it."""
        with suppress(*Trouble):
            self.agent.close()
        self.machine.stop()
        self._at_end.close()


def open_agent(machine: Machine, channel: Channel, image: images.Image, timeout: float) -> Agent:
    """Start an agent in a guest that has booted, or is booting, within `timeout` seconds."""
    return Agent(_open(machine, channel, image, timeout), _check(machine))


def connect_agent(machine: Machine, image: images.Image, timeout: float) -> Agent:
    """Connect over SSH, within `timeout` seconds, to the agent that listens in a guest."""
    # The import of paramiko takes longer than the collection of a whole test file.
    from harness.channel.ssh import open_forwarded

    assert machine.ssh_port
    stream = open_forwarded(
        "127.0.0.1",
        machine.ssh_port,
        image.ssh_key,
        image.ssh_host_key,
        images.AGENT_PORT,
        time.monotonic() + timeout,
        machine.check,
    )
    return Agent(stream, _check(machine))


def _check(machine: Machine) -> Check:
    """Return the check that an agent's calls repeat while they wait.

    For a driver, a machine that has ended is a device that is gone: DriverError.
    """

    def check() -> None:
        try:
            machine.check()
        except MachineError as error:
            raise DriverError(str(error)) from error

    return check


def _open(machine: Machine, channel: Channel, image: images.Image, timeout: float) -> Stream:
    deadline = time.monotonic() + timeout
    if channel == "serial":
        return open_serial(
            machine.console_path, machine.stream_path, payload(), deadline, machine.check
        )
    assert machine.ssh_port
    # The import of paramiko takes longer than the collection of a whole test file.
    from harness.channel.ssh import open_ssh

    return open_ssh(
        "127.0.0.1",
        machine.ssh_port,
        image.ssh_key,
        image.ssh_host_key,
        payload(),
        deadline,
        machine.check,
    )
