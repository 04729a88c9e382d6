"""Catalogue of the statements of virtio 1.4 that the suite tests, by id, in our own words."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

SPECIFICATION = "virtio 1.4"

CATALOGUE = Path(__file__).with_name("clauses")
"""Folder of the catalogue: one TOML file for each chapter, or for each section of a long one."""

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
"""Levels from the strongest to the weakest.

`described` is behaviour that the specification states without a keyword. `hardening` is how a
device reacts to a driver that breaks the rules, which the specification does not say: a failure
at this level is not a violation of the specification.
"""

ADVISORY: frozenset[Level] = frozenset({"SHOULD", "SHOULD NOT"})
"""Levels at which a device may have a good reason to differ (RFC 2119)."""


@dataclass(frozen=True)
class Clause:
    """A statement: `party` is who has to follow it, `text` is what it demands, in our words.

    `untested` is for a statement without a test. It says why no target allows
    one, and what a test would need.
    """

    id: str
    party: str
    level: Level
    text: str
    untested: str = ""

    @property
    def section(self) -> str:
        """Number of the section of the specification that contains the statement."""
        return self.id.split("-", 1)[0]


class UnknownClauseError(LookupError):
    """There is no statement of this id in the catalogue."""


@cache
def clauses() -> dict[str, Clause]:
    """Return the whole catalogue by id, in the order of the specification.

    Raises ValueError, with file and id, if an entry has missing or unknown
    keys or an unknown level, or if an id occurs twice.
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
    """Return the statements whose violation by a device is observable: id -> kind of test.

    "blackbox": a driver is enough. "host": the test also has to do something on
    the host, or look at something there. The statements on administration
    virtqueues (virtio 2.12, 2.13) are left out.
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
    """Return a sort key for sections in the order of the specification: 2.10 follows 2.9."""
    return [int(number) for number in section.split(".")]


def lookup(name: str) -> Clause:
    """Return the statement with this id. Raises UnknownClauseError if there is none."""
    try:
        return clauses()[name]
    except KeyError:
        raise UnknownClauseError(f"no statement {name!r} in harness/virtio/clauses/") from None


def weakest(levels: Iterable[Level]) -> Level:
    """Return the weakest of these levels: a test of several statements proves no more than it."""
    return max(levels, key=STRENGTH.index)
