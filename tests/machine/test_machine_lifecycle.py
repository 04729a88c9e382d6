"""A machine starts, ends, and leaves nothing behind, whichever process dies first."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import harness
import harness.machine.process as process_module
import harness.machine.supervisor as supervisor
from harness.diskspec import DiskSpec
from harness.machine import Machine, MachineConfig, MachineError
from harness.machine.rundir import RunDir

NewMachine = Callable[..., Machine]
NewBios = Callable[..., Path]

CHILD = """
import sys, time
from pathlib import Path
from harness.machine import Machine, MachineConfig, find_qemu
from harness.interrupt import install
install()
with Machine(MachineConfig(find_qemu(), bios=Path(sys.argv[1]), memory=32)) as machine:
    print(machine.pid, machine.qmp_path.parent, flush=True)
    {then}
"""


def until(condition: Callable[[], bool], what: str, deadline: float = 60.0) -> None:
    end = time.monotonic() + deadline
    while not condition():
        assert time.monotonic() < end, f"{what} was not true within {deadline:g} s"
        time.sleep(0.02)


def runs(pid: int) -> bool:
    """Return True when the process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture
def temporary(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory for temporary files in which no other process removes those of dead runs."""
    monkeypatch.setenv("TMPDIR", str(short_dir))
    monkeypatch.setattr("tempfile.tempdir", str(short_dir))


def child(config: MachineConfig, then: str) -> tuple[subprocess.Popen[str], int, Path]:
    """Start a Python process, in its own process group, that starts a machine."""
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD.format(then=then), str(config.bios)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(harness.__file__).parents[1],
        start_new_session=True,
    )
    assert process.stdout
    with process.stdout:
        pid, directory = process.stdout.readline().split()
    return process, int(pid), Path(directory)


def test_start_and_stop_leave_nothing(new_machine: NewMachine) -> None:
    threads = {*threading.enumerate()}
    machine = new_machine()
    directory = machine.qmp_path.parent
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700

    machine.start()

    assert machine.alive()
    assert machine.pid
    assert runs(machine.pid)
    assert machine.qmp("query-status")["status"] == "running"
    for path in (machine.console_path, machine.stream_path, machine.qmp_path):
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(str(path))

    assert {*threading.enumerate()} - threads
    machine.stop()
    assert not machine.alive()
    assert not runs(machine.pid)
    assert not directory.exists()
    # A thread that an earlier test has left may end at any moment.
    assert {*threading.enumerate()} <= threads
    machine.stop()


def test_cannot_be_used_before_start_or_after_stop(new_machine: NewMachine) -> None:
    machine = new_machine()
    with pytest.raises(MachineError, match="not been started"):
        machine.qmp("query-status")

    machine.start()
    with pytest.raises(MachineError, match="only once"):
        machine.start()

    machine.stop()
    with pytest.raises(MachineError, match="exited with status 0 on host-qmp-quit"):
        machine.qmp("query-status")
    with pytest.raises(MachineError, match="exited with status 0"):
        machine.check()
    with pytest.raises(MachineError, match="only once"):
        machine.start()


def test_an_exception_ends_it(config: MachineConfig) -> None:
    def fail() -> None:
        with Machine(config) as machine:
            seen.append(machine)
            raise RuntimeError

    seen: list[Machine] = []
    with pytest.raises(RuntimeError):
        fail()
    assert seen[0].pid
    assert not runs(seen[0].pid)
    assert not seen[0].qmp_path.parent.exists()


def test_qemu_that_refuses_its_options_is_quoted(
    new_machine: NewMachine, config: MachineConfig
) -> None:
    machine = new_machine(replace(config, kernel=Path("/nonexistent/kernel")))
    directory = machine.qmp_path.parent

    with pytest.raises(MachineError) as caught:
        machine.start()

    assert "/nonexistent/kernel" in str(caught.value)
    assert "exited with status 1" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(config.bios) in caught.value.details
    assert not directory.exists()


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGABRT, signal.SIGSEGV])
def test_the_end_of_qemu_during_a_command_is_reported_at_once(
    machine: Machine, signum: signal.Signals
) -> None:
    pid = machine.pid
    assert pid
    os.kill(pid, signal.SIGSTOP)  # the command is sent and never answered

    def end() -> None:
        os.kill(pid, signum)
        if signum != signal.SIGKILL:
            os.kill(pid, signal.SIGCONT)

    threading.Timer(0.2, end).start()

    with pytest.raises(MachineError) as caught:
        machine.qmp("query-status", timeout=60)

    assert signum.name in str(caught.value)
    assert "query-status" in str(caught.value)
    assert str(machine.qmp_path) in caught.value.details
    assert not machine.alive()
    assert signum.name in machine.last_words()


def test_qemu_dying_ends_the_wait_for_an_event(machine: Machine) -> None:
    assert machine.pid
    threading.Timer(0.2, os.kill, (machine.pid, signal.SIGKILL)).start()
    with pytest.raises(MachineError, match=r"RESUME.*SIGKILL"):
        machine.wait_event("RESUME", timeout=60)
    with pytest.raises(MachineError, match="SIGKILL"):
        machine.qmp("query-status")


def test_qemu_that_hangs_misses_the_deadline_and_is_ended(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "QUIT_DEADLINE", 0.1)
    monkeypatch.setattr(process_module, "TERM_DEADLINE", 0.1)
    assert machine.pid
    os.kill(machine.pid, signal.SIGSTOP)

    with pytest.raises(MachineError, match=r"did not answer 'query-status' within 0\.1 s"):
        machine.qmp("query-status", timeout=0.1)
    machine.stop()

    assert not runs(machine.pid)
    assert "SIGKILL" in machine.last_words()


def test_refused_command_has_qemus_words(machine: Machine) -> None:
    with pytest.raises(MachineError, match="The command no-such-thing has not been found"):
        machine.qmp("no-such-thing")


def test_events_are_taken_once_also_late(machine: Machine) -> None:
    machine.qmp("stop")
    machine.qmp("cont")

    assert machine.wait_event("RESUME")["event"] == "RESUME"
    assert machine.wait_event("STOP", lambda event: event["timestamp"]["seconds"] > 0)
    with pytest.raises(MachineError, match=r"sent no event STOP within 0\.05 s"):
        machine.wait_event("STOP", timeout=0.05)


def test_console_is_logged_and_outlives_the_machine(
    new_machine: NewMachine, config: MachineConfig, new_bios: NewBios
) -> None:
    bios = new_bios(says="one\r\ntwo\r\nthree\r\n")
    machine = new_machine(replace(config, bios=bios))
    machine.start()
    until(lambda: "three" in machine.console_tail(), "the console's last line")

    assert machine.console_tail() == "one\ntwo\nthree"
    assert machine.console_tail(2) == "two\nthree"
    machine.stop()
    assert machine.console_tail(2) == "two\nthree"


def test_guest_panic_is_named(
    new_machine: NewMachine, config: MachineConfig, new_bios: NewBios
) -> None:
    # Do what QEMU sees of a kernel panic with panic=-1: the kernel reports the panic and
    # resets the machine.
    bios = new_bios(says="Kernel panic - not syncing: no init\r\n", reset=True)
    machine = new_machine(replace(config, bios=bios))
    machine.start()
    until(lambda: not machine.alive(), "the end of QEMU")

    with pytest.raises(MachineError, match=r"kernel panicked \(no init\)") as caught:
        machine.check()
    assert "not syncing: no init" in caught.value.details


def test_ssh_port_of_two_machines(new_machine: NewMachine, config: MachineConfig) -> None:
    machines = [new_machine(replace(config, ssh=True)) for _ in range(2)]
    for machine in machines:
        machine.start()
        assert machine.ssh_port
        socket.create_connection(("127.0.0.1", machine.ssh_port), timeout=5).close()
    assert machines[0].ssh_port != machines[1].ssh_port


def test_two_machines_share_nothing(new_machine: NewMachine) -> None:
    first, second = new_machine(), new_machine()
    disks = [machine.add_disk(DiskSpec()) for machine in (first, second)]
    first.start()
    second.start()

    disks[0].backing.write(0, b"\x11" * 512)
    disks[0].resize(8)
    first.stop()

    assert second.alive()
    assert disks[1].backing.read(0, 1) == bytes(512)
    assert disks[1].backing.size == DiskSpec().capacity * 512
    assert second.qmp("query-status")["status"] == "running"


def test_a_machine_outlives_the_thread_that_started_it(new_machine: NewMachine) -> None:
    machine = new_machine()
    starter = threading.Thread(target=machine.start)
    starter.start()
    starter.join()
    time.sleep(0.2)
    assert machine.alive()
    assert machine.qmp("query-status")["status"] == "running"


@pytest.mark.usefixtures("temporary")
def test_killed_parent(config: MachineConfig) -> None:
    process, pid, directory = child(config, "time.sleep(600)")
    process.kill()
    process.wait(60)
    until(lambda: not runs(pid), "the end of QEMU")
    assert directory.exists()

    RunDir().remove()  # as the start of the next machine does

    assert not directory.exists()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_parent_with_a_signal_cleans_up(config: MachineConfig, signum: signal.Signals) -> None:
    process, pid, directory = child(config, "time.sleep(600)")
    os.killpg(process.pid, signum)  # to the group, as for Ctrl-C in a terminal
    process.wait(60)
    until(lambda: not runs(pid), "the end of QEMU")
    assert not directory.exists()


def test_exit_without_stop(config: MachineConfig) -> None:
    process, pid, directory = child(config, "machine.__exit__ = None; sys.exit(0)")
    assert process.wait(60) == 0
    until(lambda: not runs(pid), "the end of QEMU")
    assert not directory.exists()


def test_a_living_owners_directory_is_not_swept(machine: Machine) -> None:
    RunDir().remove()
    assert machine.qmp_path.exists()
