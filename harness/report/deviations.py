"""Known deviations of a device implementation, and what they do to a test's outcome.

A file `deviations/<implementation>.toml` beside the tests holds tables:

    [[deviation]]
    clause = "2.1.2-D-01"                     # the statement that is not kept
    tests = ["test_status.py::test_buffers_*"]  # node ids below the directory, fnmatch patterns
    versions = ">=7.2"                        # of the implementation; comparisons, comma-separated
    seen = "used index"                       # regular expression, found in the failure's message
    why = "what the device does, and where in its source"
    targets = ["*-pci*"]                      # fnmatch patterns; left out, on every target
    sometimes = true                          # it is a race, and the test may pass; left out, false

A test that fails as recorded is an expected failure. One that passes on an
affected version fails, unless it is a race: the record has to go. A failure
that looks otherwise stays a failure.
"""

from __future__ import annotations

import operator
import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

Version = tuple[int, ...]

_COMPARISONS: dict[str, Callable[[Version, Version], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    ">": operator.gt,
    "<": operator.lt,
}


class DeviationFileError(Exception):
    """A file of deviations makes no sense; one line that says where."""


@dataclass(frozen=True)
class Deviation:
    """One recorded deviation; `implementation` is the file's name, for the rest see above."""

    implementation: str
    clause: str
    tests: tuple[str, ...]
    versions: str
    seen: str
    why: str
    targets: tuple[str, ...] = ("*",)
    sometimes: bool = False

    def affects(self, implementation: str, version: Version, target: str) -> bool:
        """Whether this version of this implementation, on this target, is one that deviates."""
        return (
            implementation == self.implementation
            and any(fnmatchcase(target, pattern) for pattern in self.targets)
            and all(
                compare(version[: len(bound)], bound) for compare, bound in _bounds(self.versions)
            )
        )

    def covers(self, node: str) -> bool:
        """Whether a test, by its node id below the directory of the tests, is one of these."""
        return any(fnmatchcase(_literal(node), _literal(pattern)) for pattern in self.tests)

    def explains(self, message: str) -> bool:
        """Whether a failure's message is what was recorded."""
        return re.search(self.seen, message) is not None


@cache
def load(path: Path) -> tuple[Deviation, ...]:
    """The deviations in a file, none if there is no such file. Raises DeviationFileError."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8")).get("deviation", [])
    except FileNotFoundError:
        return ()
    except ValueError as error:
        raise DeviationFileError(f"{path}: {error}") from None
    found = []
    known = {field.name for field in fields(Deviation)} - {"implementation"}
    wanted = known - {"targets", "sometimes"}
    for number, table in enumerate(tables, 1):
        where = f"{path}, deviation {number}"
        if not wanted <= set(table) <= known:
            raise DeviationFileError(f"{where}: the keys are {sorted(wanted)}, not {sorted(table)}")
        lists = {key: tuple(table[key]) for key in ("tests", "targets") if key in table}
        deviation = Deviation(path.stem, **{**table, **lists})
        if not isinstance(deviation.sometimes, bool):
            raise DeviationFileError(f"{where}: sometimes is true or false")
        try:
            _bounds(deviation.versions)
            re.compile(deviation.seen)
        except (ValueError, re.error) as error:
            raise DeviationFileError(f"{where}: {error}") from None
        found.append(deviation)
    return tuple(found)


def _bounds(text: str) -> list[tuple[Callable[[Version, Version], bool], Version]]:
    bounds = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(>=|<=|==|>|<)\s*(\d+(?:\.\d+)*)\s*", part)
        if match is None:
            raise ValueError(f"{part!r} is no comparison with a version, like >=7.2")
        bounds.append((_COMPARISONS[match[1]], tuple(map(int, match[2].split(".")))))
    return bounds


def _literal(node: str) -> str:
    """A node id with its brackets made plain: they hold parameters, not sets of characters."""
    return node.replace("[", "(").replace("]", ")")
