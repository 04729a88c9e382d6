"""Selection of tests by statement: `--section`, `--clause` and `--level`.

`--section` and `--clause` name statements; a test that matches either is selected. `--level` names
levels. A selection leaves out tests that check no statement.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Generator, Iterable

import pytest

from harness.pytestplugin.arguments import add_option
from harness.report.listing import listing
from harness.report.markers import Statement, statement_of
from harness.virtio.catalogue import (
    STRENGTH,
    VHOST_USER,
    Clause,
    clauses,
    driver_clauses,
    section_order,
)

LEVELS = {
    word: frozenset(level for level in STRENGTH if level.split()[0].lower() == word)
    for word in dict.fromkeys(level.split()[0].lower() for level in STRENGTH if level != "MAY")
}
"""Values of `--level` -> the levels that they mean: MUST NOT is included in `must`.

There is no value for MAY.
"""


PARTIES = ("device", "driver")

TESTS = pytest.StashKey[dict[str, dict[str, None]]]()
"""Id of a statement -> ids of its tests, without parameters, as keys."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that select tests."""
    add_option(
        parser,
        "level",
        action="append",
        default=[],
        type=_level,
        metavar="|".join(LEVELS),
        help="only tests of statements of this level; repeatable",
    )
    add_option(
        parser,
        "section",
        action="append",
        default=[],
        type=_section,
        metavar="NUMBER",
        help="only tests of this section of the specification and those below it (2.7), or of the"
        f" vhost-user protocol ({VHOST_USER}); repeatable",
    )
    add_option(
        parser,
        "list-statements",
        action="store_true",
        help="print the statements, with their tests, and exit; the options above select",
    )
    add_option(
        parser,
        "party",
        choices=PARTIES,
        help="with --list-statements: only statements that bind this party",
    )
    add_option(
        parser,
        "clause",
        action="append",
        default=[],
        type=_clause,
        metavar="ID",
        help="only tests of this statement (5.2.6.2-D-03, with all its letters); repeatable",
    )


def _level(text: str) -> str:
    if text.lower() not in LEVELS:
        raise argparse.ArgumentTypeError(f"unknown level {text!r}; known: {', '.join(LEVELS)}")
    return text.lower()


def _section(text: str) -> str:
    if text != VHOST_USER and not re.fullmatch(r"\d+(\.\d+)*", text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a section number; examples: 2.7, 5.2.6.2, {VHOST_USER}"
        )
    return text


def _clause(text: str) -> str:
    every = {**clauses(), **driver_clauses()}
    if any(_is_clause(name, text) for name in every):
        return text
    section = text.partition("-")[0]
    there = [name for name in every if name.partition("-")[0] == section]
    known = ", ".join(there) or _near(section, (clause.section for clause in every.values()))
    raise argparse.ArgumentTypeError(f"no statement {text!r} in the catalogue; known: {known}")


def _near(section: str, sections: Iterable[str]) -> str:
    """Return the known sections of the same chapter, or the chapters if there are none."""
    there = sorted(set(sections), key=section_order)
    chapter = section.partition(".")[0]
    near = [section for section in there if _is_below(section, chapter)]
    chapters = dict.fromkeys(section.partition(".")[0] for section in there)
    return ", ".join(near) or f"the chapters {', '.join(chapters)}"


def _is_clause(name: str, wanted: str) -> bool:
    """Return True for the wanted id or a part of it: 5.2.6.2-D-03a is a part of 5.2.6.2-D-03."""
    return name == wanted or (name[-1:].isalpha() and name[:-1] == wanted)


def _is_below(section: str, wanted: str) -> bool:
    """Return True if a section is the wanted one or is contained in it."""
    parts = wanted.split(".")
    return section.split(".")[: len(parts)] == parts


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect tests that were not asked for. Raise pytest.UsageError for an unknown section."""
    option = config.option
    if option.vblk_list_statements:
        tests = config.stash[TESTS] = {}
        for item in items:
            statement = statement_of(item)
            for name in statement.clauses if statement else ():
                tests.setdefault(name, {})[item.nodeid.partition("[")[0]] = None
        return
    if not (option.vblk_level or option.vblk_section or option.vblk_clause):
        return
    statements = {item: statement_of(item) for item in items}
    _check_sections(option.vblk_section, filter(None, statements.values()))
    chosen: list[pytest.Item] = []
    rest: list[pytest.Item] = []
    for item, statement in statements.items():
        (chosen if statement and _wanted(statement, option) else rest).append(item)
    if rest:
        config.hook.pytest_deselected(items=rest)
    items[:] = chosen


def _wanted(statement: Statement, option: argparse.Namespace) -> bool:
    if option.vblk_level and not any(statement.level in LEVELS[word] for word in option.vblk_level):
        return False
    if not (option.vblk_section or option.vblk_clause):
        return True
    return any(
        _is_below(section, wanted)
        for section in statement.sections
        for wanted in option.vblk_section
    ) or any(
        _is_clause(name, wanted) for name in statement.clauses for wanted in option.vblk_clause
    )


def _check_sections(
    wanted: Iterable[str], statements: Iterable[Statement], more: Iterable[str] = ()
) -> None:
    tested = {section for statement in statements for section in statement.sections}
    there = tested | {clause.section for clause in clauses().values()} | set(more)
    for section in wanted:
        if not any(_is_below(name, section) for name in there):
            raise pytest.UsageError(
                f"--section {section}: no such section; known: {_near(section, there)}"
            )


@pytest.hookimpl(wrapper=True)
def pytest_cmdline_main(config: pytest.Config) -> Generator[None, object, object]:
    """Use no workers of pytest-xdist for `--list-statements`: only they would have the tests."""
    if getattr(config.option, "vblk_list_statements", False):
        config.option.numprocesses = None
    return (yield)


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """Print the statements instead of running tests if `--list-statements` is given."""
    config = session.config
    if not config.option.vblk_list_statements:
        return None
    known = _statements(config.option.vblk_party)
    _check_sections(config.option.vblk_section, (), (clause.section for clause in known))
    found = [clause for clause in known if _listed(clause, config.option)]
    tests: dict[str, dict[str, None]] = config.stash.get(TESTS, {})
    writer = config.get_terminal_writer()
    for line in listing(found, tests) if found else [NOTHING]:
        writer.line(line)
    return True


NOTHING = "no such statement in the catalogue"


def _statements(party: str | None) -> list[Clause]:
    """Return the statements that bind a party ("device", "driver"), or all of them."""
    of_devices = [clause for clause in clauses().values() if not clause.party.endswith("driver")]
    of_drivers = list[Clause](driver_clauses().values())
    if party == "driver":
        return of_drivers
    return of_devices if party == "device" else of_devices + of_drivers


def _listed(clause: Clause, option: argparse.Namespace) -> bool:
    if option.vblk_level and not any(clause.level in LEVELS[word] for word in option.vblk_level):
        return False
    if not (option.vblk_section or option.vblk_clause):
        return True
    return any(_is_below(clause.section, wanted) for wanted in option.vblk_section) or any(
        _is_clause(clause.id, wanted) for wanted in option.vblk_clause
    )


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print, for each requested statement without a test, why it has none."""
    for wanted in config.option.vblk_clause:
        for clause in {**clauses(), **driver_clauses()}.values():
            if clause.untested and _is_clause(clause.id, wanted):
                terminalreporter.write_line(f"{clause.id} has no test: {clause.untested}")
