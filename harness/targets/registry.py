"""All targets by name, for `--target`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib.metadata import entry_points
from pathlib import Path

from harness.defects.registers import REGISTER_DEFECTS
from harness.targets import model, qtest
from harness.targets.base import Progress, Target, TargetError
from harness.targets.behind_qemu import LendingTarget, UserBackEnd
from harness.targets.daemon import BackEnd
from harness.targets.external import HostSide, host_side
from harness.targets.guest import variants as guest_variants
from harness.targets.guest.model import GuestModel
from harness.targets.guest.target import Accelerator, GuestTarget
from harness.targets.guest.variants import Channel
from harness.targets.guest.vmm import VmmTarget
from harness.targets.host_pci import HostPci, checked_address
from harness.targets.model import Model
from harness.targets.owned_model import OwnedModel
from harness.targets.profiles import profiles
from harness.targets.qtest import QtestTarget
from harness.targets.started import StartedTarget
from harness.targets.userfile import UserTarget, load, named, profile
from harness.targets.vfio_user import VfioUserSocket
from harness.targets.vhost_user import VhostUserDaemon, VhostUserSocket

SOCKET_PREFIX = "vhost-user:"
FUNCTION_PREFIX = "pci:"
VFIO_USER_PREFIX = "vfio-user:"
PLANTED = "+"
"""Separator between the name of a target and the names of defects planted in its device."""

WHIM = "whim:"
"""Before the name of a whim of the device, where the name of a defect may stand."""


@dataclass(frozen=True)
class Settings:
    """Options of a run that concern its targets.

    `qemu` is a path, None for the one on PATH; `boot_timeout` is in seconds.
    `destructive` allows to write to what the user named. `defects` are planted
    in the device, by name, which has these `whims`. `clones` says that guests may be cloned. The
    model writes what drivers do to files in the directory `observe`. With `reuse` a guest that
    a test has left as it was serves the next test.
    """

    channel: Channel = "serial"
    qemu: str | None = None
    accel: Accelerator = "auto"
    boot_timeout: float = 60.0
    destructive: bool = False
    progress: Progress = lambda line: None
    defects: tuple[str, ...] = ()
    clones: bool = True
    whims: tuple[str, ...] = ()
    observe: Path | None = None
    reuse: bool = False


def _guest(name: str) -> Callable[..., Target]:
    def make(settings: Settings, back_end: BackEnd | None = None) -> Target:
        kind: Callable[..., Target] = partial(GuestTarget, back_end=back_end)
        if guest_variants.VARIANTS[name].model:
            kind = partial(GuestModel, settings.defects, settings.whims)
        return kind(
            settings.channel,
            settings.qemu,
            settings.accel,
            settings.boot_timeout,
            settings.progress,
            name,
            settings.clones,
            ahead=True,
            reuse=settings.reuse,
        )

    return make


def _qtest(name: str) -> Callable[[Settings], Target]:
    return lambda settings: QtestTarget(
        name,
        settings.qemu,
        [REGISTER_DEFECTS[defect] for defect in settings.defects],
        ahead=True,
    )


def _model(name: str) -> Callable[[Settings], Target]:
    def make(settings: Settings) -> Target:
        record = settings.observe / name if settings.observe else None
        return Model(settings.defects, name, settings.whims, record)

    return make


_MAKERS: dict[str, tuple[str, Callable[[Settings], Target]]] = {
    **{
        name: (variant.description, _guest(name))
        for name, variant in guest_variants.VARIANTS.items()
    },
    **{name: (variant.description, _qtest(name)) for name, variant in qtest.VARIANTS.items()},
    "vhost-user": (VhostUserDaemon.description, lambda settings: VhostUserDaemon()),
    **{name: (variant.description, _model(name)) for name, variant in model.VARIANTS.items()},
    "owned-model": (
        OwnedModel.description,
        lambda settings: OwnedModel(settings.defects, settings.whims),
    ),
}


ENTRY_POINTS = "vblk.targets"
"""Group of entry points: functions without arguments that call `register`."""

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]*")


def register(
    name: str, description: str, make: Callable[[Settings], Target], replace: bool = False
) -> None:
    """Add a target for `--target NAME`; `make` returns it with nothing started.

    TargetError for a name that exists, unless `replace` is true, and for one that has other
    characters than lower-case letters, digits, dots, hyphens and underscores.
    """
    if not _NAME.fullmatch(name):
        raise TargetError(f"{name!r} cannot be the name of a target; one looks like my-board")
    if name in _MAKERS and not replace:
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
    """Return every target's name and its description in one line."""
    _load_entry_points()
    return {
        **{
            name: f"profile: {table['program']}, started here" for name, table in profiles().items()
        },
        **{name: description for name, (description, _) in _MAKERS.items()},
        f"{SOCKET_PREFIX}PATH": "the vhost-user back-end that listens on the socket PATH",
        f"{FUNCTION_PREFIX}ADDRESS": HostPci.description,
        f"{VFIO_USER_PREFIX}PATH": VfioUserSocket.description,
    }


