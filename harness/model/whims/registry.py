"""Registry of whims, and the two ways to write one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.diskspec import DiskSpec

Original = Callable[..., Any]
"""Method that a whim replaces; its first argument is the object."""

Reshape = Callable[[DiskSpec], DiskSpec]

MODEL, OWNED, PCI = "model", "owned-model", "model-pci"
"""Ways to the model: as a disk that a test describes, as somebody else's, which is as it is, and as
a PCI function."""


@dataclass
class Whim:
    """A small legal variation of the model.

    `breaks` are the ids of the SHOULD statements that it breaks: a test of these reports an
    advisory. Two whims of one `family` exclude each other. `ways` are the targets that can have
    it. `reshape` changes what a test leaves to the device; `parts` are methods with their
    replacements.
    """

    name: str
    text: str
    breaks: tuple[str, ...] = ()
    family: str = ""
    ways: tuple[str, ...] = (MODEL, OWNED)
    reshape: Reshape = lambda spec: spec
    parts: list[tuple[Callable[..., Any], Callable[..., Any]]] = field(default_factory=list)

    def apply(self) -> None:
        """Put it into this process, on top of the whims and defects that are in it already."""
        for method, change in self.parts:
            replace_method(method, change)


def replace_method(method: Callable[..., Any], change: Callable[..., Any]) -> None:
    """Replace a method of a class by a function that gets the original as its first argument."""
    owner_name, _, name = method.__qualname__.rpartition(".")
    owner = getattr(sys.modules[method.__module__], owner_name)
    original = getattr(owner, name)

    def changed(*arguments: Any, **named: Any) -> Any:
        return change(original, *arguments, **named)

    setattr(owner, name, changed)


WHIMS: dict[str, Whim] = {}
"""Name -> whim, in the order in which they are written."""


def file(whim: Whim) -> None:
    """Add a whim. ValueError if its name is taken."""
    if whim.name in WHIMS:
        raise ValueError(f"there are two whims {whim.name!r}")
    WHIMS[whim.name] = whim


def whim(
    method: Callable[..., Any],
    *,
    text: str,
    breaks: Sequence[str] = (),
    family: str = "",
    ways: tuple[str, ...] = (MODEL, OWNED),
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """File a replacement of a method as the whim of its name, with hyphens.

    The replacement gets the original method, then that method's arguments, the object first.
    """

    def decorate(change: Callable[..., Any]) -> Callable[..., Any]:
        name = change.__name__.replace("_", "-")
        file(Whim(name, text, tuple(breaks), family, ways, parts=[(method, change)]))
        return change

    return decorate


def also(
    name: str, method: Callable[..., Any]
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a replacement of another method a part of the whim `name`."""

    def decorate(change: Callable[..., Any]) -> Callable[..., Any]:
        WHIMS[name].parts.append((method, change))
        return change

    return decorate


def reshaped(spec: DiskSpec, names: Sequence[str]) -> DiskSpec:
    """Return the disk as whims make it, where `spec` leaves it to the device."""
    for name in names:
        spec = WHIMS[name].reshape(spec)
    return spec
