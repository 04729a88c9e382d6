"""Targets that a user defines in a TOML file, for `--targets FILE`.

A device that runs already:

    [target.my-box]
    device = "vhost-user:/run/my-daemon.sock"   # or "vfio-user:PATH", or "pci:0000:00:05.0"
    destructive = true                # the suite may overwrite the disk (as --destructive)
    implementation = "my-daemon"      # name under which its deviations are filed
    version = "1.4.2"
    parts = ["virtio-blk"]            # parts of the implementation; default: all
    backing = "/srv/my-disk.raw"      # the disk's bytes, for tests that read them
    resize = "my-ctl resize {bytes}"  # sets the size while it runs; or {sectors}
    restart = "my-ctl restart"        # when the device is gone
    plug = "my-ctl attach"            # before each test, and `unplug` after it
    without = ["INFLIGHT_SHMFD"]      # protocol features of vhost-user that are not accepted

A device that the harness starts:

    [target.my-daemon]
    device = "vhost-user"             # or "vfio-user"
    start = "my-daemon --socket {socket} --image {file}"
    per = "disk"                      # "connection": it ends with its connection; "run": one
                                      # process for all disks, which `plug` and `unplug` make
    ready = "listening"               # in its output when it is ready; otherwise: its socket
    serve_file = true                 # {file} fails and is slow as tests ask for (needs FUSE)
    through = "qtest-vhost-user"      # QEMU's vhost-user-blk-pci is in front of it; or
                                      # "guest-vhost-user", which is driven inside a guest

    [target.my-daemon.options]        # a property of a disk -> words of the command line
    read_only = "--read-only"
    queues = "--num-queues {queues}"

A device in a guest that a VMM runs, which the harness starts:

    [target.my-vmm]
    vmm = "my-vmm -k {kernel} -i {initrd} -a {append} --disk {file} --serial-socket {serial}"
    serial = "socket"                 # "pty" or "stdio"
    append = "pci=off"                # more arguments for the kernel

Only `device` or `vmm` is required. Tests that need a missing key are skipped.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from harness.diskspec import DiskSpec, Fault
from harness.driver.transport.vhost_session import OPTIONAL
from harness.inputs import (
    Check,
    InputError,
    WrongValueError,
    at_most,
    build,
    line_in_toml,
    matching,
    one_of,
    read_text,
    shown,
    toml_of,
    within,
)
from harness.targets.base import PARTS, DeviceIdentity, TargetError
from harness.targets.profiles import profiles, with_profile
from harness.virtio.vhost_user import ProtocolFeature

WITHOUT = ",without="
"""Separator between the path of a socket and the name of a protocol feature to leave out."""

MOST_TARGETS = 1000
"""Tables in a file."""

MOST_OPTIONS = 100
"""Options of a target."""

MOST_PARTS = 100
"""Parts of the implementation of a target."""

START_TIMEOUT = 10.0
"""Seconds that a daemon may take until it is ready, unless the file says otherwise."""

NAME = matching(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", "")
"""Names of targets: they are parts of test ids, file names and `--target NAME+DEFECT`."""

PLACEHOLDER = re.compile(r"\{\{|\}\}|\{\w*\}|[{}]")


PLACES = frozenset(
    {
        *("name", "socket", "file", "dir", "bytes", "sectors"),
        *("program", "control", "python", "options"),
    }
)
"""Placeholders of every command: the disk's name, socket and file, the directory of the run, the
capacity in bytes and in sectors, the programs that the table names, this Python, and the words of
the options."""

VMM_PLACES = frozenset({"kernel", "vmlinux", "initrd", "append", "serial"})
"""Placeholders of a `vmm` in addition: the guest's kernel as a bzImage and as an ELF file, its
initramfs and its arguments, and the socket of the serial port."""

SPEC_FIELDS = frozenset(field.name for field in fields(DiskSpec)) - {"capacity", "backing", "image"}
"""Properties of a disk that an option can stand for. Capacity and format are those of the file."""


def _is_command(text: str, more: Collection[str] = (), places: Collection[str] = PLACES) -> bool:
    """Return whether a command can be split into words and has known placeholders only."""
    try:
        shlex.split(text)
    except ValueError:
        return False
    known = {"{{", "}}", *(f"{{{name}}}" for name in (*places, *more))}
    return "\0" not in text and known.issuperset(PLACEHOLDER.findall(text))


def words_of(command: str, values: Mapping[str, object], options: Sequence[str] = ()) -> list[str]:
    """Split a command into words, then put values for the placeholders: they need no quotes.

    `options` are more words, for {options}; without that placeholder they come last. Within a
    word, such as a script for a shell, they are quoted for a shell.
    """
    values = {**values, "options": shlex.join(options), "python": sys.executable}

    def value(found: re.Match[str]) -> str:
        return found[0][0] if found[0] in ("{{", "}}") else str(values[found[0][1:-1]])

    words: list[str] = []
    for word in shlex.split(command):
        words += options if word == "{options}" else [PLACEHOLDER.sub(value, word)]
    return words if "{options}" in command else [*words, *options]


def rendered(value: object) -> str:
    """Return a property of a disk as a word of a command line.

    A boolean is on or off, numbers are joined by commas, and faults are JSON.
    """
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        if value and isinstance(value[0], Fault):
            return json.dumps([asdict(fault) for fault in value])
        return ",".join(map(str, value))
    return str(value)


Text = Annotated[str, matching(r"[^\0-\x1f\x7f]*", "text in one line")]
Version = Annotated[
    str,
    matching(r"(v?\d{1,9}(\.\d{1,9}){0,7})?", 'numbers with dots between them, like "1.4.2"'),
]
Part = Annotated[
    str, matching(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", 'the name of a part, like "virtio-pci"')
]
Command = Annotated[
    str,
    Check(
        "a command with balanced quotes, and no placeholders but {bytes}, {sectors}, {name},"
        " {socket}, {file} and {dir}",
        _is_command,
    ),
]


VmmCommand = Annotated[
    str,
    Check(
        "a command with balanced quotes, and no placeholders but {kernel}, {vmlinux}, {initrd},"
        " {append}, {serial}, {name}, {file}, {dir}, {bytes} and {sectors}",
        lambda text: _is_command(text, VMM_PLACES, PLACES - {"socket"}),
    ),
]


@dataclass(frozen=True)
class UserTarget:
    """One table of the file, as it is written there."""

    device: Text = ""
    vmm: VmmCommand = ""
    serial: Literal["socket", "pty", "stdio"] = "socket"
    pty: Text = r"/dev/pts/\d+"
    append: Text = ""
    program: Text = ""
    control: Text = ""
    start: Command = ""
    per: Literal["disk", "connection", "run"] = "disk"
    ready: Text = ""
    start_timeout: Annotated[float, within(0.1, 600)] = START_TIMEOUT
    plug: Command = ""
    unplug: Command = ""
    resize: Command = ""
    restart: Command = ""
    destructive: bool = False
    implementation: Text = "unknown"
    version: Version = ""
    version_command: Command = ""
    parts: Annotated[tuple[Part, ...], at_most(MOST_PARTS)] = ()
    backing: Text = ""
    serve_file: bool = False
    through: Literal["", "qtest-vhost-user", "guest-vhost-user"] = ""
    without: Annotated[
        tuple[Annotated[str, one_of(*sorted(feature.name for feature in OPTIONAL))], ...],
        at_most(len(OPTIONAL)),
    ] = ()
    options: Annotated[dict[str, Text], at_most(MOST_OPTIONS)] = field(default_factory=dict)

    @property
    def command(self) -> str:
        """Return the command by which the harness starts the device, "" for a device that runs."""
        return self.vmm or self.start

    @property
    def refused(self) -> frozenset[ProtocolFeature]:
        """Return the protocol features of vhost-user that the front-end does not accept."""
        return frozenset(ProtocolFeature[name] for name in self.without)

    @property
    def identity(self) -> DeviceIdentity:
        """Return the name and version for its deviations."""
        text = self.version.removeprefix("v")
        numbers = tuple(int(part) for part in text.split(".")) if text else ()
        return DeviceIdentity(self.implementation, numbers, frozenset(self.parts))


def _check(target: UserTarget, at: tuple[str | int, ...]) -> None:
    """Raise WrongValueError for keys that do not go together."""
    _check_parts(target, at)
    if target.vmm:
        _check_vmm(target, at)
        return
    if not target.device:
        raise WrongValueError(at, "needs `device` or `vmm`")
    for key in VMM_KEYS:
        if getattr(target, key) != getattr(UserTarget, key):
            raise WrongValueError((*at, key), "only for a target with `vmm`")
    starts = target.device in STARTED
    for key in ("per", "ready", "options", "serve_file", "version_command"):
        if not starts and getattr(target, key) != getattr(UserTarget(""), key):
            raise WrongValueError((*at, key), 'only for device = "vhost-user" or "vfio-user"')
    if target.through and target.device.partition(":")[0] != "vhost-user":
        raise WrongValueError((*at, "through"), "only for a vhost-user device")
    if target.through and target.without:
        raise WrongValueError((*at, "without"), "QEMU is the front-end, and chooses for itself")
    if target.without and target.device.partition(":")[0] != "vhost-user":
        raise WrongValueError((*at, "without"), "only for a vhost-user device")
    if target.start and not starts:
        raise WrongValueError(
            (*at, "start"), 'the harness starts a device = "vhost-user" or "vfio-user"'
        )
    if not starts:
        return
    if not target.start:
        raise WrongValueError((*at, "device"), "needs a PATH behind a colon, or `start`")
    if target.per == "run" and not target.plug:
        raise WrongValueError((*at, "per"), '"run" needs a `plug` command that makes a disk')
    if target.per == "connection" and target.device != "vhost-user":
        raise WrongValueError((*at, "per"), '"connection" is for vhost-user')
    if target.backing:
        raise WrongValueError((*at, "backing"), "{file} is the backing of a disk that is started")
    if target.serve_file and "{file}" not in target.start + target.plug:
        raise WrongValueError((*at, "serve_file"), "needs {file} in the command that gets the file")
    for key in ("plug", "unplug"):
        if target.per != "run" and getattr(target, key):
            raise WrongValueError((*at, key), 'only for per = "run"')
    _check_options(target, at)


def _check_parts(target: UserTarget, at: tuple[str | int, ...]) -> None:
    """Raise WrongValueError for parts that the implementation does not have."""
    if target.parts and target.implementation == UserTarget.implementation:
        raise WrongValueError((*at, "parts"), "only with `implementation`, whose parts they are")
    known = PARTS.get(target.implementation, frozenset(target.parts))
    if unknown := sorted({*target.parts} - known):
        there = ", ".join(sorted(known))
        message = f"{target.implementation} has no part {shown(unknown[0])}; its parts are {there}"
        raise WrongValueError((*at, "parts"), message)


def _check_vmm(target: UserTarget, at: tuple[str | int, ...]) -> None:
    """Raise WrongValueError for keys that do not go together with `vmm`."""
    for key in ("device", "start", "per", "backing", "through", "without", "serve_file"):
        if getattr(target, key) != getattr(UserTarget, key):
            raise WrongValueError((*at, key), "not for a target with `vmm`")
    if ("{file}" in target.vmm) == bool(target.plug):
        raise WrongValueError(
            (*at, "plug" if target.plug else "vmm"),
            "the disk {file} is either in `vmm` or added by a `plug` command",
        )
    if target.unplug and not target.plug:
        raise WrongValueError((*at, "unplug"), "only with `plug`")
    if (target.serial == "socket") != ("{serial}" in target.vmm):
        message = 'serial = "socket" has {serial} in `vmm`, "pty" and "stdio" do not'
        raise WrongValueError((*at, "serial"), message)
    if target.serial != "pty" and target.pty != UserTarget.pty:
        raise WrongValueError((*at, "pty"), 'only for serial = "pty"')
    try:
        re.compile(target.pty)
    except re.error as error:
        raise WrongValueError((*at, "pty"), f"not a regular expression: {error}") from None
    _check_options(target, at)


def _check_options(target: UserTarget, at: tuple[str | int, ...]) -> None:
    for name, words in target.options.items():
        if name not in SPEC_FIELDS:
            message = "no property of a disk; docs/your-device.md has the list"
            raise WrongValueError((*at, "options", name), message)
        if not _is_command(words, [name], ()):
            raise WrongValueError(
                (*at, "options", name),
                f"expected words with balanced quotes, and no placeholder but {{{name}}},"
                f" not {shown(words)}",
            )


VMM_KEYS = ("serial", "pty", "append")

STARTED = ("vhost-user", "vfio-user")
"""Devices without a path: the harness starts them."""


def profile(name: str) -> UserTarget:
    """Return a profile that the package has. KeyError if there is none of that name."""
    return build(UserTarget, profiles()[name])


def named(text: str) -> UserTarget:
    """Return the table for a device that `--target` names, such as "vhost-user:PATH".

    Behind the path of a vhost-user socket, ",without=NAME" leaves out a protocol feature. It may
    be repeated. TargetError for a name that is not known.
    """
    device, *without = text.split(WITHOUT) if text.startswith("vhost-user:") else [text]
    try:
        target = build(UserTarget, {"device": device, "without": without})
    except WrongValueError as error:
        raise TargetError(f"{text}: {error}") from None
    return target


def load(path: Path, taken: Collection[str] = ()) -> dict[str, UserTarget]:
    """Return the targets of a file by name. Raise TargetError, with file and line, for a bad one.

    `taken` are names that a target must not have.
    """
    try:
        text = read_text(path)
        document = toml_of(path, text)
    except InputError as error:
        raise TargetError(str(error)) from None
    try:
        return _targets(document, taken)
    except WrongValueError as error:
        raise TargetError(f"{path}:{line_in_toml(text, error.at)}: {error}") from None


def _targets(document: dict[str, Any], taken: Collection[str]) -> dict[str, UserTarget]:
    tables = document.pop("target", {})
    if document or not isinstance(tables, dict) or not tables:
        key = next(iter(document), "target")
        raise WrongValueError((key,), "only tables [target.NAME] are allowed here")
    if len(tables) > MOST_TARGETS:
        raise WrongValueError((), f"{len(tables)} targets; {MOST_TARGETS} is the limit")
    for name in tables:
        if not NAME.holds(name):
            words = "up to 64 letters, digits, dots, - and _"
            raise WrongValueError(
                ("target", name), f"{shown(name)} is not a valid name; use {words}"
            )
        if name in taken:
            raise WrongValueError(("target", name), "this suite already has a target of that name")
    for name, table in tables.items():
        if isinstance(table, dict) and "profile" in table:
            if table["profile"] not in profiles():
                there = ", ".join(profiles())
                raise WrongValueError(("target", name, "profile"), f"no profile; there are {there}")
            tables[name] = with_profile(table)
    targets = {name: build(UserTarget, table, ("target", name)) for name, table in tables.items()}
    for name, target in targets.items():
        _check(target, ("target", name))
    return targets
