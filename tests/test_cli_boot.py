"""The command `vblk boot` in a terminal, with `resize` and `ssh` from another one."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pexpect
import pytest

import images

VBLK = ("-c", "import sys; from harness.cli import main; sys.exit(main())")
DEADLINE = 90  # seconds, for a guest on a busy machine
MIB = 2**20


@pytest.fixture(scope="module", autouse=True)
def _image() -> None:
    """Build the image before the deadline of a test begins."""
    images.ensure(print)


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory for run directories of this test; `tmp_path` is too long for sockets."""
    with tempfile.TemporaryDirectory(prefix="cli-") as directory:
        monkeypatch.setenv("TMPDIR", directory)
        yield Path(directory)


@contextmanager
def booting(*arguments: str) -> Iterator[pexpect.spawn[str]]:
    """Run `vblk boot` with TCG in a pseudo-terminal, up to its last own line."""
    command = [*VBLK, "boot", "--accel", "tcg", *arguments]
    terminal = pexpect.spawn(
        sys.executable, command, encoding="utf-8", timeout=DEADLINE, dimensions=(24, 400)
    )
    try:
        terminal.expect("The console follows; Ctrl-] ends the guest")
        yield terminal
    finally:
        terminal.close(force=True)


def vblk(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *VBLK, *arguments],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )


def await_prompt(terminal: pexpect.spawn[str]) -> None:
    """Wait for the shell's prompt; ask for another one if the first came before the console."""
    deadline = time.monotonic() + DEADLINE
    while terminal.expect(["vblk# ", pexpect.TIMEOUT], timeout=10):
        assert time.monotonic() < deadline, terminal.before
        terminal.send("\r")


def is_raw(terminal: pexpect.spawn[str]) -> bool:
    return not termios.tcgetattr(terminal.child_fd)[3] & (termios.ICANON | termios.ECHO)


def test_boot_resize_ssh_and_leave(place: Path) -> None:
    image = place / "mine.img"
    image.write_bytes(b"x" * MIB)

    with booting("--disk", "4M", "--disk", str(image)) as terminal:
        output = terminal.before or ""
        assert re.search(r"disk0  4194304 bytes, \S+/disk0\.raw, PCI 0000:00:04\.0", output)
        assert re.search(rf"disk1  {image}, read-only, PCI 0000:00:05\.0", output)
        found = re.search(r"qmp    (\S+)\r", output)
        assert found
        qmp = Path(found[1])
        assert qmp.is_socket()

        await_prompt(terminal)
        terminal.send("echo $((6 * 7))\r")
        terminal.expect("\n42\r")
        # The guest starts its network and its SSH server in the background.
        terminal.send("until [ -e /run/dropbear.pid ]; do sleep 0.1; done; echo $((7 * 7))\r")
        terminal.expect("\n49\r")

        resized = vblk("resize", "disk0", "+4M")
        assert (resized.returncode, resized.stderr) == (0, "")
        assert resized.stdout == "disk0: 4194304 -> 8388608 bytes\n"
        assert qmp.with_name("disk0.raw").stat().st_size == 8 * MIB

        for path in (
            os.environ["PATH"],
            "/nonexistent",
        ):  # with the ssh client, if installed, and without
            there = vblk("ssh", "--", "sh", "-c", "echo 'two  words'; exit 7", PATH=path)
            assert (there.returncode, there.stdout) == (7, "two  words\n"), there.stderr
            line = vblk("ssh", "--", "echo one >&2; printf x | wc -c", PATH=path)
            assert line.returncode == 0, line.stderr
            assert (line.stderr + line.stdout).split() == ["one", "1"]

        terminal.send("\x1d")
        terminal.expect(pexpect.EOF)
        terminal.wait()
    assert terminal.exitstatus == 0
    assert list(place.iterdir()) == [image]


def test_a_terminated_boot_leaves_nothing_and_gives_the_terminal_back(place: Path) -> None:
    with booting("--disk", "1M") as terminal:
        before = time.monotonic()
        while not is_raw(terminal):
            assert time.monotonic() < before + DEADLINE, "the terminal did not switch to raw mode"
            time.sleep(0.05)
        terminal.kill(signal.SIGTERM)
        terminal.expect(pexpect.EOF)
        assert not is_raw(terminal)
        terminal.wait()
    assert terminal.exitstatus == 128 + signal.SIGTERM
    assert list(place.iterdir()) == []
