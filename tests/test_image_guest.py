"""The built image, booted once: properties of the guest that the harness relies on."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import re
import shutil
import socket
import subprocess
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paramiko
import pexpect
import pytest
from pexpect import socket_pexpect

import images
from images import ssh

BOOT_DEADLINE = 120.0  # seconds; a boot takes 3 on an idle machine
DEADLINE = 60.0
PROMPT = rb"vblk# "
HOT_PLUG_SLOT = "0000:00:05.0"
DISK_SLOT = "0000:00:06.0"
# The modules that the driver and its agent may import (standard library only).
IMPORTS = (
    "ctypes, dataclasses, enum, fcntl, functools, hashlib, json, logging, mmap, os, queue, select, "
    "socket, struct, subprocess, termios, threading, traceback, tty, typing, zipimport, zlib"
)
ECHO_AGENT = """
import os
def main(read_fd, write_fd):
    while (byte := os.read(read_fd, 1)) != b"q":
        os.write(write_fd, byte)
"""


@dataclass
class Guest:
    """A booted guest: its console at the prompt, its second serial port, its SSH port."""

    image: images.Image
    console: Any  # pexpect's SocketSpawn
    agent: socket.socket
    ssh_port: int
    qmp: Callable[..., dict[str, Any]]

    def run(self, command: str) -> str:
        """Run a command on the console, and return its output."""
        self.console.sendline(command)
        self.console.expect(PROMPT)
        return bytes(self.console.before).decode(errors="replace").replace("\r", "")


def connect(path: Path) -> socket.socket:
    deadline = time.monotonic() + DEADLINE
    while True:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(str(path))
            connection.settimeout(DEADLINE)
            return connection
        except OSError:
            connection.close()
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def qmp_client(path: Path, stack: contextlib.ExitStack) -> Callable[..., dict[str, Any]]:
    connection = stack.enter_context(connect(path))
    stream = stack.enter_context(connection.makefile("rw"))

    def execute(command: str, **arguments: object) -> dict[str, Any]:
        stream.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        stream.flush()
        while "event" in (answer := json.loads(stream.readline())):
            pass
        assert "error" not in answer, answer
        return dict(answer)

    assert "QMP" in json.loads(stream.readline())
    execute("qmp_capabilities")
    return execute


def await_prompt(spawn: Any) -> None:
    """Wait for the shell's prompt; ask for another one if the first came before the console."""
    deadline = time.monotonic() + BOOT_DEADLINE
    while spawn.expect([PROMPT, pexpect.TIMEOUT], timeout=10):
        assert time.monotonic() < deadline, spawn.before
        spawn.send(b"\n")
    spawn.send(b"echo rea''dy\n")  # each question may have had an answer
    spawn.expect(rb"ready")
    spawn.expect(PROMPT)


def forwarded_port(qmp: Callable[..., Any]) -> int:
    """Return the port that QEMU has chosen, and that nobody else can take."""
    answer = qmp("human-monitor-command", **{"command-line": "info usernet"})["return"]
    (port,) = re.findall(r"TCP\[HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)\s", answer)
    return int(port)


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    """A guest of 256 MiB with a network card, a disk, and a second disk to plug in."""
    qemu = shutil.which("qemu-system-x86_64")
    if qemu is None:
        pytest.skip("qemu-system-x86_64 is missing: apt-get install qemu-system-x86")
    image = images.ensure(print)
    with contextlib.ExitStack() as stack:
        top = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="image-")))
        command: list[str | Path] = [qemu, "-M", "pc", "-accel", "tcg", "-cpu", "qemu64,+rdrand"]
        command += ["-m", "256", "-nodefaults", "-display", "none", "-no-reboot"]
        command += ["-kernel", image.kernel, "-initrd", image.initrd]
        command += ["-append", images.KERNEL_ARGS]
        for name in ("console", "agent"):
            command += ["-serial", f"unix:{top}/{name},server=on,wait=off"]
        command += ["-qmp", f"unix:{top}/qmp,server=on,wait=off"]
        command += ["-netdev", "user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:0-:22"]
        command += ["-device", "vmxnet3,netdev=net,romfile="]
        for number in range(2):
            command += ["-blockdev", f"null-co,node-name=disk{number},size=1048576,read-zeroes=on"]
        command += ["-device", "virtio-blk-pci,drive=disk0,addr=6"]
        with (top / "stderr").open("wb") as errors:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=errors)
        stack.callback(process.wait, DEADLINE)
        stack.callback(process.kill)
        console = stack.enter_context(connect(top / "console"))
        spawn = socket_pexpect.SocketSpawn(console, timeout=DEADLINE)
        agent = stack.enter_context(connect(top / "agent"))
        qmp = qmp_client(top / "qmp", stack)
        await_prompt(spawn)
        guest = Guest(image, spawn, agent, forwarded_port(qmp), qmp)
        guest.run("stty -echo")  # this also ends the shell's line editor and its escape sequences
        yield guest


