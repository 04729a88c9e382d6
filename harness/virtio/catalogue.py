"""The statements of virtio 1.4 that the suite tests, by id, in our own words."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, cast

SPECIFICATION = "virtio 1.4"

Level = Literal["MUST", "MUST NOT", "described", "SHOULD", "SHOULD NOT", "MAY"]

STRENGTH: tuple[Level, ...] = ("MUST", "MUST NOT", "described", "SHOULD", "SHOULD NOT", "MAY")
"""From the strongest on. `described` is behaviour that the text states without a keyword."""

ADVISORY: frozenset[Level] = frozenset({"SHOULD", "SHOULD NOT"})
"""Levels at which a device may have a good reason to differ (RFC 2119)."""


@dataclass(frozen=True)
class Clause:
    """One statement: `party` is whom it binds, `text` what it asks, in our words."""

    id: str
    party: str
    level: Level
    text: str

    @property
    def section(self) -> str:
        """The section of the specification that states it."""
        return self.id.split("-", 1)[0]


class UnknownClauseError(LookupError):
    """There is no statement of this id in the catalogue."""


@cache
def clauses() -> dict[str, Clause]:
    """The whole catalogue, in the specification's order.

    ValueError if the file that holds it has an unknown level or lacks a key.
    """
    with Path(__file__).with_name("clauses.toml").open("rb") as file:
        tables = tomllib.load(file)
    found = {}
    for name, table in tables.items():
        if set(table) != {"party", "level", "text"} or table["level"] not in STRENGTH:
            raise ValueError(f"clauses.toml: {name} is not party, level and text: {table}")
        found[name] = Clause(name, table["party"], cast(Level, table["level"]), table["text"])
    return found


def lookup(name: str) -> Clause:
    """The statement of this id; UnknownClauseError if there is none."""
    try:
        return clauses()[name]
    except KeyError:
        raise UnknownClauseError(f"no clause {name!r} in harness/virtio/clauses.toml") from None


def weakest(levels: Iterable[Level]) -> Level:
    """The weakest of some levels: a test that binds several proves no more than that."""
    return max(levels, key=STRENGTH.index)
