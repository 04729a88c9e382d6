"""Known deviations of a device implementation, and their effect on a test's outcome.

A file `deviations/<implementation>.toml` next to the tests contains tables:

    [[deviation]]
    clause = "2.1.2-D-01"                     # the statement that is not kept
    tests = ["test_status.py::test_buffers_*"]  # node ids below the directory, fnmatch patterns
    versions = ">=7.2"                        # of the implementation; comparisons, comma-separated
    seen = "used index"                       # regular expression, found in the failure's message
    why = "what the device does, and where in its source"
    part = "virtio-pci"                       # of the implementation; default: all of it
    targets = ["*-pci*"]                      # fnmatch patterns; default: every target; a user's
                                              # target is meant by the one of ours that it is like
    except_targets = ["qtest-*"]              # targets that do not deviate; default: none
    sometimes = true                          # a race: the test may pass; default: false

A test that fails as recorded is an expected failure. A test that passes on an affected version
fails, unless the deviation is a race: the record has to be removed. A failure with another message
remains a failure.

A device may consist of some parts of an implementation: of QEMU, `virtio-pci` in front of
`virtio-blk`, or `vhost-user-blk-pci` in front of a back-end that is not QEMU. A record with a part
applies only to a device that has this part.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from harness.inputs import (
    Check,
    InputError,
    MissingFileError,
    WrongValueError,
    build,
    line_in_toml,
    read_text,
    toml_of,
)

Version = tuple[int, ...]

_WILDCARD = re.compile(r"[*?[]")

_COMPARISONS: dict[str, Callable[[Version, Version], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    ">": operator.gt,
    "<": operator.lt,
}


class DeviationFileError(Exception):
    """Error of a bad deviations file. The message is one line with the place."""


def _holds(parse: Callable[[str], object]) -> Callable[[str], bool]:
    """Return a check that is true for a text that can be parsed."""

    def holds(text: str) -> bool:
        try:
            parse(text)
        except (ValueError, re.error, RecursionError, OverflowError):
            return False
        return True

    return holds


def _bounds(text: str) -> list[tuple[Callable[[Version, Version], bool], Version]]:
    bounds = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(>=|<=|==|>|<)\s*(\d{1,9}(?:\.\d{1,9})*)\s*", part)
        if match is None:
            raise ValueError(f"{part!r} is not a comparison with a version; an example is >=7.2")
        bounds.append((_COMPARISONS[match[1]], tuple(map(int, match[2].split(".")))))
    return bounds


Versions = Annotated[str, Check("comparisons with a version, like >=7.2, <9", _holds(_bounds))]
Expression = Annotated[str, Check("a regular expression", _holds(re.compile))]


@dataclass(frozen=True)
class Deviation:
    """One recorded deviation.

    `implementation` is the file's name; the module describes the other fields.
    """

    implementation: str
    clause: str
    tests: tuple[str, ...]
    versions: Versions
    seen: Expression
    why: str
    targets: tuple[str, ...] = ("*",)
    except_targets: tuple[str, ...] = ()
    sometimes: bool = False
    part: str = ""

    def affects(
        self,
        implementation: str,
        version: Version,
        target: str,
        parts: Collection[str] = (),
        alike: str = "",
    ) -> bool:
        """Return True if this version of this implementation deviates on this target.

        `parts` are the parts of the implementation that the device consists of; none means all.
        `alike` is another name by which the patterns of the record may mean this target.
        """
        return (
            implementation == self.implementation
            and (not self.part or not parts or self.part in parts)
            and _any_matches((target, alike), self.targets)
            and not _any_matches((target, alike), self.except_targets)
            and all(
                compare(version[: len(bound)], bound) for compare, bound in _bounds(self.versions)
            )
        )

    def covers(self, node: str) -> bool:
        """Return True if a test's node id, relative to the tests' folder, matches a pattern."""
        return any(_matches(_literal(node), _literal(pattern)) for pattern in self.tests)

    def explains(self, message: str) -> bool:
        """Return True if a failure's message matches the record."""
        return re.search(self.seen, message) is not None


@cache
def load(path: Path) -> tuple[Deviation, ...]:
    """Return the deviations in a file, none if there is no such file. Raise DeviationFileError."""
    try:
        text = read_text(path)
        document = toml_of(path, text)
    except MissingFileError:
        return ()
    except InputError as error:
        raise DeviationFileError(str(error)) from None
    try:
        return _deviations(document, path.stem)
    except WrongValueError as error:
        raise DeviationFileError(f"{path}:{line_in_toml(text, error.at)}: {error}") from None


@cache
def load_for(path: Path, name: str) -> tuple[Deviation, ...]:
    """Return the deviations in a file that can cover tests of the file `name`; see `load`."""
    return tuple(
        deviation
        for deviation in load(path)
        if any(_matches(name, pattern.partition("::")[0]) for pattern in deviation.tests)
    )


def _deviations(document: dict[str, Any], implementation: str) -> tuple[Deviation, ...]:
    tables = build(list[dict[str, Any]], document.pop("deviation", []), ("deviation",))
    for key in document:
        raise WrongValueError((key,), "only [[deviation]] tables are known here")
    for number, table in enumerate(tables):
        if "implementation" in table:
            raise WrongValueError(("deviation", number, "implementation"), "it is the file's name")
    return tuple(
        build(Deviation, {**table, "implementation": implementation}, ("deviation", number))
        for number, table in enumerate(tables)
    )


def _any_matches(names: Iterable[str], patterns: Iterable[str]) -> bool:
    """Return True if one of the names matches one of the patterns."""
    return any(fnmatchcase(name, pattern) for pattern in patterns for name in names)


def _matches(text: str, pattern: str) -> bool:
    """Return what fnmatchcase does; most patterns are decided without its regular expression."""
    wildcard = _WILDCARD.search(pattern)
    if wildcard is None:
        return text == pattern
    return text.startswith(pattern[: wildcard.start()]) and fnmatchcase(text, pattern)


def _literal(node: str) -> str:
    """Return a node id whose brackets have no special meaning: they contain parameters."""
    return node.replace("[", "(").replace("]", ")")
