"""Markers that name the statements of the specification that a test checks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest

from harness.virtio.catalogue import (
    ADVISORY,
    STRENGTH,
    Level,
    UnknownClauseError,
    lookup,
    weakest,
)

Test = TypeVar("Test", bound=Callable[..., Any])


def clause(*ids: str) -> pytest.MarkDecorator:
    """Mark a test with the statements that it checks, by their ids in the catalogue."""
    return pytest.mark.clause(*ids)


def described(*ids: str) -> pytest.MarkDecorator:
    """This test checks behaviour that the text describes without a keyword, by catalogue ids."""
    return pytest.mark.described(*ids)


def hardening(section: str, text: str) -> pytest.MarkDecorator:
    """Mark a test whose driver breaks the rules of a section; `text` says how, in our own words."""
    return pytest.mark.hardening(section, text)


def on(*traits: str) -> pytest.MarkDecorator:
    """Mark a test for targets with all of these traits; on others it is skipped."""
    return pytest.mark.on(*traits)


def reads_only(test: Test) -> Test:
    """Mark a test that does not change the disk, so that it may run on a disk that is only read."""
    pytest.mark.reads_only(test)
    return test


@dataclass(frozen=True)
class Statement:
    """Statement of a test: ids in the catalogue, and the level.

    `hardening` are rules that the test's driver breaks, as (section, text).

    The level is the weakest of all: a failure of a test of a MUST and a SHOULD may be about the
    SHOULD, so it proves no more. A test that should fail as a MUST does not name anything weaker.
    """

    clauses: tuple[str, ...]
    level: Level
    hardening: tuple[tuple[str, str], ...] = ()

    @property
    def advisory(self) -> bool:
        """Return True if a device may have a good reason to fail the test (SHOULD)."""
        return self.level in ADVISORY

    @property
    def sections(self) -> tuple[str, ...]:
        """Return the sections of its statements, in the order of the markers, each once."""
        named = (lookup(name).section for name in self.clauses)
        return tuple(dict.fromkeys((*named, *(section for section, _ in self.hardening))))

    def properties(self) -> list[tuple[str, str]]:
        """Return the properties of the test case in a JUnit report."""
        return [
            *(("clause", name) for name in self.clauses),
            *(("hardening", f"{section}: {text}") for section, text in self.hardening),
            ("level", self.level),
        ]

    @classmethod
    def parse(cls, properties: Iterable[tuple[str, object]]) -> Statement | None:
        """Return the statement that `properties` wrote; None if there is none among them."""
        clauses: list[str] = []
        hardening: list[tuple[str, str]] = []
        level: Level | None = None
        for name, value in properties:
            if name == "clause":
                clauses.append(str(value))
            elif name == "hardening":
                section, _, text = str(value).partition(": ")
                hardening.append((section, text))
            elif name == "level":
                level = next(known for known in STRENGTH if known == value)
        return cls(tuple(clauses), level, tuple(hardening)) if level else None


def statement_of(item: pytest.Item) -> Statement | None:
    """Return the statement in an item's markers, or None if it has no such markers.

    Raises pytest.UsageError, naming the test, for an id that the catalogue
    does not have, for one of the other marker, and for a marker without arguments.
    """
    clauses = (*_ids(item, "clause"), *_ids(item, "described"))
    hardening = _broken_rules(item)
    levels: list[Level] = [lookup(name).level for name in clauses]
    if hardening:
        levels.append("hardening")
    if not levels:
        return None
    return Statement(clauses, weakest(levels), hardening)


def _ids(item: pytest.Item, marker: str) -> list[str]:
    """The ids that the markers of this name give: `described` those of that level only."""
    ids: list[str] = []
    for mark in item.iter_markers(marker):
        if not mark.args:
            raise pytest.UsageError(f"{item.nodeid}: @{marker}() names no statement")
        for name in mark.args:
            try:
                level = lookup(name).level
            except UnknownClauseError as error:
                raise pytest.UsageError(f"{item.nodeid}: {error}") from None
            wanted = "described" if level == "described" else "clause"
            if marker != wanted:
                raise pytest.UsageError(
                    f"{item.nodeid}: {name} is a statement of level {level}; use @{wanted}"
                )
            ids.append(name)
    return ids


def _broken_rules(item: pytest.Item) -> tuple[tuple[str, str], ...]:
    """Return the arguments of hardening markers, as (section, text)."""
    rules: list[tuple[str, str]] = []
    for mark in item.iter_markers("hardening"):
        try:
            section, text = mark.args
        except ValueError:
            raise pytest.UsageError(
                f"{item.nodeid}: @hardening takes a section and a text, not {mark.args}"
            ) from None
        rules.append((section, text))
    return tuple(rules)
