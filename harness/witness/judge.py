"""The verdicts on a driver: kept, broken or not exercised, for each statement."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum

from harness.virtio.catalogue import driver_clauses
from harness.witness.events import Event
from harness.witness.rules import RULES
from harness.witness.sessions import Session, sessions

SHOWN = 5
"""Pieces of evidence of a broken statement at most."""

NO_RULE = "there is no rule yet"
HIDDEN = "only a driver's own register accesses show this, and the stream has none"


class Fate(Enum):
    """The verdict of a stream on a statement."""

    KEPT = "kept"
    BROKEN = "broken"
    NOT_EXERCISED = "not exercised"


@dataclass(frozen=True)
class Verdict:
    """The verdict on one statement.

    `reason` says why it is not exercised. `evidence` are the events that break it, in words.
    `checked` is the number of events that decided.
    """

    id: str
    fate: Fate
    reason: str = ""
    evidence: tuple[str, ...] = ()
    checked: int = 0


def judge(events: Iterable[Event]) -> dict[str, Verdict]:
    """Return the verdict on every statement that binds drivers, by id."""
    parts = sessions(events)
    return {name: _verdict(name, parts) for name in driver_clauses()}


def _verdict(name: str, parts: list[Session]) -> Verdict:
    rule = RULES.get(name)
    if rule is None:
        reason = driver_clauses()[name].untested or NO_RULE
        return Verdict(name, Fate.NOT_EXERCISED, reason)
    checked = 0
    evidence: list[str] = []
    for number, session in enumerate(parts):
        for event, problem in rule.checks(session):
            checked += 1
            if problem and len(evidence) < SHOWN:
                evidence.append(f"session {number}: {event}: {problem}")
    if evidence:
        return Verdict(name, Fate.BROKEN, evidence=tuple(evidence), checked=checked)
    if checked:
        return Verdict(name, Fate.KEPT, checked=checked)
    seen = not parts or any(session.device.has_registers for session in parts)
    hidden = rule.registers and not seen
    return Verdict(name, Fate.NOT_EXERCISED, HIDDEN if hidden else rule.idle)


def table(verdicts: dict[str, Verdict], whole: bool = False) -> Iterator[str]:
    """Yield the lines of a table; `whole` includes statements that were not exercised."""
    for name, verdict in verdicts.items():
        clause = driver_clauses()[name]
        if verdict.fate is Fate.NOT_EXERCISED and not whole:
            continue
        yield f"{name:16} {clause.level:10} {verdict.fate.value}"
        if verdict.fate is Fate.BROKEN:
            yield f"    {clause.text}"
            yield from (f"    {line}" for line in verdict.evidence)
        elif verdict.reason:
            yield f"    {verdict.reason}"
    count = Counter(verdict.fate for verdict in verdicts.values())
    yield (
        f"{len(verdicts)} statements: {count[Fate.KEPT]} kept, {count[Fate.BROKEN]} broken, "
        f"{count[Fate.NOT_EXERCISED]} not exercised"
    )
