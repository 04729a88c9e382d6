"""Catalogue of statements of virtio 1.4 and of the vhost-user protocol, in our own words.

`clauses` are the statements that the suite tests on devices. `driver_clauses` are those that
bind drivers, except on administration virtqueues (virtio 2.12, 2.13).
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Literal, TypeVar

SPECIFICATION = "virtio 1.4"

CATALOGUE = Path(__file__).with_name("clauses")
"""Folder of the catalogue: one TOML file for each chapter, or for each section of a long one."""

DRIVER_CATALOGUE = CATALOGUE / "driver"
"""Folder of the statements that bind drivers, divided in the same way."""

VHOST_USER = "VU"
"""The section of all statements about the vhost-user protocol. They are no part of virtio."""

AFTER_ALL = 1 << 16
"""A number above all chapters of the specification."""

TESTABLE = Path(__file__).with_name("testable.toml")

Level = Literal[
    "MUST", "MUST NOT", "described", "protocol", "SHOULD", "SHOULD NOT", "MAY", "hardening"
]

STRENGTH: tuple[Level, ...] = (
    "MUST",
    "MUST NOT",
    "described",
    "protocol",
    "SHOULD",
    "SHOULD NOT",
    "MAY",
    "hardening",
)
"""Levels from the strongest to the weakest.

`described` is behaviour that the specification states without a keyword. `protocol` is what the
document of the vhost-user protocol demands of a back-end, which virtio does not say. `hardening`
is how a device reacts to a driver that breaks the rules, which the specification does not say: a
failure at this level is not a violation of the specification.
"""

ADVISORY: frozenset[Level] = frozenset({"SHOULD", "SHOULD NOT"})
"""Levels at which a device may have a good reason to differ (RFC 2119)."""


@dataclass(frozen=True)
class Clause:
    """A statement: `party` is who has to follow it, `text` is what it demands, in our words.

    `untested` is for a statement without a test. It says why no target allows
    one, and what a test would need. `place` is the heading in the document of the
    vhost-user protocol, for a statement from there.
    """

    id: str
    party: str
    level: Level
    text: str
    untested: str = ""
    place: str = ""

    @property
    def section(self) -> str:
        """Number of the section of the specification with the statement, or VHOST_USER."""
        return self.id.split("-", 1)[0]


SEEN: dict[str, str] = {
    "A": "by a vhost-user back-end with ordinary traffic",
    "B": "by a vhost-user back-end that provokes it",
    "C": "in accesses to registers, with ordinary traffic",
    "D": "by a device whose registers, features or capabilities are ours",
    "E": "only in the effect on the user of the driver",
    "X": "by MMIO registers that hold wrong values",
    "N": "not at all",
}
"""Classes of a driver's statements: where a device can observe whether the driver follows them."""


@dataclass(frozen=True)
class DriverClause(Clause):
    """A statement that binds a driver. `seen` is its class, a key of SEEN.

    `untested` says why no rule of the witness can judge it.
    """

    seen: str = ""


_C = TypeVar("_C", bound=Clause)


class UnknownClauseError(LookupError):
    """There is no statement of this id in the catalogue."""


@cache
def clauses() -> dict[str, Clause]:
    """Return the statements that the suite tests, by id, in the order of the specification.

    Raises ValueError, with file and id, if an entry has missing or unknown
    keys or an unknown level, or if an id occurs twice.
    """
    return _load(CATALOGUE, Clause, {"party", "level", "text"})


@cache
def driver_clauses() -> dict[str, DriverClause]:
    """Return the statements that bind drivers, by id, in the order of the specification.

    Raises ValueError as `clauses` does, and for a class that is not in SEEN.
    """
    found = _load(DRIVER_CATALOGUE, DriverClause, {"party", "level", "text", "seen"})
    for clause in found.values():
        if clause.seen not in SEEN:
            raise ValueError(f"{clause.id} has no class {clause.seen!r}; known: {', '.join(SEEN)}")
    return found


def _load(folder: Path, kind: type[_C], needed: set[str]) -> dict[str, _C]:
    """Return the entries of all files in a folder as `kind`. Raises ValueError for a bad one."""
    known = {field.name for field in fields(kind)} - {"id"}
    found: dict[str, _C] = {}
    for path in sorted(folder.glob("*.toml")):
        for name, table in tomllib.loads(path.read_text(encoding="utf-8")).items():
            if not needed <= set(table) <= known:
                wanted = ", ".join(sorted(needed))
                raise ValueError(f"{path.name}: {name} has other keys than {wanted}: {table}")
            if table["level"] not in STRENGTH:
                raise ValueError(f"{path.name}: {name} has no level {table['level']!r}")
            if name in found:
                raise ValueError(f"{path.name}: {name} is in the catalogue already")
            found[name] = kind(id=name, **table)
    return dict(sorted(found.items(), key=lambda entry: _order(entry[0])))


@cache
def testable() -> dict[str, str]:
    """Return the statements whose violation by a device is observable: id -> kind of test.

    "blackbox": a driver is enough. "host": the test also has to do something on
    the host, or look at something there.
    """
    kinds = tomllib.loads(TESTABLE.read_text(encoding="utf-8"))
    return {
        f"{section}-{rest}": kind
        for kind, sections in kinds.items()
        for section, names in sections.items()
        for rest in names
    }


def _order(name: str) -> tuple[list[int], str]:
    section, _, rest = name.partition("-")
    return section_order(section), rest


def section_order(section: str) -> list[int]:
    """Return a sort key for sections in the order of the specification: 2.10 follows 2.9.

    VHOST_USER comes last.
    """
    if section == VHOST_USER:
        return [AFTER_ALL]
    return [int(number) for number in section.split(".")]


def lookup(name: str) -> Clause:
    """Return the statement with this id. Raises UnknownClauseError if there is none."""
    found = clauses().get(name) or driver_clauses().get(name)
    if found is None:
        raise UnknownClauseError(f"no statement {name!r} in harness/virtio/clauses/")
    return found


def weakest(levels: Iterable[Level]) -> Level:
    """Return the weakest of these levels: a test of several statements proves no more than it."""
    return max(levels, key=STRENGTH.index)