def test_the_kernel_is_the_one_the_image_names(guest: Guest) -> None:
    assert guest.run("uname -r").strip() == guest.image.kernel_release


def test_no_kernel_driver_knows_virtio(guest: Guest) -> None:
    loaded = guest.run("lsmod")

    assert "uio_pci_generic" in loaded
    assert "virtio" not in loaded
    assert guest.run("find /lib/modules -name 'virtio*'").strip() == ""


@pytest.mark.parametrize("slot", [DISK_SLOT, HOT_PLUG_SLOT])
def test_a_disk_is_left_alone_and_can_be_given_to_uio(guest: Guest, slot: str) -> None:
    device = f"/sys/bus/pci/devices/{slot}"
    if slot == HOT_PLUG_SLOT:
        guest.qmp("device_add", driver="virtio-blk-pci", drive="disk1", id="hot", addr="0x5")
        guest.run(f"while [ ! -e {device} ]; do sleep 0.1; done")

    assert guest.run(f"ls -d {device}/driver").strip().endswith("No such file or directory")
    guest.run(f"echo uio_pci_generic > {device}/driver_override")
    # The kernel shows a new function a moment before a driver can be bound to it.
    bind = f"echo {slot} > /sys/bus/pci/drivers/uio_pci_generic/bind"
    guest.run(f"until [ -e {device}/uio ] || {bind}; do sleep 0.1; done 2> /dev/null")

    assert re.fullmatch(r"uio\d", guest.run(f"ls {device}/uio").strip())


def test_dma_memory_is_reserved_and_most_of_the_rest_is_free(guest: Guest) -> None:
    meminfo = dict(re.findall(r"^(\w+): +(\d+)", guest.run("cat /proc/meminfo"), re.MULTILINE))

    assert (meminfo["HugePages_Free"], meminfo["Hugepagesize"]) == ("8", "2048")
    assert int(meminfo["MemAvailable"]) > 128 * 1024  # KiB, of 256 MiB
    assert "hugetlbfs /dev/hugepages" in guest.run("cat /proc/mounts")


def test_python_has_what_the_driver_may_import(guest: Guest) -> None:
    assert guest.run(f"python3.11 -S -E -c 'import {IMPORTS}'").strip() == ""


def test_the_shell_comes_back_when_it_exits(guest: Guest) -> None:
    first = guest.run("echo $$")
    guest.console.sendline("exit")
    guest.console.expect(PROMPT)
    guest.run("stty -echo")

    second = guest.run("echo $$")

    assert first.strip().isdigit()
    assert second.strip().isdigit()
    assert second != first


def agent_code() -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as code:
        code.writestr("harness/__init__.py", "")
        code.writestr("harness/guest/__init__.py", "")
        code.writestr("harness/guest/agent.py", ECHO_AGENT)
        code.writestr("padding", bytes(range(256)) * 50)
    return archive.getvalue()


