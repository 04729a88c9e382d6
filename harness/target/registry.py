"""The targets by name, for `--target`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .base import Progress, Target, TargetError
from .guest_pci import Accelerator, Channel, GuestPci
from .qtest import VARIANTS, QtestTarget
from .vhost_user import VhostUserDaemon, VhostUserSocket

SOCKET_PREFIX = "vhost-user:"


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


def _guest(settings: Settings) -> Target:
    return GuestPci(
        settings.channel,
        settings.qemu,
        settings.accel,
        settings.boot_timeout,
        settings.progress,
    )


def _qtest(name: str) -> Callable[[Settings], Target]:
    return lambda settings: QtestTarget(name, settings.qemu)


_MAKERS: dict[str, tuple[str, Callable[[Settings], Target]]] = {
    "guest-pci": (GuestPci.description, _guest),
    **{name: (variant.description, _qtest(name)) for name, variant in VARIANTS.items()},
    "vhost-user": (VhostUserDaemon.description, lambda settings: VhostUserDaemon()),
}


def descriptions() -> dict[str, str]:
    """Every target's name and what it is, in one line."""
    return {
        **{name: description for name, (description, _) in _MAKERS.items()},
        f"{SOCKET_PREFIX}PATH": "whatever vhost-user back-end listens on that socket",
    }


def maker(name: str) -> Callable[[Settings], Target]:
    """Makes the target of that name, with nothing started. TargetError if there is none."""
    if name.startswith(SOCKET_PREFIX) and name != SOCKET_PREFIX:
        path = name.removeprefix(SOCKET_PREFIX)
        return lambda settings: VhostUserSocket(path, settings.destructive)
    if name not in _MAKERS:
        raise TargetError(f"no target {name!r}; there are: {', '.join(descriptions())}")
    return _MAKERS[name][1]
