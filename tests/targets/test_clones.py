"""Cloned guests: the resources that each has of its own, and hosts without clones."""

from __future__ import annotations

import os
import re
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest

import harness.guest.client as client
from harness.diskspec import DiskSpec
from harness.driver.interface import Request
from harness.machine import MachineError, find_qemu
from harness.machine.templates import _digest
from harness.targets import GuestTarget, Plugged
from harness.virtio.blk import RequestType, Status

DEADLINE = 60.0  # seconds
IN_2040 = 2_209_032_000.0  # 2040-01-01 12:00 UTC
DATA = bytes(range(1, 65)) * 8


@pytest.fixture
def new_target() -> Iterator[Callable[..., GuestTarget]]:
    with ExitStack() as stack:

        def make(channel: str = "serial", name: str = "guest-pci", **more: object) -> GuestTarget:
            target = GuestTarget(channel, name=name, boot_timeout=120.0, **more)
            stack.callback(target.close)
            return target

        yield make


def plugged(target: GuestTarget) -> Plugged:
    """Plug a disk into a clone, and assert that it works."""
    disk = target.plug(DiskSpec(capacity=64))
    assert target.guest and target.guest.cloned
    disk.driver.start()
    assert disk.driver.request(Request(RequestType.OUT, 1, DATA)).status == Status.OK
    assert disk.backing.read(1, 1) == DATA
    return disk


def asked(target: GuestTarget, command: str) -> str:
    """Run a command in the shell on the guest's console, and return its output."""
    assert target.guest
    with socket.socket(socket.AF_UNIX) as console:
        console.settimeout(DEADLINE)
        console.connect(str(target.guest.machine.console_path))
        console.sendall(f"echo beg''in $({command}) e''nd\n".encode())
        heard = b""
        while not (found := re.search(rb"begin (.*?) ?end", heard, re.DOTALL)):
            heard += console.recv(4096)
    return found[1].decode().strip()


def test_two_clones_share_no_random_numbers_no_place_and_no_memory(
    new_target: Callable[..., GuestTarget],
) -> None:
    targets = [new_target(), new_target()]
    for target in targets:
        plugged(target)
    machines = [target.guest.machine for target in targets if target.guest]
    ram = machines[0].config.saved.ram
    digest = _digest(ram)

    command = "head -c 16 /dev/urandom | hexdump -e '16/1 \"%02x\"'"
    drawn = [asked(target, command) for target in targets]
    assert len(set(drawn)) == 2
    assert [len(number) for number in drawn] == [32, 32]

    assert asked(targets[0], "echo mine > /tmp/file; cat /tmp/file") == "mine"
    assert asked(targets[1], "ls /tmp") == ""
    writable = [
        {path for path in written(machine.pid) if not path.startswith("/dev")}
        for machine in machines
    ]
    assert writable[0] & writable[1] == {str(ram)}  # mapped copy-on-write
    assert _digest(ram) == digest
    assert machines[0].stream_path != machines[1].stream_path


def written(pid: int | None) -> set[str]:
    """Return the files that a process has open for writing."""
    found = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            info = (link.parent.parent / "fdinfo" / link.name).read_text()
            path = str(link.readlink())
        except FileNotFoundError:
            continue  # closed in the meantime
        flags = int(info.partition("flags:")[2].split()[0], 8)
        if flags & os.O_ACCMODE != os.O_RDONLY and path.startswith("/"):
            found.add(path)
    return found


