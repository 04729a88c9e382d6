"""`vblk matrix`: what runs of the suite have found, put together and compared."""

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
Columns of the result are targets; the same target on other versions is another column. Where a
test ran more than once on one, the worst result counts.

examples:
  pytest conformance --target qtest-pci --matrix a.json
  pytest conformance --target vhost-user --matrix b.json
  vblk matrix merge a.json b.json --output all.html
  vblk matrix merge a.json --output a.html       a page of one run's results
"""
DIFF = """\
exit status: 0 if nothing got worse; 1 if a statement is kept no longer, or tested no longer;
2 if a file cannot be read.
"""
STEADY = """\
exit status: 0 if every test has one verdict on a target in all files; 1 if one has not;
2 if a file cannot be read.

examples:
  vblk matrix steady reports/alarms/run-*.json
"""
COUNTS = """\
Run it in a checkout. With results, they take the place of those in docs/coverage.json; a column is
a target on a version. The tables in docs/coverage.md and README.md are made anew in any case.

examples:
  vblk matrix counts                             after a change of the suite or the catalogue
  vblk matrix counts old-qemu.json new-qemu.json
  vblk matrix counts --check                     says what is not current, and changes nothing
"""
HARDENING = """\
examples:
  pytest conformance --level hardening --target qtest-pci --matrix a.json
  vblk matrix hardening a.json                   Markdown, with a line for each case that was lost

In a checkout, --docs makes the tables of docs/hardening.md anew. With results, those take the place
of what is in docs/hardening.json.

  vblk matrix hardening --docs old-qemu.json new-qemu.json
  vblk matrix hardening --check                  says if they are not current, and changes nothing
"""


def add_parser(commands: Subparsers) -> None:
    """The command, with those of its own."""
    parser = commands.add_parser(
        "matrix",
        help="results of runs: put together as a page, compared, counted",
        description="What pytest --matrix FILE.json has written, put together, compared, counted.",
    )
    parts = parser.add_subparsers(metavar="merge|diff|steady|counts|hardening", required=True)
    one = _part(parts, "merge", "results of several runs as one page, or one file", MERGE)
    one.add_argument("files", nargs="+", metavar="FILE.json", type=Path)
    one.add_argument(
        "-o",
        "--output",
        action="append",
        required=True,
        metavar="FILE",
        type=_output,
        help="FILE.html, a page, or FILE.json; repeatable",
    )
    one.set_defaults(run=merge)
    one = _part(parts, "diff", "what got better and what got worse, target by target", DIFF)
    one.add_argument("old", metavar="OLD.json", type=Path)
    one.add_argument("new", metavar="NEW.json", type=Path)
    one.set_defaults(run=diff)
    one = _part(parts, "steady", "which tests do not have the same verdict in all runs", STEADY)
    one.add_argument("files", nargs="+", metavar="FILE.json", type=Path)
    one.set_defaults(run=steady)
    one = _part(parts, "counts", "the tables of docs/coverage.md and README.md", COUNTS)
    one.add_argument("files", nargs="*", metavar="FILE.json", type=Path)
    one.add_argument("--check", action="store_true", help="only say what is not current")
    one.set_defaults(run=counts)
    one = _part(parts, "hardening", "tables of what became of mistreated devices", HARDENING)
    one.add_argument("files", nargs="*", metavar="FILE.json", type=Path)
    one.add_argument("--docs", action="store_true", help="into docs/hardening.md")
    one.add_argument("--check", action="store_true", help="only say if that is not current")
    one.set_defaults(run=hardening)


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
    """Write what several files have into one."""
    from harness.report.files import complaint, write
    from harness.report.merge import merged

    results = merged(map(_load, arguments.files))
    complaints = [complaint(path, partial(write, path, results)) for path in arguments.output]
    for line in filter(None, complaints):
        print(f"vblk: {line}", file=sys.stderr)
    return 2 if any(complaints) else 0


def diff(arguments: argparse.Namespace) -> int:
    """Print what changed; 1 if something is worse or no longer tested."""
    from harness.report.compare import difference, lines

    found = difference(_load(arguments.old), _load(arguments.new))
    for line in lines(found):
        print(line)
    return 1 if found.regressed else 0


def steady(arguments: argparse.Namespace) -> int:
    """Print what wavers; 1 if anything does."""
    from harness.report.flaky import flaky_results, lines

    runs = [_load(path) for path in arguments.files]
    found = flaky_results(runs)
    for line in lines(runs, found):
        print(line)
    return 1 if found else 0


def counts(arguments: argparse.Namespace) -> int:
    """Make the tables, of these results or those before; 1 if --check finds them not current."""
    from harness.report import coverage

    root = Path()
    try:
        if arguments.check:
            old = coverage.stale(root)
            for path in old:
                print(f"{path} is not current: {coverage.MAKE} makes its tables")
            return 1 if old else 0
        if arguments.files:
            coverage.keep(root, map(_load, arguments.files))
        for path, text in coverage.made(root).items():
            replace_text(path, text)
    except (coverage.CoverageError, OSError) as error:
        raise UsageError(str(error)) from None
    return 0


def hardening(arguments: argparse.Namespace) -> int:
    """Print the tables, or put them into the docs; 1 if --check finds those not current."""
    from harness.report import hardened_docs
    from harness.report.coverage import CoverageError
    from harness.report.hardened_table import tables
    from harness.report.merge import merged

    root = Path()
    if not (arguments.files or arguments.docs or arguments.check):
        raise UsageError("there are no results; or --docs, or --check")
    parts = [_load(path) for path in arguments.files]
    try:
        if arguments.check:
            if old := hardened_docs.stale(root):
                print(f"{hardened_docs.PAGE} is not current: {hardened_docs.MAKE} makes its tables")
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
