"""The targets by name, for `--target`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from . import guest_pci, qtest
from .base import Progress, Target, TargetError
from .guest_pci import Accelerator, Channel, GuestPci
from .host_pci import HostPci, checked_address
from .owned import HostSide
from .qtest import QtestTarget
from .userfile import UserTarget
from .vhost_user import VhostUserDaemon, VhostUserSocket

SOCKET_PREFIX = "vhost-user:"
FUNCTION_PREFIX = "pci:"


@dataclass(frozen=True)
class Settings:
    """What the options of a run say about its targets.

    `qemu` is a path, None for the one on PATH; `boot_timeout` is in seconds.
    `destructive` allows to write to what the user named.
    """

    channel: Channel = "serial"
    qemu: str | None = None
    accel: Accelerator = "auto"
    boot_timeout: float = 60.0
    destructive: bool = False
    progress: Progress = lambda line: None


def _guest(name: str) -> Callable[[Settings], Target]:
    return lambda settings: GuestPci(
        settings.channel,
        settings.qemu,
        settings.accel,
        settings.boot_timeout,
        settings.progress,
        name,
    )


def _qtest(name: str) -> Callable[[Settings], Target]:
    return lambda settings: QtestTarget(name, settings.qemu)


_MAKERS: dict[str, tuple[str, Callable[[Settings], Target]]] = {
    **{name: (one.description, _guest(name)) for name, one in guest_pci.VARIANTS.items()},
    **{name: (one.description, _qtest(name)) for name, one in qtest.VARIANTS.items()},
    "vhost-user": (VhostUserDaemon.description, lambda settings: VhostUserDaemon()),
}


def descriptions() -> dict[str, str]:
    """Every target's name and what it is, in one line."""
    return {
        **{name: description for name, (description, _) in _MAKERS.items()},
        f"{SOCKET_PREFIX}PATH": "whatever vhost-user back-end listens on that socket",
        f"{FUNCTION_PREFIX}ADDRESS": HostPci.description,
    }


def maker(name: str, user: Mapping[str, UserTarget]) -> Callable[[Settings], Target]:
    """Makes the target of that name, with nothing started. TargetError if there is none.

    `user` are the targets that the user defined.
    """
    if name in user:
        return _owned(user[name].device, name, user[name])
    if name.startswith((SOCKET_PREFIX, FUNCTION_PREFIX)):
        return _owned(name, name, UserTarget(name))
    if name not in _MAKERS:
        there = ", ".join([*user, *descriptions()])
        raise TargetError(f"no target {name!r}; there are: {there}")
    return _MAKERS[name][1]


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
    }
    if kind not in kinds or not place:
        raise TargetError(f"{name}: {device!r} is no device; vhost-user:PATH and pci:ADDRESS are")
    if kind == "pci":
        checked_address(place)
    return make
