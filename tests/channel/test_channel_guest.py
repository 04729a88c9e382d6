"""Both channels with a real guest: QEMU, the image, the bootstrap, the agent, a driver."""

from __future__ import annotations

import random
import socket
import time

import pytest

import images
from harness.channel.serial import open_serial
from harness.channel.ssh import open_ssh
from harness.channel.stream import Stream
from harness.diskspec import DiskSpec
from harness.driver.interface import Request
from harness.guest.client import Agent, AgentLostError, payload
from harness.machine import Machine, MachineConfig, find_qemu

BOOT_DEADLINE = 120.0  # seconds
END_DEADLINE = 30.0  # seconds


def open_channel(machine: Machine, image: images.Image, channel: str) -> Stream:
    deadline = time.monotonic() + BOOT_DEADLINE
    if channel == "serial":
        return open_serial(
            machine.console_path, machine.stream_path, payload(), deadline, machine.check
        )
    assert machine.ssh_port
    key, host_key = image.ssh_key, image.ssh_host_key
    return open_ssh(
        "127.0.0.1", machine.ssh_port, key, host_key, payload(), deadline, machine.check
    )


def kill_the_agent(machine: Machine) -> None:
    """Kill the agent through the console, which the channel does not use."""
    with socket.socket(socket.AF_UNIX) as console:
        console.settimeout(END_DEADLINE)
        console.connect(str(machine.console_path))
        console.sendall(b"killall -9 python3.11; echo do''ne\n")
        heard = b""
        while b"done" not in heard:
            data = console.recv(4096)
            assert data, f"the console was closed: {heard!r}"
            heard += data


@pytest.mark.parametrize(
    ("channel", "end"),
    [
        ("serial", "the agent in the guest ended with status 137"),
        # It fails if its end comes before the next call.
        ("ssh", "the SSH connection to the guest (ended|failed: Socket is closed)"),
    ],
)
def test_a_driver_in_a_guest(channel: str, end: str) -> None:
    image = images.ensure()
    config = MachineConfig(
        find_qemu(), image.kernel, image.initrd, images.KERNEL_ARGS, ssh=channel == "ssh"
    )
    data = random.Random(3).randbytes(100_000)
    with Machine(config) as machine:
        agent = Agent(open_channel(machine, image, channel), machine.check)
        assert agent.hello()["kernel"] == image.kernel_release
        driver = agent.attach("pci", machine.add_disk(DiskSpec()).pci_address)
        driver.start()

        address = driver.alloc(len(data))
        driver.memory_write(address, data)
        assert driver.memory_read(address, len(data)) == data
        assert driver.request(Request(type=1, sector=3, data=data[:512])).status == 0
        assert driver.request(Request(type=0, sector=3, receive=512)).data == data[:512]

        kill_the_agent(machine)
        with pytest.raises(AgentLostError, match=end):
            driver.repeat(Request(type=0, receive=512), count=10, timeout=2 * END_DEADLINE)
