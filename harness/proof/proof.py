"""Proof that the suite detects what it checks: on each defect a test of its statements fails.

    python -m harness.proof.proof SUITE DIRECTORY [--write FILE]

takes the results of `prover` for the defects (a file each in DIRECTORY) and makes one page from
them: statement, defect, tests that fail, and the tests that fail on no defect. The exit status is 1
if one of these has no recorded reason.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from harness.defects.catalogue import defects
from harness.inputs import (
    InputError,
    MissingFileError,
    WrongValueError,
    build,
    json_of,
    read_text,
)
from harness.outputs import replace_text
from harness.report.deviations import load as load_deviations
from harness.report.results import bare_name
from harness.virtio.catalogue import clauses, section_order

REASONS = Path(__file__).with_name("unproven.toml")
COLLECTION_DEADLINE = 60.0

PER_MODULE = 2
"""Number of tests of each module that run in addition to those of a defect's statements."""

BESIDE = 10.0
"""Seconds after which no more of these tests begin, because a defective device may be slow."""


class ProofError(Exception):
    """Error of a suite that did not run on a defective device, or left no results; one line."""


@dataclass(frozen=True)
class Proof:
    """Results of the suite on a defect: the number of tests, and ids of tests without parameters.

    `keyed` are failed tests of the defect's statements, `red` all failed tests. Of the tests of
    other statements, `others` were not skipped, and `elsewhere` failed or had an error.
    """

    defect: str
    ran: int
    others: int
    keyed: tuple[str, ...]
    red: tuple[str, ...]
    elsewhere: tuple[str, ...]


def save(directory: Path, proof: Proof) -> None:
    """Write a proof to a directory, for the page."""
    directory.mkdir(parents=True, exist_ok=True)
    replace_text(directory / f"{proof.defect}.json", json.dumps(asdict(proof)))


def saved(directory: Path) -> list[Proof]:
    """Return the proofs in a directory, in the order of the defects.

    Raise ProofError if one is missing.
    """
    proofs = []
    for name in defects():
        try:
            path = directory / f"{name}.json"
            proofs.append(build(Proof, json_of(path, read_text(path))))
        except MissingFileError:
            raise ProofError(f"{directory} has no proof for {name}: run tox -e proof") from None
        except (InputError, WrongValueError) as error:
            raise ProofError(f"the proof for {name} is damaged: {error}") from None
    return proofs


def all_tests(suite: Path) -> list[str]:
    """Return the ids without parameters of the suite's tests, as collected by pytest."""
    listed = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", str(suite), "-q", "--collect-only"),
            *("-p", "no:cacheprovider", "--vblk-target", "qtest-pci"),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=COLLECTION_DEADLINE,
    ).stdout
    return list(dict.fromkeys(bare_name(line) for line in listed.splitlines() if "::" in line))


def unproven(proofs: Iterable[Proof], tests: Iterable[str], suite: Path) -> list[str]:
    """Return the tests that have failed on no defect and on no real device."""
    red = {name for proof in proofs for name in proof.red}
    for path in sorted((suite / "deviations").glob("*.toml")):
        for deviation in load_deviations(path):
            red |= {pattern.partition("[")[0].rstrip("*") for pattern in deviation.tests}
    return [name for name in tests if name not in red]


def reasons() -> dict[str, str]:
    """Return test -> reason why it fails on no defect."""
    return tomllib.loads(REASONS.read_text(encoding="utf-8"))


def page(proofs: Sequence[Proof], tests: Iterable[str], suite: Path) -> str:
    """Return the page in Markdown."""
    tests = list(tests)
    by_statement: defaultdict[str, list[Proof]] = defaultdict(list)
    for proof in proofs:
        for name in defects()[proof.defect].statements:
            by_statement[name].append(proof)
    without = unproven(proofs, tests, suite)
    why = reasons()
    broken = [proof for proof in proofs if defects()[proof.defect].statements]
    elsewhere = [proof for proof in broken if proof.elsewhere]
    others = sum(proof.others for proof in broken)
    lines = [
        "# What turns each check red",
        "",
        f"{len(proofs)} defects, {len(by_statement)} statements, {len(tests)} tests;"
        f" {len(without)} tests that nothing turns red. Made by `tox -e proof`; a defect is"
        " planted with `--target TARGET --defect NAME`.",
        "",
        "On a device with a defect run the tests of the statements that it breaks: one of them has"
        f" to turn red. Beside them run {PER_MODULE} tests of each module that are about other"
        " statements, drawn by the names of defect and test, up to the first that turns red or"
        f" for {BESIDE:g} seconds: {others} in all, but for skips."
        f" **{len(broken) - len(elsewhere)} of {len(broken)} defects turn only their own"
        " statements' tests red**, of the tests that ran; the others are"
        " [below](#red-elsewhere-too).",
        "",
        "| statement | defect | on | tests that turn red |",
        "| --- | --- | --- | --- |",
    ]
    for name in sorted(by_statement, key=_order):
        for proof in by_statement[name]:
            defect = defects()[proof.defect]
            red = "<br>".join(f"`{test.partition('::')[2]}`" for test in proof.keyed)
            lines.append(f"| {name} | `{defect.name}`: {defect.text} | `{defect.target}` | {red} |")
    lines += ["", "## Harmless: nothing turns red", ""]
    for proof in proofs:
        defect = defects()[proof.defect]
        if not defect.statements:
            lines.append(
                f"- `{defect.name}` on `{defect.target}`, {proof.ran} tests: {defect.text}"
            )
    lines += ["", "## Red elsewhere, too", ""]
    for proof in elsewhere:
        names = ", ".join(f"`{name}`" for name in proof.elsewhere)
        lines.append(f"- `{proof.defect}`: {names}")
    if not elsewhere:
        lines.append("None.")
    lines += ["", "## Tests that no defect turns red", ""]
    lines += [f"- `{name}`: {why.get(name, '**no reason on record**')}" for name in without]
    if not without:
        lines.append("None.")
    return "\n".join(lines) + "\n"


def _order(name: str) -> tuple[list[int], str]:
    return section_order(clauses()[name].section), name


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m harness.proof.proof")
    parser.add_argument("suite", type=Path, help="directory of the conformance suite")
    parser.add_argument("directory", type=Path, help="directory with the results of `tox -e proof`")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the page to FILE")
    asked = parser.parse_args()
    try:
        proofs = saved(asked.directory)
    except ProofError as error:
        print(f"proof: {error}", file=sys.stderr)
        return 2
    tests = all_tests(asked.suite)
    if asked.write:
        replace_text(asked.write, page(proofs, tests, asked.suite))
    without = unproven(proofs, tests, asked.suite)
    unexplained = [name for name in without if name not in reasons()]
    stale = [name for name in reasons() if name not in without]
    print(f"{len(proofs)} defects, {len(tests)} tests, {len(without)} that nothing turns red")
    print(f"{sum(bool(proof.elsewhere) for proof in proofs)} defects turn others red, too")
    for name in unexplained:
        print(f"no defect turns this test red, and {REASONS.name} has no reason: {name}")
    for name in stale:
        print(f"{REASONS.name} has a reason for a test that does not need one: {name}")
    return 1 if unexplained or stale else 0


if __name__ == "__main__":
    sys.exit(main())
