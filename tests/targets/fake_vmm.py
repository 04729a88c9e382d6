"""A VMM without a guest: the model's function, and the agent in this process, on a serial port."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
import tty
from argparse import ArgumentParser
from pathlib import Path

BOOT = b"SeaBIOS (version fake)\r\n[    0.000000] Linux version 6.1\r\n"

parser = ArgumentParser()
parser.add_argument("--habit", default="good")
parser.add_argument("--port", default="stdio")
parser.add_argument("--disk", type=Path)
parser.add_argument("--disks", type=Path, help="a directory with links to the files of disks")
parser.add_argument("--option", action="append", default=[])
parser.add_argument("--append", default="")
options = parser.parse_args()
habit = options.habit


def open_port() -> int:
    if options.port == "stdio":
        tty.setraw(1)
        return 1
    if options.port == "pty":
        ours, theirs = os.openpty()
        print(f"serial port at {os.ttyname(theirs)}", flush=True)
        return ours
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(options.port)
    listener.listen()
    return listener.accept()[0].detach()


if habit == "exits":
    print("fake: no such kernel", flush=True)
    sys.exit(3)
if habit == "never-listens":
    print("fake: warming up", flush=True)
    time.sleep(600)
port = open_port()
if habit == "silent":
    time.sleep(600)
os.write(port, BOOT)
if habit == "panics":
    os.write(port, b"[    1.5] Kernel panic - not syncing: VFS: no root\r\n")
    time.sleep(600)
if habit == "login":
    os.write(port, b"debian login: ")
    time.sleep(600)

# After what a test waits for only shortly: these take a while on a busy machine.
from harness.driver.block import BlockDriver  # noqa: E402
from harness.driver.bus.vfio_user import VfioUser  # noqa: E402
from harness.driver.interface import Driver  # noqa: E402
from harness.driver.transport.pci import PciModern  # noqa: E402
from harness.guest import agent  # noqa: E402
from harness.machine.foreign import listens  # noqa: E402
from images.guest import bootstrap  # noqa: E402


def files() -> dict[str, Path]:
    if options.disk:
        return {"0000:00:04.0": options.disk}
    links = sorted(options.disks.glob("*"))
    return {f"0000:00:{link.name[4:]:0>2}.0": link.resolve() for link in links}


def disks() -> list[tuple[str, str]]:
    there = [("pci", address) for address in files()]
    if habit == "legacy":
        return [("mmio-legacy", "0xfeb00000")]
    return {"no-disk": [], "two-disks": [*there, ("pci", "0000:00:07.0")]}.get(habit, there)


def attach(kind: str, address: str, timeout: float) -> Driver:
    file = files()[address]
    path = f"{file}.sock"
    command = [sys.executable, "-m", "harness.model", "--way", "pci", "--socket", path]
    more = [word for option in options.option for word in ("--option", option)]
    if habit == "another-file":
        file.rename(f"{file}.away")
        file.write_bytes(bytes(Path(f"{file}.away").stat().st_size))
    model = subprocess.Popen([*command, "--file", str(file), *more], stdout=2)
    while not listens(Path(path), False) and model.poll() is None:
        time.sleep(0.01)
    if habit == "dies":
        os._exit(7)
    return BlockDriver(PciModern(VfioUser(path)))


os.write(port, b"vblk# ")
typed = b""
while b"bootstrap.py" not in typed:
    typed += os.read(port, 4096)
if habit == "no-agent":
    os.write(port, b"sh: python3.11: not found\r\n\nVBLK-EXIT 127\r\nvblk# ")
    time.sleep(600)
bootstrap.say(port, "VBLK-BOOTSTRAP 1")
bootstrap.receive_code(port, port)
bootstrap.say(port, "VBLK-RUN")
os.write(port, b"\r\n[    9.123456] a message of the kernel\r\n")
agent._disks = disks
assert re.search("console=ttyS0 .*pci=off", options.append)
agent.Server(port, port, attach).run()
