"""The targets by name, for `--target`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from . import guest_pci, qtest
from .base import Progress, Target, TargetError
from .guest_pci import Accelerator, Channel, GuestPci
from .host_pci import HostPci, checked_address
from .qtest import QtestTarget
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


def maker(name: str) -> Callable[[Settings], Target]:
    """Makes the target of that name, with nothing started. TargetError if there is none."""
    if name.startswith(SOCKET_PREFIX) and name != SOCKET_PREFIX:
        path = name.removeprefix(SOCKET_PREFIX)
        return lambda settings: VhostUserSocket(path, settings.destructive)
    if name.startswith(FUNCTION_PREFIX):
        address = checked_address(name.removeprefix(FUNCTION_PREFIX))
        return lambda settings: HostPci(address, settings.destructive)
    if name not in _MAKERS:
        raise TargetError(f"no target {name!r}; there are: {', '.join(descriptions())}")
    return _MAKERS[name][1]
