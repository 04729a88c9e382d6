"""QEMU as a user's VMM: our guest boots in it, and its disk is found."""

from __future__ import annotations

import sys
from pathlib import Path

from harness.diskspec import DiskSpec
from harness.machine import find_qemu
from harness.targets.disk import Disk
from harness.targets.registry import Settings, maker
from harness.targets.userfile import load
from harness.virtio.blk import Status


def test_a_disk_on_the_kernels_command_line(tmp_path: Path) -> None:
    monitor = tmp_path / "monitor.py"
    monitor.write_text(
        "import socket, sys\n"
        "monitor = socket.socket(socket.AF_UNIX)\n"
        "monitor.connect(sys.argv[1])\n"
        "monitor.sendall(sys.argv[2].encode() + b'\\nhelp nothing\\n')\n"
        "text = b''\n"
        "while text.count(b'(qemu) ') < 3:\n"
        "    text += monitor.recv(4096)\n"
    )
    file = tmp_path / "mine.toml"
    file.write_text(f"""
[target.mine]
vmm = '''{find_qemu(None).path} -M microvm,acpi=off,ioapic2=off -cpu max -m 256 -no-reboot
  -nodefaults -no-user-config -display none -global virtio-mmio.force-legacy=off -serial stdio
  -kernel {{vmlinux}} -initrd {{initrd}} -append {{append}}
  -chardev socket,id=m,path={{dir}}/m,server=on,wait=off -mon m
  -drive if=none,id=d,format=raw,file={{file}} -device virtio-blk-device,drive=d'''
serial = "stdio"
append = "tsc_early_khz=2000000"
resize = "{sys.executable} {monitor} {{dir}}/m 'block_resize d {{bytes}}B'"
""")
    target = maker("mine", load(file))(Settings(boot_timeout=120))
    try:
        assert target.traits == {"guest", "modern", "mmio"}
        disk = Disk(target.plug(DiskSpec()))
        disk.start()
        assert disk.write(7, b"\x77" * 512).status is Status.OK
        assert disk.backing.read(7, 1) == b"\x77" * 512
        disk.resize(128)
        (change,) = disk.driver.wait_config_change(above=0)
        assert change.capacity == 128
        disk.unplug()
    finally:
        target.close()
