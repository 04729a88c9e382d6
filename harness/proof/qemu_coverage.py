"""Lines and branches of QEMU's virtio devices that the suite executes, from gcov's counters.

    python -m harness.proof.qemu_coverage DIR

reads what QEMUs built by `.ci/qemu-gcov` have counted in DIR/build, and prints a table and the
functions with lines that were not executed. With `--lines` it prints each of these lines; with
`--write PAGE` it puts the tables into the page.

`qemu_coverage.toml` names the functions that serve other devices than a block device of QEMU's
own, which are left out, and says why the rest that is not executed is not.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from harness.outputs import replace_text
from harness.report.coverage import CoverageError, replaced

REASONS = Path(__file__).with_name("qemu_coverage.toml")
MAKE = "tox -e coverage-qemu"
DEADLINE = 60.0
"""Seconds that gcov may take for a file."""


@dataclass
class Function:
    """Counters of a function: the lines, and for each branch if it was taken."""

    name: str
    lines: dict[int, bool] = field(default_factory=dict)
    branches: list[bool] = field(default_factory=list)

    @property
    def missed(self) -> list[int]:
        """The numbers of the lines that were not executed."""
        return sorted(number for number, executed in self.lines.items() if not executed)


@dataclass(frozen=True)
class Source:
    """A source file: its functions, the percentages aimed at, and the functions left out."""

    path: str
    goal: tuple[int, int]
    functions: Sequence[Function]
    left_out: Sequence[Function]
    reasons: Mapping[str, str]

    def lines(self) -> tuple[int, int]:
        """Return how many lines were executed, and how many there are."""
        every = [executed for function in self.functions for executed in function.lines.values()]
        return sum(every), len(every)

    def branches(self) -> tuple[int, int]:
        """Return how many branches were taken, and how many there are."""
        every = [taken for function in self.functions for taken in function.branches]
        return sum(every), len(every)

    def reason(self, function: str) -> str:
        """Return why lines of a function are not executed; empty if nothing is said."""
        return next((why for name, why in self.reasons.items() if fnmatchcase(function, name)), "")


def functions(document: Mapping[str, Any], path: str) -> list[Function]:
    """Return the functions of a file in gcov's JSON, in the order of their lines.

    CoverageError if gcov says nothing about the file.
    """
    found: dict[str, Function] = {}
    for file in document["files"]:
        if not file["file"].endswith(path):
            continue
        for line in file["lines"]:
            name = line.get("function_name", "")
            function = found.setdefault(name, Function(name))
            number = line["line_number"]
            function.lines[number] = function.lines.get(number, False) or line["count"] > 0
            function.branches += [branch["count"] > 0 for branch in line["branches"]]
    if not found:
        raise CoverageError(f"gcov says nothing about {path}")
    return sorted(found.values(), key=lambda function: min(function.lines))


def counted(build: Path, path: str) -> Mapping[str, Any]:
    """Return what gcov says about a source file. CoverageError if there are no counters."""
    name = f"{path.replace('/', '_')}.gcda"
    counters = sorted(build.rglob(name))
    if len(counters) != 1:
        raise CoverageError(f"{len(counters)} files {name} in {build}: run the suite on this QEMU")
    done = subprocess.run(
        ["gcov", "--json-format", "--branch-probabilities", "--stdout", counters[0]],
        capture_output=True,
        cwd=build,
        timeout=DEADLINE,
        check=False,
    )
    if done.returncode:
        raise CoverageError(f"gcov failed: {done.stderr.decode(errors='replace').strip()}")
    document: Mapping[str, Any] = json.loads(done.stdout)
    return document


def sources(build: Path) -> list[Source]:
    """Return the files of `qemu_coverage.toml` with the counters in a build directory.

    CoverageError if a name there fits no function.
    """
    result = []
    for path, table in tomllib.loads(REASONS.read_text(encoding="utf-8")).items():
        every = functions(counted(build, path), path)
        others: list[str] = table["others"]
        reasons: dict[str, str] = table["reasons"]
        for pattern in [*others, *reasons]:
            if not any(fnmatchcase(function.name, pattern) for function in every):
                raise CoverageError(f"{REASONS.name}: {path} has no function {pattern}")
        left_out = [
            function
            for function in every
            if any(fnmatchcase(function.name, pattern) for pattern in others)
        ]
        kept = [function for function in every if function not in left_out]
        goal: tuple[int, int] = tuple(table["goal"])
        result.append(Source(path, goal, kept, left_out, reasons))
    return result


def _share(counts: tuple[int, int]) -> str:
    done, every = counts
    return f"{done} of {every} ({100 * done / every:.1f} %)"


def figures(files: Iterable[Source]) -> list[str]:
    """Return the table of percentages."""
    return [
        "| file | lines | aim | branches | aim | functions left out |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        *(
            f"| `{file.path}` | {_share(file.lines())} | {file.goal[0]} % |"
            f" {_share(file.branches())} | {file.goal[1]} % | {len(file.left_out)} |"
            for file in files
        ),
    ]


def remainder(files: Iterable[Source]) -> list[str]:
    """Return the table of functions with lines that were not executed, by reason."""
    rows = ["| file | lines | functions | why |", "| --- | ---: | --- | --- |"]
    for file in files:
        groups: dict[str, list[Function]] = defaultdict(list)
        for function in file.functions:
            if function.missed:
                groups[file.reason(function.name)].append(function)
        for why, group in sorted(groups.items()):
            names = ", ".join(f"`{function.name}`" for function in group)
            missed = sum(len(function.missed) for function in group)
            rows.append(
                f"| `{Path(file.path).name}` | {missed} | {names} | {why or '(not read)'} |"
            )
    return rows


def main(arguments: Sequence[str]) -> int:
    """Print the tables, or write them into a page."""
    parser = argparse.ArgumentParser(prog="qemu_coverage", description=__doc__.split("\n")[0])
    parser.add_argument("directory", type=Path, help="what .ci/qemu-gcov has made")
    parser.add_argument("--lines", action="store_true", help="print each line not executed")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the tables into this page")
    options = parser.parse_args(arguments)
    try:
        files = sources(options.directory / "build")
        if options.write:
            text = options.write.read_text(encoding="utf-8")
            for part, rows in (("figures", figures(files)), ("remainder", remainder(files))):
                text = replaced(options.write, text, part, rows, MAKE)
            replace_text(options.write, text)
    except (CoverageError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print("\n".join([*figures(files), "", *remainder(files)]))
    if options.lines:
        for file in files:
            for function in file.functions:
                for number in function.missed:
                    print(f"{file.path}:{number}: {function.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