def test_the_agent_starts_on_the_second_serial_port_and_any_byte_passes(guest: Guest) -> None:
    code = agent_code()
    offer = f"VBLK-CODE {len(code)} {hashlib.sha256(code).hexdigest()}\n".encode()
    with guest.agent.makefile("rb") as answers:
        guest.console.sendline("python3.11 -S -E /agent/bootstrap.py /dev/ttyS1")
        assert answers.readline() == b"VBLK-BOOTSTRAP 1\n"
        guest.agent.sendall(b"noise\xff\n" + offer)
        for start in range(0, len(code), 4096):
            chunk = code[start : start + 4096]
            guest.agent.sendall(chunk)
            assert answers.readline() == b"VBLK-GOT %d\n" % (start + len(chunk))
        assert answers.readline() == b"VBLK-RUN\n"

        for value in set(range(256)) - {ord("q")}:
            guest.agent.sendall(bytes([value]))
            assert answers.read(1) == bytes([value])
        guest.agent.sendall(b"q")
    guest.console.expect(PROMPT)


def log_in(guest: Guest, **credentials: Any) -> paramiko.SSHClient:
    """Log in as root. Retry connections that fail because dropbear does not listen yet."""
    kind, key = guest.image.ssh_host_key.split()
    deadline = time.monotonic() + BOOT_DEADLINE
    while True:
        client = paramiko.SSHClient()
        client.set_missing_host_key_policy(paramiko.RejectPolicy())
        pinned = paramiko.Ed25519Key(data=base64.b64decode(key))
        client.get_host_keys().add(f"[127.0.0.1]:{guest.ssh_port}", kind, pinned)
        try:
            client.connect(
                "127.0.0.1",
                guest.ssh_port,
                username="root",
                look_for_keys=False,
                allow_agent=False,
                timeout=DEADLINE,
                auth_timeout=DEADLINE,
                **credentials,
            )
            return client
        except (paramiko.AuthenticationException, paramiko.BadHostKeyException):
            client.close()
            raise
        except (paramiko.SSHException, OSError):
            client.close()
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def test_ssh_takes_the_cache_s_key_and_shows_the_pinned_host_key(guest: Guest) -> None:
    with log_in(guest, key_filename=str(guest.image.ssh_key)) as client:
        sessions = [client.exec_command("id -u", timeout=DEADLINE) for _ in range(2)]

        assert [output.read() for _, output, _ in sessions] == [b"0\n", b"0\n"]


@pytest.mark.parametrize("password", ["", "root"])
def test_ssh_takes_no_password(guest: Guest, password: str) -> None:
    with pytest.raises(paramiko.BadAuthenticationType) as refusal:
        log_in(guest, password=password)

    assert refusal.value.allowed_types == ["publickey"]


def test_ssh_takes_no_other_key(guest: Guest, tmp_path: Path) -> None:
    ssh.ensure_keys(tmp_path)

    with pytest.raises(paramiko.AuthenticationException):
        log_in(guest, key_filename=str(tmp_path / ssh.CLIENT_KEY))


def test_ssh_forwards_to_the_agent_s_port_only(guest: Guest) -> None:
    def failure(address: str, port: int) -> int:
        with pytest.raises(paramiko.ChannelException) as failed:
            transport.open_channel(
                "direct-tcpip", (address, port), ("127.0.0.1", 0), timeout=DEADLINE
            )
        return failed.value.code

    refused, prohibited = 2, 1  # RFC 4254, section 5.1: connect failed, administratively prohibited
    with log_in(guest, key_filename=str(guest.image.ssh_key)) as client:
        transport = client.get_transport()
        assert transport
        assert failure("127.0.0.1", ssh.AGENT_PORT) == refused
        assert failure("127.0.0.1", 22) == prohibited
        assert failure("10.0.2.2", ssh.AGENT_PORT) == prohibited
        with pytest.raises(paramiko.SSHException, match="forwarding request denied"):
            transport.request_port_forward("127.0.0.1", 0)
