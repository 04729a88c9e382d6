"""The part of the pytest plugin that selects tests by what they are about.

`--section` and `--clause` say which statements, either will do; `--level` says
at which levels. A test that is about no statement is left out of a selection.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable

import pytest

from harness.report.markers import Statement, statement_of
from harness.virtio.catalogue import STRENGTH, clauses, section_order

LEVELS = {
    word: frozenset(level for level in STRENGTH if level.split()[0].lower() == word)
    for word in dict.fromkeys(level.split()[0].lower() for level in STRENGTH if level != "MAY")
}
"""What `--level` takes -> the levels that it means: a MUST NOT is a must. MAY asks nothing."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options that select. `--strict` is pytest's own: here it is ours, too."""
    group = parser.getgroup("virtio-blk", "virtio-blk conformance")
    group.addoption(
        "--level",
        action="append",
        default=[],
        type=_level,
        metavar="|".join(LEVELS),
        help="only tests of statements of this level; repeatable",
    )
    group.addoption(
        "--section",
        action="append",
        default=[],
        type=_section,
        metavar="NUMBER",
        help="only tests of this section of the specification and those below it (2.7); repeatable",
    )
    group.addoption(
        "--clause",
        action="append",
        default=[],
        type=_clause,
        metavar="ID",
        help="only tests of this statement (5.2.6.2-D-03, with all its letters); repeatable",
    )


def _level(text: str) -> str:
    if text.lower() not in LEVELS:
        raise argparse.ArgumentTypeError(f"no level {text!r}; there are: {', '.join(LEVELS)}")
    return text.lower()


def _section(text: str) -> str:
    if not re.fullmatch(r"\d+(\.\d+)*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no section; one looks like 2.7 or 5.2.6.2")
    return text


def _clause(text: str) -> str:
    if any(_is_clause(name, text) for name in clauses()):
        return text
    section = text.partition("-")[0]
    there = [name for name in clauses() if name.partition("-")[0] == section]
    known = ", ".join(there) or _near(section, (one.section for one in clauses().values()))
    raise argparse.ArgumentTypeError(f"no statement {text!r} in the catalogue; there are {known}")


def _near(section: str, sections: Iterable[str]) -> str:
    """What there is of the same chapter, or else the chapters."""
    there = sorted(set(sections), key=section_order)
    chapter = section.partition(".")[0]
    near = [one for one in there if _is_below(one, chapter)]
    chapters = dict.fromkeys(one.partition(".")[0] for one in there)
    return ", ".join(near) or f"the chapters {', '.join(chapters)}"


def _is_clause(name: str, wanted: str) -> bool:
    """Whether an id is the wanted one, or one of its halves: 5.2.6.2-D-03a of 5.2.6.2-D-03."""
    return name == wanted or (name[-1:].isalpha() and name[:-1] == wanted)


def _is_below(section: str, wanted: str) -> bool:
    """Whether a section is the wanted one or lies in it."""
    parts = wanted.split(".")
    return section.split(".")[: len(parts)] == parts


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """pytest knows `--strict` already (strict about its own options); here it says both."""
    if config.option.strict:
        config.option.strict_should = True


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what was not asked for. pytest.UsageError for a section that is not there."""
    option = config.option
    if not (option.level or option.section or option.clause):
        return
    statements = {item: statement_of(item) for item in items}
    _check_sections(option.section, filter(None, statements.values()))
    chosen: list[pytest.Item] = []
    rest: list[pytest.Item] = []
    for item, statement in statements.items():
        (chosen if statement and _wanted(statement, option) else rest).append(item)
    if rest:
        config.hook.pytest_deselected(items=rest)
    items[:] = chosen


def _wanted(statement: Statement, option: argparse.Namespace) -> bool:
    if option.level and not any(statement.level in LEVELS[word] for word in option.level):
        return False
    if not (option.section or option.clause):
        return True
    return any(
        _is_below(section, wanted) for section in statement.sections for wanted in option.section
    ) or any(_is_clause(name, wanted) for name in statement.clauses for wanted in option.clause)


def _check_sections(wanted: Iterable[str], statements: Iterable[Statement]) -> None:
    tested = {section for statement in statements for section in statement.sections}
    there = tested | {clause.section for clause in clauses().values()}
    for one in wanted:
        if not any(_is_below(section, one) for section in there):
            raise pytest.UsageError(
                f"--section {one}: no such section; there are {_near(one, there)}"
            )


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Of a statement that was asked for and has no test, why."""
    for wanted in config.option.clause:
        for clause in clauses().values():
            if clause.untested and _is_clause(clause.id, wanted):
                terminalreporter.write_line(f"{clause.id} has no test: {clause.untested}")
