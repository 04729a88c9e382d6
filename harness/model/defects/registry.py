"""Definition of the model's defects, and their planting in the model."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

MODEL_TARGET = "model"
PCI_TARGET = "model-pci"
TRANSITIONAL_TARGET = "model-pci-transitional"
LEGACY_TARGET = "model-pci-legacy"
PCI_TARGETS = frozenset({PCI_TARGET, TRANSITIONAL_TARGET, LEGACY_TARGET, "guest-model-pci"})

VHOST_USER = frozenset({"harness.model.vhost", "harness.model.inflight", "harness.model.dirty"})
"""Modules of the model that only a vhost-user connection uses."""

Original = Callable[..., Any]
"""The method that a defect replaces; it is called with the object first."""


@dataclass(frozen=True)
class Defect:
    """One changed behaviour of the model.

    `statements` are those that it breaks, as a test names them; `text` describes the change. With
    `unusable` the driver refuses the device, so that a test ends with that error and not with its
    own failed assertion.
    """

    name: str
    statements: tuple[str, ...]
    text: str
    method: Callable[..., Any]
    change: Callable[..., Any]
    unusable: bool = False
    target: str = MODEL_TARGET

    def can_be_on(self, target: str) -> bool:
        """Return whether a target's device can have the defect.

        A defect of the PCI function is one on PCI only, and one of the vhost-user connection is
        one over vhost-user only. Any other is one over every transport.
        """
        if self.target in PCI_TARGETS:
            return target in PCI_TARGETS
        if self.method.__module__ in VHOST_USER:
            return target == MODEL_TARGET
        return target in {MODEL_TARGET, *PCI_TARGETS}

    def apply(self) -> None:
        """Plant the defect in this process, in addition to those planted before."""
        owner_name, _, name = self.method.__qualname__.rpartition(".")
        owner = getattr(sys.modules[self.method.__module__], owner_name)
        original = getattr(owner, name)

        def changed(*arguments: Any, **named: Any) -> Any:
            return self.change(original, *arguments, **named)

        setattr(owner, name, changed)


@contextmanager
def during(thing: object, **changed: Any) -> Iterator[None]:
    """Set attributes of an object to other values inside the block."""
    before = {name: getattr(thing, name) for name in changed}
    for name, value in changed.items():
        setattr(thing, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(thing, name, value)


DEFECTS: dict[str, Defect] = {}
"""Name -> defect, in the order of definition."""


def defect(
    method: Callable[..., Any],
    *statements: str,
    text: str,
    unusable: bool = False,
    target: str = MODEL_TARGET,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the decorated function as a defect that replaces `method` of the model.

    The defect's name is the function's name with hyphens. The function is called with the original
    method, then with that method's arguments, the object first.
    """

    def file(change: Callable[..., Any]) -> Callable[..., Any]:
        name = change.__name__.replace("_", "-")
        if name in DEFECTS:
            raise ValueError(f"there is already a defect {name!r}")
        DEFECTS[name] = Defect(name, statements, text, method, change, unusable, target)
        return change

    return file


def on_pci(
    method: Callable[..., Any],
    *statements: str,
    text: str,
    unusable: bool = False,
    target: str = PCI_TARGET,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """File a defect of the PCI function, as `defect` does."""
    return defect(method, *statements, text=text, unusable=unusable, target=target)
