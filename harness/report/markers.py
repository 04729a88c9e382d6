"""Markers that name the statements of the specification that a test checks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest

from harness.virtio.catalogue import ADVISORY, Level, UnknownClauseError, lookup, weakest

Test = TypeVar("Test", bound=Callable[..., Any])


def clause(*ids: str) -> pytest.MarkDecorator:
    """Mark a test with the statements that it checks, by their ids in the catalogue."""
    return pytest.mark.clause(*ids)


def described(section: str, text: str) -> pytest.MarkDecorator:
    """Mark a test of behaviour that a section describes without a keyword, in our own words."""
    return pytest.mark.described(section, text)


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
    """Statement of a test: clause ids, described behaviour as (section, text), and the level.

    `hardening` are rules that the test's driver breaks, also as (section, text). The level is the
    weakest of all: a failure of a test of a MUST and a SHOULD may be about the SHOULD, so it proves
    no more. A test that should fail as a MUST does not name anything weaker.
    """

    clauses: tuple[str, ...]
    described: tuple[tuple[str, str], ...]
    level: Level
    hardening: tuple[tuple[str, str], ...] = ()

    @property
    def advisory(self) -> bool:
        """Return True if a device may have a good reason to fail the test (SHOULD)."""
        return self.level in ADVISORY

    @property
    def sections(self) -> frozenset[str]:
        """Return the sections of the specification that contain the statements."""
        named = (lookup(name).section for name in self.clauses)
        return frozenset((*named, *(section for section, _ in self.described + self.hardening)))

    def properties(self) -> list[tuple[str, str]]:
        """Return the properties of the test case in a JUnit report."""
        return [
            *(("clause", name) for name in self.clauses),
            *(("described", f"{section}: {text}") for section, text in self.described),
            *(("hardening", f"{section}: {text}") for section, text in self.hardening),
            ("level", self.level),
        ]


def statement_of(item: pytest.Item) -> Statement | None:
    """Return the statement in an item's markers, or None if it has no such markers.

    Raise pytest.UsageError, with the test's name, for an id that the catalogue does not have and
    for a marker without arguments.
    """
    marks = list(item.iter_markers("clause"))
    clauses: list[str] = []
    for mark in marks:
        if not mark.args:
            raise pytest.UsageError(f"{item.nodeid}: @clause() names no statement")
        clauses += mark.args
    described, hardening = _prose(item, "described"), _prose(item, "hardening")
    try:
        levels: list[Level] = [lookup(name).level for name in clauses]
    except UnknownClauseError as error:
        raise pytest.UsageError(f"{item.nodeid}: {error}") from None
    if described:
        levels.append("described")
    if hardening:
        levels.append("hardening")
    if not levels:
        return None
    return Statement(tuple(clauses), described, weakest(levels), hardening)


def _prose(item: pytest.Item, marker: str) -> tuple[tuple[str, str], ...]:
    """Return the arguments of markers with this name, as (section, text)."""
    prose: list[tuple[str, str]] = []
    for mark in item.iter_markers(marker):
        try:
            section, text = mark.args
        except ValueError:
            raise pytest.UsageError(
                f"{item.nodeid}: @{marker} takes a section and a text, not {mark.args}"
            ) from None
        prose.append((section, text))
    return tuple(prose)
