"""A rule: a pure function over the events of a session, for one statement or more."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from harness.witness.events import Event
from harness.witness.sessions import Session

Check = tuple[Event, str]
"""An event that the statement speaks about, and what is wrong with it ("" for nothing)."""

Function = Callable[[Session], Iterable[Check]]


@dataclass(frozen=True)
class Rule:
    """The rule of one statement.

    `function` yields a check for each event that decides. `idle` says what did not happen if there
    is none. `registers` is true if the driver's own register accesses are needed: QEMU's
    vhost-user front-end writes the status itself and hides features. `legacy` is None for both
    interfaces. `never_red` says why no stream breaks the statement, for a rule that can only tell
    that it was kept.
    """

    id: str
    function: Function
    idle: str
    registers: bool = False
    legacy: bool | None = False
    never_red: str = ""

    def applies(self, session: Session) -> bool:
        """Return whether the rule judges a session: its transport, and its kind of interface."""
        device = session.device
        if self.id.startswith("4.1." if device.mmio else "4.2."):
            return False
        fits = self.legacy is None or session.legacy == self.legacy
        return fits and (device.has_registers or not self.registers)

    def checks(self, session: Session) -> Iterator[Check]:
        """Yield the checks of a session that the rule applies to."""
        if self.applies(session):
            yield from self.function(session)


RULES: dict[str, Rule] = {}
"""The rules by the id of their statement."""


def rule(
    *ids: str,
    idle: str,
    registers: bool = False,
    legacy: bool | None = False,
    never_red: str = "",
) -> Callable[[Function], Function]:
    """Register the function as the rule of these statements.

    A rule with `legacy` judges drivers of the legacy interface, one with None both kinds, any other
    rule the modern interface.
    """

    def register(function: Function) -> Function:
        for name in ids:
            assert name not in RULES, name
            RULES[name] = Rule(name, function, idle, registers, legacy, never_red)
        return function

    return register
