"""All targets by name, for `--target`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
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
"""Separator between the name of a target and the names of defects planted in its device."""


@dataclass(frozen=True)
class Settings:
    """Options of a run that concern its targets.

    `qemu` is a path, None to search PATH; `boot_timeout` is in seconds. `destructive` allows writes
    to what the user named. `defects` are planted in the device, by name. `clones` allows guests to
    be cloned.
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
    **{
        name: (variant.description, _guest(name))
        for name, variant in guest_variants.VARIANTS.items()
    },
    **{name: (variant.description, _qtest(name)) for name, variant in qtest.VARIANTS.items()},
    "vhost-user": (VhostUserDaemon.description, lambda settings: VhostUserDaemon()),
    **{name: (variant.description, _model(name)) for name, variant in model.VARIANTS.items()},
}


def descriptions() -> dict[str, str]:
    """Return every target's name and its description in one line."""
    return {
        **{name: description for name, (description, _) in _MAKERS.items()},
        f"{SOCKET_PREFIX}PATH": "the vhost-user back-end that listens on the socket PATH",
        f"{FUNCTION_PREFIX}ADDRESS": HostPci.description,
        f"{VFIO_USER_PREFIX}PATH": VfioUserSocket.description,
    }


def load_targets(path: Path) -> dict[str, UserTarget]:
    """Return what a targets file defines. TargetError, also for a name that is ours."""
    return load(path, _MAKERS)


def maker(name: str, user: Mapping[str, UserTarget]) -> Callable[[Settings], Target]:
    """Return a function that makes the named target, with nothing started.

    Raise TargetError if unknown.

    `user` are the targets that the user defined. Names of defects to plant in the device may follow
    the target's name, as in "qtest-pci+isr-not-cleared".
    """
    base, *planted = name.split(PLANTED)
    if planted and base in _MAKERS:
        return _defective(base, planted)
    if name in user:
        return _owned(user[name].device, name, user[name])
    if name.startswith((SOCKET_PREFIX, FUNCTION_PREFIX, VFIO_USER_PREFIX)):
        return _owned(name, name, UserTarget(name))
    if name not in _MAKERS:
        there = ", ".join([*user, *descriptions()])
        raise TargetError(f"unknown target {name!r}; known: {there}")
    return _MAKERS[name][1]


def _defective(base: str, planted: list[str]) -> Callable[[Settings], Target]:
    """Return a function that makes a built-in target whose device has these defects."""
    known = {variant.name for variant in defects().values() if variant.can_be_on(base)}
    for name in planted:
        if name not in defects():
            raise TargetError(f"unknown defect {name!r}; --list-defects prints them all")
        if name not in known:
            raise TargetError(
                f"{base} cannot have the defect {name}; it needs {defects()[name].target}"
            )

    def make(settings: Settings) -> Target:
        target = _MAKERS[base][1](replace(settings, defects=tuple(planted)))
        target.name = PLANTED.join([base, *planted])
        return target

    return make


def _owned(device: str, name: str, definition: UserTarget) -> Callable[[Settings], Target]:
    """Return a function that makes the target for an external device."""
    kind, _, place = device.partition(":")
    host = HostSide(
        definition.identity,
        Path(definition.backing) if definition.backing else None,
        definition.resizer,
    )

    def make(settings: Settings) -> Target:
        destructive = settings.destructive or definition.destructive
        target = kinds[kind](place, destructive, host)
        target.name = name
        return target

    kinds: dict[str, Callable[[str, bool, HostSide], Target]] = {
        "vhost-user": VhostUserSocket,
        "pci": HostPci,
        "vfio-user": VfioUserSocket,
    }
    if kind not in kinds or not place:
        raise TargetError(f"{name}: {device!r} is not a device; use vhost-user:PATH or pci:ADDRESS")
    if kind == "pci":
        checked_address(place)
    return make