def test_a_clone_has_the_host_s_time(
    new_target: Callable[..., GuestTarget], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Only the client's clock: by another clock all that is cached would be long unused.
    monkeypatch.setattr(client, "time", SimpleNamespace(time=lambda: IN_2040))
    target = new_target()
    plugged(target)

    assert asked(target, "date -u +%Y-%m-%dT%H") == "2040-01-01T12"


def test_what_one_test_does_to_a_guest_the_next_does_not_see(
    new_target: Callable[..., GuestTarget],
) -> None:
    target = new_target()
    disk = plugged(target)
    machine = target.guest.machine
    asked(target, "echo 0 > /proc/sys/vm/nr_hugepages; rm -r /sys/x /usr /bin; echo")
    disk.leave()
    target.release()
    assert not machine.alive()
    assert not machine.stream_path.parent.exists()

    plugged(target).leave()
    target.release()
    assert target.facts()["guests"] == "cloned"


def test_one_cloned_ahead_is_the_next_test_s_and_none_is_left(
    new_target: Callable[..., GuestTarget],
) -> None:
    target = new_target(ahead=True)
    machines = []
    for _ in range(3):
        plugged(target).leave()
        machines.append(target.guest.machine)
        waiting = target._ahead._next.result().machine
        target.release()
        assert waiting.alive()
        assert not machines[-1].alive()
    assert len({machine.pid for machine in machines}) == 3

    target.close()
    assert not waiting.alive()
    assert waiting not in machines


def test_one_cloned_ahead_of_a_change_to_its_template_is_not_used(
    new_target: Callable[..., GuestTarget],
) -> None:
    target = new_target(ahead=True)
    plugged(target).leave()
    waiting = target._ahead._next.result().machine
    os.utime(waiting.config.saved.ram)
    target.release()

    plugged(target)
    assert target.guest.machine is not waiting
    assert not waiting.alive()


def test_a_clone_that_a_test_left_as_it_was_serves_the_next_test(
    new_target: Callable[..., GuestTarget],
) -> None:
    target = new_target(reuse=True, accel="tcg")
    plugged(target).leave()
    guest = target.guest
    asked(target, "echo '<5>a notice' > /dev/kmsg; echo '<4>CE: later' > /dev/kmsg")
    target.release()

    plugged(target)
    assert target.guest is guest and guest.served == 1
    assert "used again" in target.facts()["guests"]
    assert target.evidence()["the guest"] == "tests served before: 1"


def test_what_a_test_leaves_ends_its_clone(
    new_target: Callable[..., GuestTarget], monkeypatch: pytest.MonkeyPatch
) -> None:
    messages: list[str] = []
    target = new_target(reuse=True, accel="tcg", progress=messages.append)

    def stuck(drive: object) -> None:
        raise MachineError("the guest did not let go of it")

    def last_words() -> None:
        stderr = target.guest.machine._stderr
        stderr.write_text(f"{stderr.read_text()}virtio-blk missing headers\n")

    leaves: dict[str, Callable[[], object]] = {
        "a warning of the kernel": lambda: asked(target, "echo '<4>a warning' > /dev/kmsg"),
        "a huge page": lambda: asked(target, "fallocate -l 2097152 /dev/hugepages/left 2>&1"),
        "a line of QEMU": last_words,
        "another disk": lambda: target.plug(DiskSpec()),
        "a disk that is not unplugged": lambda: monkeypatch.setattr(
            target.guest.machine, "remove_disk", stuck
        ),
        "a failure": target.distrust,
    }
    for what, leave in leaves.items():
        disk = plugged(target)
        machine = target.guest.machine
        leave()
        disk.leave()
        target.release()
        assert not machine.alive(), what

    reasons = [line for line in messages if line.startswith("the guest is not used again: ")]
    for reason in (
        "a warning",
        "pages: 0 became 1",
        "virtio-blk missing headers",
        "a disk is still plugged",
    ):
        assert any(reason in line for line in reasons), reason


def test_the_end_of_a_clone_after_its_test_is_reported(
    new_target: Callable[..., GuestTarget],
) -> None:
    messages: list[str] = []
    target = new_target(reuse=True, accel="tcg", progress=messages.append)
    plugged(target).leave()
    os.kill(target.guest.machine.pid, signal.SIGKILL)
    target.guest.machine._process.wait(DEADLINE)
    target.release()

    assert messages[-1].startswith("the guest is not used again: QEMU ")
    assert "SIGKILL" in messages[-1]


def test_ssh_reaches_each_clone_by_a_port_of_its_own(
    new_target: Callable[..., GuestTarget],
) -> None:
    targets = [new_target("ssh"), new_target("ssh")]
    for target in targets:
        plugged(target)
    ports = {target.guest.machine.ssh_port for target in targets}

    assert len(ports) == 2
    for target in targets:
        plugged(target)


def test_a_back_end_outside_qemu_has_a_copy_of_the_memory(
    new_target: Callable[..., GuestTarget],
) -> None:
    target = new_target(name="guest-vhost-user")
    disk = plugged(target)
    ram = target.guest.machine.config.saved.ram
    digest = _digest(ram)
    assert str(ram) not in written(target.guest.machine.pid)
    read = disk.driver.request(Request(RequestType.IN, 1, receive=512))
    assert read.data == DATA
    disk.leave()
    target.release()

    assert _digest(ram) == digest
    plugged(target)


CANNOT = """#!/bin/sh
case "$*" in *-incoming*) echo "no such thing here" >&2; exit 1;; esac
exec {qemu} "$@"
"""


def test_a_qemu_that_cannot_be_cloned_is_booted_and_says_so(
    new_target: Callable[..., GuestTarget], tmp_path: Path
) -> None:
    program = tmp_path / "qemu"
    program.write_text(CANNOT.format(qemu=find_qemu().path))
    program.chmod(0o755)
    messages: list[str] = []
    target = new_target(qemu=str(program), accel="tcg", progress=messages.append)

    disk = target.plug(DiskSpec())
    guest = target.guest
    assert guest and not guest.cloned
    disk.leave()
    target.release()

    assert target.plug(DiskSpec()) and target.guest is guest
    why = target.facts()["guests"]
    assert why.startswith("booted (the guest cannot be cloned: QEMU did not start")
    assert "no such thing here" in why
    assert len([line for line in messages if line.startswith("guests are booted, not cloned")]) == 1
