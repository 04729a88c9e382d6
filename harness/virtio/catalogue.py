"""The statements of virtio 1.4 that the suite tests, by id, in our own words."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

SPECIFICATION = "virtio 1.4"

CATALOGUE = Path(__file__).with_name("clauses")
"""A TOML file for each chapter or, of the long chapters, section."""

TESTABLE = Path(__file__).with_name("testable.toml")

Level = Literal["MUST", "MUST NOT", "described", "SHOULD", "SHOULD NOT", "MAY", "hardening"]

STRENGTH: tuple[Level, ...] = (
    "MUST",
    "MUST NOT",
    "described",
    "SHOULD",
    "SHOULD NOT",
    "MAY",
    "hardening",
)
"""From the strongest on. `described` is behaviour that the text states without a keyword;
`hardening` what the text says nothing about: how a device fares with a driver that breaks the
rules. A failure of that is no violation of the specification."""

ADVISORY: frozenset[Level] = frozenset({"SHOULD", "SHOULD NOT"})
"""Levels at which a device may have a good reason to differ (RFC 2119)."""


@dataclass(frozen=True)
class Clause:
    """One statement: `party` is whom it binds, `text` what it asks, in our words.

    `untested` says, of a statement that no test is bound to, why none is
    possible on any target there is and what it would take.
    """

    id: str
    party: str
    level: Level
    text: str
    untested: str = ""

    @property
    def section(self) -> str:
        """The section of the specification that states it."""
        return self.id.split("-", 1)[0]


class UnknownClauseError(LookupError):
    """There is no statement of this id in the catalogue."""


@cache
def clauses() -> dict[str, Clause]:
    """The whole catalogue, in the specification's order.

    ValueError, naming the file and the id, for an entry of another shape, an
    unknown level, or an id that is there twice.
    """
    found: dict[str, Clause] = {}
    for path in sorted(CATALOGUE.glob("*.toml")):
        for name, table in tomllib.loads(path.read_text(encoding="utf-8")).items():
            if not {"party", "level", "text"} <= set(table) <= {*Clause.__annotations__} - {"id"}:
                raise ValueError(f"{path.name}: {name} is not party, level and text: {table}")
            if table["level"] not in STRENGTH:
                raise ValueError(f"{path.name}: {name} has no level {table['level']!r}")
            if name in found:
                raise ValueError(f"{path.name}: {name} is in the catalogue already")
            found[name] = Clause(id=name, **table)
    return dict(sorted(found.items(), key=lambda entry: _order(entry[0])))


@cache
def testable() -> dict[str, str]:
    """Every statement that a device can be seen to break: id -> "blackbox" or "host".

    On "host" it takes an act or a look there, beside a driver. Without the
    administration virtqueue (virtio 2.12, 2.13).
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
    """Sorts sections as the specification has them: 2.10 comes after 2.9."""
    return [int(number) for number in section.split(".")]


def lookup(name: str) -> Clause:
    """The statement of this id; UnknownClauseError if there is none."""
    try:
        return clauses()[name]
    except KeyError:
        raise UnknownClauseError(f"no clause {name!r} in harness/virtio/clauses/") from None


def weakest(levels: Iterable[Level]) -> Level:
    """The weakest of some levels: a test that binds several proves no more than that."""
    return max(levels, key=STRENGTH.index)
