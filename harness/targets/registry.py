"""The targets by name, for `--target`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path

from harness.defects.catalogue import defects
from harness.defects.registers import REGISTER_DEFECTS
from harness.targets import model, qtest
from harness.targets.base import Progress, Target, TargetError
from harness.targets.external import HostSide
from harness.targets.guest import variants as guest_variants
from harness.targets.guest.target import Accelerator, GuestPci
from harness.targets.guest.variants import Channel
from harness.targets.host_pci import HostPci, checked_address
from harness.targets.model import Model
from harness.targets.qtest import QtestTarget
from harness.targets.userfile import UserTarget, load
from harness.targets.vfio_user import VfioUserSocket
from harness.targets.vhost_user import VhostUserDaemon, VhostUserSocket

SOCKET_PREFIX = "vhost-user:"
FUNCTION_PREFIX = "pci:"
VFIO_USER_PREFIX = "vfio-user:"
PLANTED = "+"
"""Between the name of a target and those of the defects in its device."""


@dataclass(frozen=True)
class Settings:
    """What the options of a run say about its targets.

    `qemu` is a path, None for the one on PATH; `boot_timeout` is in seconds.
    `destructive` allows to write to what the user named. `defects` are planted
    in the device, by name. `clones` says that guests may be cloned.
    """

    channel: Channel = "serial"
    qemu: str | None = None
    accel: Accelerator = "auto"
    boot_timeout: float = 60.0
    destructive: bool = False
    progress: Progress = lambda line: None
    defects: tuple[str, ...] = ()
    clones: bool = True


def _guest(name: str) -> Callable[[Settings], Target]:
    return lambda settings: GuestPci(
        settings.channel,
        settings.qemu,
        settings.accel,
        settings.boot_timeout,
        settings.progress,
        name,
        settings.clones,
        ahead=True,
    )


def _qtest(name: str) -> Callable[[Settings], Target]:
    return lambda settings: QtestTarget(
        name,
        settings.qemu,
        [REGISTER_DEFECTS[defect] for defect in settings.defects],
        ahead=True,
    )


def _model(name: str) -> Callable[[Settings], Target]:
    return lambda settings: Model(settings.defects, name)


_MAKERS: dict[str, tuple[str, Callable[[Settings], Target]]] = {
    **{name: (one.description, _guest(name)) for name, one in guest_variants.VARIANTS.items()},
    **{name: (one.description, _qtest(name)) for name, one in qtest.VARIANTS.items()},
    "vhost-user": (VhostUserDaemon.description, lambda settings: VhostUserDaemon()),
    **{name: (one.description, _model(name)) for name, one in model.VARIANTS.items()},
}


ENTRY_POINTS = "vblk.targets"
"""Group of entry points: functions without arguments that call `register`."""

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]*")


def register(name: str, description: str, make: Callable[[Settings], Target]) -> None:
    """Add a target for `--target NAME`; `make` returns it with nothing started.

    TargetError for a name that exists, or that has other characters than lower-case
    letters, digits, dots, hyphens and underscores.
    """
    if not _NAME.fullmatch(name):
        raise TargetError(f"{name!r} cannot be the name of a target; one looks like my-board")
    if name in _MAKERS:
        raise TargetError(f"there is a target {name!r} already")
    _MAKERS[name] = (description, make)


@cache
def _load_entry_points() -> None:
    for point in entry_points(group=ENTRY_POINTS):
        try:
            point.load()()
        except Exception as error:
            raise TargetError(f"entry point {point.value} ({ENTRY_POINTS}): {error}") from error


def descriptions() -> dict[str, str]:
    """Every target's name and what it is, in one line."""
    _load_entry_points()
    return {
        **{name: description for name, (description, _) in _MAKERS.items()},
        f"{SOCKET_PREFIX}PATH": "whatever vhost-user back-end listens on that socket",
        f"{FUNCTION_PREFIX}ADDRESS": HostPci.description,
        f"{VFIO_USER_PREFIX}PATH": VfioUserSocket.description,
    }


def load_targets(path: Path) -> dict[str, UserTarget]:
    """Return what a targets file defines. TargetError, also for a name that is ours."""
    _load_entry_points()
    return load(path, _MAKERS)


def maker(name: str, user: Mapping[str, UserTarget]) -> Callable[[Settings], Target]:
    """Makes the target of that name, with nothing started. TargetError if there is none.

    `user` are the targets that the user defined. A name may go on with the
    defects that are planted in the device, like "qtest-pci+isr-not-cleared".
    """
    _load_entry_points()
    base, *planted = name.split(PLANTED)
    if planted and base in _MAKERS:
        return _defective(base, planted)
    if name in user:
        return _owned(user[name].device, name, user[name])
    if name.startswith((SOCKET_PREFIX, FUNCTION_PREFIX, VFIO_USER_PREFIX)):
        return _owned(name, name, UserTarget(name))
    if name not in _MAKERS:
        there = ", ".join([*user, *descriptions()])
        raise TargetError(f"no target {name!r}; there are: {there}")
    return _MAKERS[name][1]


def _defective(base: str, planted: list[str]) -> Callable[[Settings], Target]:
    """Makes a target of ours whose device has defects."""
    known = {one.name for one in defects().values() if one.can_be_on(base)}
    for name in planted:
        if name not in defects():
            raise TargetError(f"no defect {name!r}; --list-defects has them all")
        if name not in known:
            raise TargetError(f"{base} cannot have the defect {name}: {defects()[name].target} can")

    def make(settings: Settings) -> Target:
        target = _MAKERS[base][1](replace(settings, defects=tuple(planted)))
        target.name = PLANTED.join([base, *planted])
        return target

    return make


def _owned(device: str, name: str, said: UserTarget) -> Callable[[Settings], Target]:
    """Makes the target for a device that somebody else runs."""
    kind, _, place = device.partition(":")
    host = HostSide(said.identity, Path(said.backing) if said.backing else None, said.resizer)

    def make(settings: Settings) -> Target:
        destructive = settings.destructive or said.destructive
        target = kinds[kind](place, destructive, host)
        target.name = name
        return target

    kinds: dict[str, Callable[[str, bool, HostSide], Target]] = {
        "vhost-user": VhostUserSocket,
        "pci": HostPci,
        "vfio-user": VfioUserSocket,
    }
    if kind not in kinds or not place:
        raise TargetError(f"{name}: {device!r} is no device; vhost-user:PATH and pci:ADDRESS are")
    if kind == "pci":
        checked_address(place)
    return make
