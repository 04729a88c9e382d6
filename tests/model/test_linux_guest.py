"""The model as a disk of a booted Linux: Linux's driver, a file system, a resize, discard."""

from __future__ import annotations

import io
import re
import socket
import subprocess
import tarfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path, PurePosixPath

import pytest

import images
from harness.diskspec import DiskSpec
from harness.machine import Machine, MachineConfig, find_qemu
from harness.targets.model import ModelProcess
from images import cache, cpio, lock, modules
from tests.model.vfio_user_qemu import qemu_with_vfio_user

DEADLINE = 120.0
"""Seconds that a boot, or a command in the guest, may take on a busy machine."""

NUDGE = 10.0
"""Seconds of silence after which the shell is asked for a prompt again."""

DRIVERS = ("virtio_pci", "virtio_blk")
CAPACITY = 64 * 2048
"""Sectors: 64 MiB."""


class Shell:
    """The shell on the guest's console."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        self._await_prompt()
        self._socket.settimeout(DEADLINE)
        self.run("stty -echo")

    def run(self, command: str) -> str:
        """Run a command, assert its success, and return its output."""
        # With the quotes, the echo of the command does not match the pattern of its end.
        self._socket.sendall(f"{command}; echo en''ded=$?=\n".encode())
        output, status = self._until(r"ended=(\d+)=")
        assert status == "0", f"{command}: {output}"
        return output.rpartition("# ")[2].strip()

    def wait_for(self, condition: str) -> None:
        """Wait until a condition of test(1) is true in the guest."""
        self.run(f"n=0; until [ {condition} ] || [ $n = 200 ]; do sleep 0.1; n=$((n+1)); done")
        self.run(f"[ {condition} ]")

    def _await_prompt(self) -> None:
        """Wait for the prompt; ask for another one if the first came before the connection."""
        self._socket.settimeout(NUDGE)
        deadline = time.monotonic() + DEADLINE
        while True:
            try:
                self._until(r"vblk# ")
                return
            except TimeoutError:
                assert time.monotonic() < deadline, f"no prompt within {DEADLINE:g} s"
                self._socket.sendall(b"\n")

    def _until(self, pattern: str) -> tuple[str, str]:
        """Return the console's output up to a match, and the group of the match."""
        heard = ""
        while not (match := re.search(pattern, heard)):
            data = self._socket.recv(4096)
            assert data, f"the console closed: {heard}"
            heard += data.decode(errors="replace")
        return heard[: match.start()], "".join(match.groups())

    def close(self) -> None:
        self._socket.close()


def driver_modules() -> dict[str, bytes]:
    """Return the virtio kernel modules, which the image does not have, in load order."""
    debs = cache.fetch(cache.cache_dir(), lock.read(lock.PATH), print)
    kernel = next(path for name, path in debs.items() if name.startswith("linux-image-"))
    unpacked = subprocess.run(
        ["dpkg-deb", "--fsys-tarfile", kernel], check=True, capture_output=True, timeout=DEADLINE
    ).stdout
    with tarfile.open(fileobj=io.BytesIO(unpacked)) as tar:
        found = {}
        for member in tar:
            file = tar.extractfile(member) if member.name.endswith(".ko") else None
            if file:
                found[member.name] = file.read()
    return {PurePosixPath(path).name: found[path] for path in modules.needed(found, DRIVERS)}


@pytest.fixture
def initrd(tmp_path: Path) -> Path:
    """The guest image's initramfs, with the drivers of a virtio disk added in /drivers."""
    tree = cpio.Tree()
    for number, (name, content) in enumerate(driver_modules().items()):
        tree.file(f"drivers/{number}-{name}", content)
    path = tmp_path / "initrd"
    with path.open("wb") as file:
        file.write(images.ensure().initrd.read_bytes())
        cpio.write(tree, file)
    return path


