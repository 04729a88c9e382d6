"""`vblk export`: a reproducer of a failed test that runs without this project."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from harness.cli.errors import UsageError
from harness.inputs import InputError, printable_lines
from harness.outputs import reason, replace_text

if TYPE_CHECKING:
    from harness.witness.events import Event

    Subparsers: TypeAlias = argparse._SubParsersAction[argparse.ArgumentParser]

EXAMPLES = """\
A trace is the file trace.jsonl that a failed test leaves with --artifacts DIR, or that
`vblk replay --trace FILE` writes. The reproducer is run before it is written. It is written only if
it shows the same as the test. A file that exists is not overwritten.

  qtest   a shell script for QEMU, through qtest (targets qtest-...)
  c       a C program for QEMU that calls the functions of QEMU's libqtest (targets qtest-...)
  python  a script of Python's standard library for qemu-storage-daemon (target vhost-user), or for
          a vhost-user back-end that runs already (vhost-user:PATH): needs --destructive

examples:
  pytest conformance --target qtest-pci --artifacts failures
  vblk export failures/qtest-pci/TEST/trace.jsonl --as qtest --output defect.sh

exit status: 0 if it was reproduced and written, 1 if it was not reproduced, 2 for an error.
"""


def add_parser(commands: Subparsers) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "export",
        help="write a reproducer of a failed test that runs without this project",
        description="Write a reproducer of a failed test that runs without this project.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("trace", metavar="TRACE", type=Path)
    parser.add_argument(
        "--as",
        dest="form",
        required=True,
        choices=("qtest", "c", "python"),
        help="form of the script",
    )
    parser.add_argument(
        "-o", "--output", metavar="FILE", type=Path, help="file to write (default: standard output)"
    )
    parser.add_argument(
        "--device",
        metavar="PATH",
        help="QEMU or qemu-storage-daemon to reproduce with (default: the one on PATH), or the"
        " socket of a back-end that runs already",
    )
    parser.add_argument(
        "--destructive",
        action="store_true",
        help="the reproducer may write to the disk of a back-end that runs already",
    )
    parser.set_defaults(run=export)


def export(arguments: argparse.Namespace) -> int:
    """Make the reproducer, run it, and write it if it shows the same."""
    from harness.reproducers import NotPossibleError
    from harness.reproducers.run import FORMS, run, text_of
    from harness.reproducers.vhost_user import starts_the_device
    from harness.witness.events import read

    output: Path | None = arguments.output
    form: str = arguments.form
    if output is not None and (output.exists() or output.is_symlink()):
        raise UsageError(f"{output} exists; name another file with --output")
    name = output.name if output else f"reproducer{FORMS[form].suffix}"
    try:
        events = read(arguments.trace)
        text = text_of(events, form, name)
    except InputError as error:
        raise UsageError(str(error)) from None
    except NotPossibleError as error:
        raise UsageError(f"{arguments.trace}: {error}") from None
    device: str | None = arguments.device
    if form == "python" and not starts_the_device(events):
        device = _socket(device, events[0], arguments.destructive)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / name
        path.write_text(text, encoding="utf-8")
        try:
            outcome = run(path, form, device)
        except NotPossibleError as error:
            raise UsageError(f"{error}, and not written") from None
    seen = printable_lines(outcome.output.rstrip())
    if not outcome.reproduced:
        print(f"vblk: not reproduced, and not written\n{seen}", file=sys.stderr)
        return 1
    if output is None:
        print(text, end="")
        return 0
    try:
        replace_text(output, text)
        output.chmod(0o755)
    except OSError as error:
        raise UsageError(f"{output} cannot be written: {reason(error)}") from None
    print(f"{seen}\n{output}")
    return 0


def _socket(named: str | None, about: Event, destructive: bool) -> str:
    """Return the socket of a back-end that runs already. UsageError if it must not be used."""
    path = named or str(getattr(about, "target", "")).partition("vhost-user:")[2]
    if not path:
        raise UsageError("name the socket of the back-end with --device")
    if not destructive:
        raise UsageError(
            f"the reproducer writes to the disk of the back-end on {path}, as the test did:"
            " allow it with --destructive"
        )
    return path