def load_targets(path: Path) -> dict[str, UserTarget]:
    """Return what a targets file defines. TargetError, also for a name that is ours."""
    _load_entry_points()
    return load(path, _MAKERS)


def maker(name: str, user: Mapping[str, UserTarget]) -> Callable[[Settings], Target]:
    """Return a function that makes the named target, with nothing started.

    `user` are the targets that the user defined. A name may go on with the
    defects that are planted in the device, and with its whims, like "qtest-pci+isr-not-cleared"
    or "model+whim:signals-twice".
    """
    _load_entry_points()
    base, *planted = name.split(PLANTED)
    if planted and base in _MAKERS:
        return _defective(base, planted)
    if name in user:
        return _owned(user[name].device, name, user[name])
    if name.startswith((SOCKET_PREFIX, FUNCTION_PREFIX, VFIO_USER_PREFIX)):
        definition = named(name)
        return _owned(definition.device, name, definition)
    if name in profiles():
        return _owned(profile(name).device, name, profile(name))
    if name not in _MAKERS:
        there = ", ".join([*user, *descriptions()])
        raise TargetError(f"unknown target {name!r}; known: {there}")
    return _MAKERS[name][1]


def _defective(base: str, planted: list[str]) -> Callable[[Settings], Target]:
    """Makes a target of ours whose device has defects and whims."""
    from harness.defects.catalogue import defects  # only these targets need it

    whims = [name.removeprefix(WHIM) for name in planted if name.startswith(WHIM)]
    names = [name for name in planted if not name.startswith(WHIM)]
    _check_whims(base, whims)
    # owned-model is the same device as model, so it can have the same defects.
    carrier = "model" if base == "owned-model" else base
    known = {variant.name for variant in defects().values() if variant.can_be_on(carrier)}
    for name in names:
        if name not in defects():
            raise TargetError(f"unknown defect {name!r}; --list-defects prints them all")
        if name not in known:
            raise TargetError(
                f"{base} cannot have the defect {name}; it needs {defects()[name].target}"
            )

    def make(settings: Settings) -> Target:
        own = replace(settings, defects=tuple(names), whims=tuple(whims))
        target = _MAKERS[base][1](own)
        target.name = PLANTED.join([base, *planted])
        return target

    return make


def _check_whims(base: str, whims: list[str]) -> None:
    """Raise TargetError for whims that a target cannot have, or not together."""
    families: dict[str, str] = {}
    if whims:
        from harness.model.whims import WHIMS  # a run without them starts sooner
    for name in whims:
        if name not in WHIMS:
            raise TargetError(f"no whim {name!r}; --list-whims has them all")
        whim = WHIMS[name]
        if not any(base == way or base.startswith(f"{way}-") for way in whim.ways):
            raise TargetError(f"{base} cannot have the whim {name}: {', '.join(whim.ways)} can")
        if other := families.get(whim.family):
            raise TargetError(f"the whims {other} and {name} exclude each other")
        if whim.family:
            families[whim.family] = name


def _behind(front: str, lending: LendingTarget, settings: Settings) -> Target:
    """Return the target of QEMU's device with this target's back-end behind it."""
    back_end = UserBackEnd(lending)
    target: Target
    if front in qtest.VARIANTS:
        target = QtestTarget(front, settings.qemu, ahead=True, back_end=back_end)
    else:
        target = _guest(front)(settings, back_end)
    target.name, target.alike = lending.name, front
    return target


def _owned(device: str, name: str, definition: UserTarget) -> Callable[[Settings], Target]:
    """Return a function that makes the target for an external device."""
    kind, _, place = device.partition(":")
    if definition.vmm:
        return lambda settings: VmmTarget(
            name, definition, settings.boot_timeout, settings.progress
        )
    host = host_side(name, definition, place)

    def start(settings: Settings) -> Target:
        started = StartedTarget(name, definition, settings.destructive)
        return _behind(definition.through, started, settings) if definition.through else started

    def make(settings: Settings) -> Target:
        destructive = settings.destructive or definition.destructive
        if definition.through:
            if not destructive:
                raise TargetError(
                    f"{name}: a device behind QEMU cannot be protected from tests that write;"
                    " allow it with destructive = true"
                )
            return _behind(definition.through, VhostUserSocket(place, True, host), settings)
        target = kinds[kind](place, destructive, host)
        target.name = name
        return target

    if definition.start:
        return start

    kinds: dict[str, Callable[[str, bool, HostSide], Target]] = {
        "vhost-user": VhostUserSocket,
        "pci": HostPci,
        "vfio-user": VfioUserSocket,
    }
    if kind not in kinds or not place:
        raise TargetError(
            f"{name}: {device!r} is not a device; use vhost-user:PATH, vfio-user:PATH, pci:ADDRESS"
        )
    if kind == "pci":
        checked_address(place)
    return make