@pytest.fixture(params=["vhost-user", "pci", "pci-transitional"])
def guest(
    request: pytest.FixtureRequest, model: ModelProcess, initrd: Path
) -> Iterator[tuple[Machine, Shell, Path, str]]:
    """A Linux with the model as /dev/vda: machine, shell, backing file, and name of the disk."""
    way = request.param
    spec = DiskSpec(capacity=CAPACITY, serial="linux-and-model")
    image = images.ensure()
    qemu = find_qemu() if way == "vhost-user" else qemu_with_vfio_user()
    config = MachineConfig(qemu, image.kernel, initrd, images.KERNEL_ARGS, shared_memory=True)
    with ExitStack() as stack:
        machine = Machine(config)
        stack.callback(machine.stop)
        name, link, file = model.add(spec, way)
        assert file
        add = machine.add_vhost_user if way == "vhost-user" else machine.add_vfio_user
        drive = add(link, spec)
        machine.start()
        shell = Shell(machine.console_path)
        stack.callback(shell.close)
        shell.run("for file in /drivers/*; do insmod $file || break; done")
        shell.run(f"echo {drive.pci_address} > /sys/bus/pci/drivers/virtio-pci/bind")
        shell.wait_for("-e /dev/vda")
        # Once more: the driver lets the device go, and finds it as if it were new.
        shell.run(f"echo {drive.pci_address} > /sys/bus/pci/drivers/virtio-pci/unbind")
        shell.wait_for("! -e /dev/vda")
        shell.run(f"echo {drive.pci_address} > /sys/bus/pci/drivers/virtio-pci/bind")
        shell.wait_for("-e /dev/vda")
        yield machine, shell, file, name


def test_linux_uses_the_model_as_a_disk(
    guest: tuple[Machine, Shell, Path, str], model: ModelProcess
) -> None:
    machine, shell, file, name = guest
    assert shell.run("cat /sys/block/vda/size") == str(CAPACITY)
    assert shell.run("cat /sys/block/vda/serial") == "linux-and-model"
    assert shell.run("cat /sys/block/vda/queue/write_cache") == "write back"

    # Raw bytes at both ends of the disk.
    shell.run("head -c 65536 /dev/urandom > /tmp/data")
    for place in (0, CAPACITY // 128 - 1):
        shell.run(f"dd if=/tmp/data of=/dev/vda bs=65536 seek={place} conv=fsync 2>/dev/null")
    digest = shell.run("sha256sum < /tmp/data").split()[0]
    content = file.read_bytes()
    assert content[:65536] == content[-65536:] != bytes(65536)
    shell.run("echo 3 > /proc/sys/vm/drop_caches")
    assert digest in shell.run("tail -c 65536 /dev/vda | sha256sum")

    # A file system grows, and its files are unchanged.
    shell.run("mke2fs /dev/vda > /dev/null && mkdir -p /mnt && mount -t ext2 /dev/vda /mnt")
    shell.run("head -c 8388608 /dev/urandom > /mnt/file; cp /mnt/file /mnt/copy")
    digest = shell.run("sha256sum < /mnt/file").split()[0]
    shell.run("umount /mnt && mount -t ext2 /dev/vda /mnt")
    assert digest in shell.run("sha256sum < /mnt/copy")
    model.resize(name, 2 * CAPACITY)
    shell.wait_for(f'"$(cat /sys/block/vda/size)" = {2 * CAPACITY}')
    shell.run("echo 3 > /proc/sys/vm/drop_caches")
    assert digest in shell.run("sha256sum < /mnt/file")

    # Deleted and trimmed data uses no storage on the host.
    before = file.stat().st_blocks
    shell.run("rm /mnt/copy && sync && fstrim /mnt")
    assert file.stat().st_blocks < before - 8388608 // 512 // 2
    assert digest in shell.run("sha256sum < /mnt/file")
    shell.run("umount /mnt && blkdiscard /dev/vda")
    assert file.stat().st_blocks == 0
    assert not any(file.read_bytes())

    errors = shell.run("dmesg | grep -c -i -e 'I/O error' -e 'vda.*error' || true")
    assert errors == "0"
    machine.check()
    model.check()
