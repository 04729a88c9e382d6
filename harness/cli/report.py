"""`vblk report`: the findings of a run as Markdown, a file for each, for a bug tracker."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from harness.cli.errors import UsageError
from harness.inputs import printable
from harness.outputs import check_directory, reason, replace_text

if TYPE_CHECKING:
    Subparsers: TypeAlias = argparse._SubParsersAction[argparse.ArgumentParser]

EXAMPLES = """\
A finding is the failures of a target with the same probable cause. Each file has the statement with
a link to its section, the versions, what was expected and seen, the command that repeats it, the
requests and the evidence. Files that exist are not overwritten.

examples:
  pytest conformance --target qtest-pci --matrix results.json
  vblk report results.json --output findings
  vblk report results.json --output findings --target qtest-pci --known
  vblk report results.json --output findings --for qemu

exit status: 0 if the files were written, or there was nothing to write; 2 for an error.
"""


def add_parser(commands: Subparsers) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "report",
        help="write the findings of a run as Markdown for a bug tracker",
        description="Write the findings in a results file as Markdown, a file for each.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", metavar="RESULTS.json", type=Path)
    parser.add_argument(
        "-o", "--output", required=True, metavar="DIR", type=Path, help="directory for the files"
    )
    parser.add_argument("--target", metavar="NAME", help="only the findings of this target")
    parser.add_argument(
        "--for",
        dest="implementation",
        metavar="IMPLEMENTATION",
        help="only findings about devices that this implementation is a part of, such as qemu",
    )
    parser.add_argument(
        "--known", action="store_true", help="also the recorded deviations that have occurred"
    )
    parser.set_defaults(run=report)


def report(arguments: argparse.Namespace) -> int:
    """Write the files, and print their names with the number of tests and the title."""
    from harness.report.findings import file_names, findings, markdown
    from harness.report.results import ResultsError, load

    try:
        results = load(arguments.file)
    except ResultsError as error:
        raise UsageError(str(error)) from None
    names = [column.name for column in results.columns]
    wanted: str | None = arguments.target
    if wanted is not None and wanted not in names:
        raise UsageError(f"{arguments.file} has no target {wanted!r}; it has: {', '.join(names)}")
    implementations = sorted(
        {name for column in results.columns for name in column.implementations}
    )
    maintained: str | None = arguments.implementation
    if maintained is not None and maintained not in implementations:
        known = ", ".join(implementations) or "none"
        raise UsageError(f"{arguments.file} has no implementation {maintained!r}; it has: {known}")
    found = [
        finding
        for finding in findings(results, arguments.known)
        if wanted in (None, finding.column.name)
        and (maintained is None or maintained in finding.column.implementations)
    ]
    if not found:
        print("no findings")
        return 0
    output: Path = arguments.output
    files = [(output / name, finding) for name, finding in file_names(found)]
    if taken := [path for path, _ in files if os.path.lexists(path)]:
        raise UsageError(f"{taken[0]} exists; name another directory with --output")
    try:
        check_directory(output)
        for path, finding in files:
            replace_text(path, markdown(results, finding))
            count = len(finding.tests)
            tests = "1 test" if count == 1 else f"{count} tests"
            print(printable(f"{path}  {tests}: {finding.title}"))
    except OSError as error:
        raise UsageError(f"{output} cannot be written: {reason(error)}") from None
    return 0
