"""`vblk matrix`: merge and compare the results of runs, and make tables from them."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from harness.cli.errors import UsageError
from harness.outputs import replace_text

if TYPE_CHECKING:
    from harness.report.results import Results

    Subparsers: TypeAlias = argparse._SubParsersAction[argparse.ArgumentParser]

MERGE = """\
The columns of the result are targets; the same target with other versions is another column. If a
test ran more than once on a target, its worst result counts.

examples:
  pytest conformance --target qtest-pci --matrix a.json
  pytest conformance --target vhost-user --matrix b.json
  vblk matrix merge a.json b.json --output all.html
  vblk matrix merge a.json --output a.html       a page of one run's results
"""
DIFF = """\
exit status: 0 if nothing is worse; 1 if a statement is no longer kept, or no longer tested;
2 if a file cannot be read.
"""
FLAKY = """\
exit status: 0 if every test has the same verdict on a target in all files; 1 if one has not;
2 if a file cannot be read.

examples:
  vblk matrix flaky reports/alarms/run-*.json
"""
COUNTS = """\
Run it in a checkout. Results that are given replace those in docs/coverage.json; a column is a
target with its version. The tables in docs/coverage.md and README.md are made in any case.

examples:
  vblk matrix counts                             after a change of the suite or the catalogue
  vblk matrix counts old-qemu.json new-qemu.json
  vblk matrix counts --check                     print what is out of date, and change nothing
"""
HARDENING = """\
examples:
  pytest conformance --level hardening --target qtest-pci --matrix a.json
  vblk matrix hardening a.json                   Markdown, with a line for each case with a bad fate

In a checkout, --docs makes the tables of docs/hardening.md. Results that are given replace those in
docs/hardening.json.

  vblk matrix hardening --docs old-qemu.json new-qemu.json
  vblk matrix hardening --check                  print if they are out of date; change nothing
"""


def add_parser(commands: Subparsers) -> None:
    """Add the command and its subcommands."""
    parser = commands.add_parser(
        "matrix",
        help="merge, compare and count the results of runs",
        description="Merge, compare and count results that pytest --matrix FILE.json has written.",
    )
    parts = parser.add_subparsers(metavar="merge|diff|flaky|counts|hardening", required=True)
    part = _part(parts, "merge", "merge results of several runs to one page, or one file", MERGE)
    part.add_argument("files", nargs="+", metavar="FILE.json", type=Path)
    part.add_argument(
        "-o",
        "--output",
        action="append",
        required=True,
        metavar="FILE",
        type=_output,
        help="FILE.html (a page) or FILE.json (data); repeatable",
    )
    part.set_defaults(run=merge)
    part = _part(parts, "diff", "show what is better and what is worse, target by target", DIFF)
    part.add_argument("old", metavar="OLD.json", type=Path)
    part.add_argument("new", metavar="NEW.json", type=Path)
    part.set_defaults(run=diff)
    part = _part(parts, "flaky", "show tests whose verdict is not the same in all runs", FLAKY)
    part.add_argument("files", nargs="+", metavar="FILE.json", type=Path)
    part.set_defaults(run=flaky)
    # The old name, without a line in the help.
    parts.add_parser("steady", parents=[part], add_help=False)
    part = _part(parts, "counts", "make the tables of docs/coverage.md and README.md", COUNTS)
    part.add_argument("files", nargs="*", metavar="FILE.json", type=Path)
    part.add_argument("--check", action="store_true", help="only print what is out of date")
    part.set_defaults(run=counts)
    part = _part(
        parts, "hardening", "make tables of the fates of devices in hardening tests", HARDENING
    )
    part.add_argument("files", nargs="*", metavar="FILE.json", type=Path)
    part.add_argument("--docs", action="store_true", help="write them to docs/hardening.md")
    part.add_argument(
        "--check", action="store_true", help="only print whether docs/hardening.md is out of date"
    )
    part.set_defaults(run=hardening)


def _part(parts: Subparsers, name: str, text: str, epilog: str) -> argparse.ArgumentParser:
    return parts.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _output(text: str) -> Path:
    from harness.report.files import report_file

    return report_file(text)


def merge(arguments: argparse.Namespace) -> int:
    """Write the merged results of several files to one file."""
    from harness.report.files import complaint, write
    from harness.report.merge import merged

    results = merged(map(_load, arguments.files))
    complaints = [complaint(path, partial(write, path, results)) for path in arguments.output]
    for line in filter(None, complaints):
        print(f"vblk: {line}", file=sys.stderr)
    return 2 if any(complaints) else 0


def diff(arguments: argparse.Namespace) -> int:
    """Print the changes; return 1 if something is worse or no longer tested."""
    from harness.report.compare import difference, lines

    changes = difference(_load(arguments.old), _load(arguments.new))
    for line in lines(changes):
        print(line)
    return 1 if changes.regressed else 0


def flaky(arguments: argparse.Namespace) -> int:
    """Print the flaky results; return 1 if there are any."""
    from harness.report.flaky import flaky_results, lines

    runs = [_load(path) for path in arguments.files]
    results = flaky_results(runs)
    for line in lines(runs, results):
        print(line)
    return 1 if results else 0


def counts(arguments: argparse.Namespace) -> int:
    """Make the tables, from the given results or the stored ones.

    Return 1 if --check finds that they are out of date.
    """
    from harness.report import coverage

    root = Path()
    try:
        if arguments.check:
            old = coverage.stale(root)
            for path in old:
                print(f"{path} is out of date; {coverage.MAKE} makes its tables")
            return 1 if old else 0
        if arguments.files:
            coverage.keep(root, map(_load, arguments.files))
        for path, text in coverage.made(root).items():
            replace_text(path, text)
    except (coverage.CoverageError, OSError) as error:
        raise UsageError(str(error)) from None
    return 0


def hardening(arguments: argparse.Namespace) -> int:
    """Print the tables, or write them to the docs; return 1 if --check finds them out of date."""
    from harness.report import hardened_docs
    from harness.report.coverage import CoverageError
    from harness.report.hardened_table import tables
    from harness.report.merge import merged

    root = Path()
    if not (arguments.files or arguments.docs or arguments.check):
        raise UsageError("name a file of results, or use --docs or --check")
    parts = [_load(path) for path in arguments.files]
    try:
        if arguments.check:
            if old := hardened_docs.stale(root):
                print(f"{hardened_docs.PAGE} is out of date; {hardened_docs.MAKE} makes its tables")
            return int(old)
        if not arguments.docs:
            print("\n".join(tables(merged(parts))))
            return 0
        if parts:
            hardened_docs.keep(root, parts)
        replace_text(root / hardened_docs.PAGE, hardened_docs.made(root))
    except (CoverageError, OSError) as error:
        raise UsageError(str(error)) from None
    return 0


def _load(path: Path) -> Results:
    from harness.report.results import ResultsError, load

    try:
        return load(path)
    except ResultsError as error:
        raise UsageError(str(error)) from None
