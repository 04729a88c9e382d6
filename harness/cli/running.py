"""Guests that `vblk boot` runs, and how other processes find them.

A booted guest leaves a note in its machine's run directory. The process that runs the guest locks
this directory and removes it when the machine ends, so there is no list that could be out of date.
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from harness.channel.serial import PROMPT
from harness.cli.errors import UsageError
from harness.inputs import InputError, WrongValueError, build, json_of, read_text
from harness.machine.rundir import PREFIX

_NOTE = "boot.json"
_CONSOLE = "console.log"

BOOT_DEADLINE = 60.0
"""Seconds that a guest may take until its shell has its first prompt."""

BOOT_LOG = 1 << 20
"""Bytes of the console that the first prompt is in."""

# Place of a run directory whose path would otherwise be too long for a socket.
_SHORT = Path("/tmp")


@dataclass(frozen=True)
class Running:
    """A booted guest: its QMP socket, and the access to its SSH server on 127.0.0.1."""

    qmp: str
    ssh_port: int
    ssh_key: str
    ssh_host_key: str

    @property
    def known_hosts(self) -> Path:
        """Return the file with the guest's pinned host key, in OpenSSH's format."""
        return Path(self.qmp).with_name("known_hosts")

    def ssh_command(self) -> list[str]:
        """Return the ssh command for the guest; it uses this key and accepts only this host key."""
        options = {
            "ConnectTimeout": "15",
            "IdentitiesOnly": "yes",
            "StrictHostKeyChecking": "yes",
            "UserKnownHostsFile": str(self.known_hosts),
            "LogLevel": "ERROR",
        }
        pairs = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        port = str(self.ssh_port)
        return ["ssh", "-F", "none", "-i", self.ssh_key, "-p", port, *pairs, "root@127.0.0.1"]

    def announce(self) -> None:
        """Write the note, which exists as long as the machine's run directory."""
        self.known_hosts.write_text(f"[127.0.0.1]:{self.ssh_port} {self.ssh_host_key}\n")
        note = Path(self.qmp).with_name(_NOTE)
        fresh = note.with_suffix(".new")
        fresh.write_text(json.dumps(asdict(self)))
        fresh.rename(note)


def find(qmp: str | None) -> Running:
    """Return the only running guest of this user, or the one whose QMP socket is `qmp`.

    Raise UsageError if there is no such guest, or if there are several.
    """
    if qmp is not None:
        note = Path(qmp).absolute().with_name(_NOTE)
        if not _lives(note):
            raise UsageError(f"no guest of `vblk boot` has the QMP socket {qmp}{_listed(_all())}")
        return _read(note)
    guests = _all()
    if not guests:
        raise UsageError("no guest is running; start one with `vblk boot`")
    if len(guests) > 1:
        raise UsageError(f"{len(guests)} guests are running; name one with --qmp{_listed(guests)}")
    return guests[0]


def wait_until_booted(qmp: str, say: Callable[[str], None]) -> None:
    """Wait for the shell of the guest whose QMP socket this is, if `vblk boot` runs it.

    The firmware leaves a disk's driver bit set and its interrupt without a handler. A resize
    before the kernel has the disk raises that interrupt, and the kernel then disables the line,
    which the disk shares with the network card. UsageError after BOOT_DEADLINE.
    """
    note = Path(qmp).absolute().with_name(_NOTE)
    if not _lives(note):
        return
    deadline = time.monotonic() + BOOT_DEADLINE
    announced = False
    while not _has_booted(note.with_name(_CONSOLE)):
        if time.monotonic() > deadline:
            raise UsageError(
                f"the guest has shown no prompt within {BOOT_DEADLINE:g} s, and a resize before its"
                " driver runs can cost it the network; with --at-once it is done"
            )
        if not announced:
            say("waiting for the guest to boot")
            announced = True
        time.sleep(0.2)


def _has_booted(console: Path) -> bool:
    try:
        with console.open("rb") as log:
            return PROMPT.encode() in log.read(BOOT_LOG)
    except OSError:
        return False


def _all() -> list[Running]:
    bases = {Path(tempfile.gettempdir()), _SHORT}
    notes = {note for base in bases for note in base.glob(f"{PREFIX}*/{_NOTE}")}
    return [_read(note) for note in sorted(notes) if _lives(note)]


def _read(note: Path) -> Running:
    try:
        return build(Running, json_of(note, read_text(note)))
    except (InputError, WrongValueError) as error:
        raise UsageError(f"{note} is damaged: {error}") from None


def _lives(note: Path) -> bool:
    """Return True if the note is ours, and the machine's owner still holds the lock."""
    try:
        fd = os.open(note.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return False  # it was removed in between, or belongs to another user
    try:
        if os.fstat(fd).st_uid != os.getuid() or not note.exists():
            return False
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _listed(guests: list[Running]) -> str:
    return f": {', '.join(guest.qmp for guest in guests)}" if guests else ""
