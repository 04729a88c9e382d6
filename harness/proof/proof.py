"""The proof that the suite sees what it says it checks: run on each defect, it turns red.

    python -m harness.proof.proof SUITE DIRECTORY [--write FILE]

takes what `prover` found for the defects (a file each in DIRECTORY) and makes
one page of it: statement, defect, tests that turn red, and the tests that no
defect turns red. Its exit status is 1 if one of these has no reason on record.
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
    text_of,
)
from harness.outputs import replace_text
from harness.report.deviations import load as load_deviations
from harness.report.results import bare_name
from harness.virtio.catalogue import clauses, section_order

REASONS = Path(__file__).with_name("unproven.toml")
COLLECTION_DEADLINE = 60.0

PER_MODULE = 2
"""Tests of each module that run beside those of a defect's statements."""

BESIDE = 10.0
"""Seconds after which no more of these begin: a device with a defect may be slow to come and go."""


class ProofError(Exception):
    """The suite did not run on a device with a defect, or nothing is kept of it; one line."""


@dataclass(frozen=True)
class Proof:
    """What the suite made of a defect: how many tests ran, and the ids of some, without parameters.

    `keyed` are those about one of its statements that turned red, `red` all that
    did. Of the tests that are about none of its statements, `others` did not
    skip, and `elsewhere` turned red or came to no verdict.
    """

    defect: str
    ran: int
    others: int
    keyed: tuple[str, ...]
    red: tuple[str, ...]
    elsewhere: tuple[str, ...]


def save(directory: Path, proof: Proof) -> None:
    """Keep a proof in a directory, for the page."""
    directory.mkdir(parents=True, exist_ok=True)
    replace_text(directory / f"{proof.defect}.json", json.dumps(asdict(proof)))


def saved(directory: Path) -> list[Proof]:
    """The proofs in a directory, in the order of the defects. ProofError if one is missing."""
    proofs = []
    for name in defects():
        try:
            path = directory / f"{name}.json"
            proofs.append(build(Proof, json_of(path, text_of(path))))
        except MissingFileError:
            raise ProofError(f"{directory} has no proof for {name}: run tox -e proof") from None
        except (InputError, WrongValueError) as error:
            raise ProofError(f"the proof for {name} is damaged: {error}") from None
    return proofs


def all_tests(suite: Path) -> list[str]:
    """The tests of the suite about statements: their ids without parameters, by pytest."""
    listed = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", str(suite), "-q", "--collect-only"),
            *("-p", "no:cacheprovider", "--target", "qtest-pci"),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=COLLECTION_DEADLINE,
    ).stdout
    return list(dict.fromkeys(bare_name(line) for line in listed.splitlines() if "::" in line))


def unproven(proofs: Iterable[Proof], tests: Iterable[str], suite: Path) -> list[str]:
    """The tests that nothing has turned red: no defect, and no real device's deviation."""
    red = {name for proof in proofs for name in proof.red}
    for path in sorted((suite / "deviations").glob("*.toml")):
        for deviation in load_deviations(path):
            red |= {pattern.partition("[")[0].rstrip("*") for pattern in deviation.tests}
    return [name for name in tests if name not in red]


def reasons() -> dict[str, str]:
    """Test -> why no defect turns it red."""
    return tomllib.loads(REASONS.read_text(encoding="utf-8"))


def page(proofs: Sequence[Proof], tests: Iterable[str], suite: Path) -> str:
    """The page in Markdown."""
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
            one = defects()[proof.defect]
            red = "<br>".join(f"`{test.partition('::')[2]}`" for test in proof.keyed)
            lines.append(f"| {name} | `{one.name}`: {one.text} | `{one.target}` | {red} |")
    lines += ["", "## Harmless: nothing turns red", ""]
    for proof in proofs:
        one = defects()[proof.defect]
        if not one.statements:
            lines.append(f"- `{one.name}` on `{one.target}`, {proof.ran} tests: {one.text}")
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
    section = clauses()[name].section if name in clauses() else name.partition(": ")[0]
    return section_order(section), name


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m harness.proof.proof")
    parser.add_argument("suite", type=Path, help="the directory of the conformance suite")
    parser.add_argument("directory", type=Path, help="where `tox -e proof` left its results")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the page there")
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
        print(f"no defect turns this red, and {REASONS.name} has no reason: {name}")
    for name in stale:
        print(f"{REASONS.name} has a reason that is not needed: {name}")
    return 1 if unexplained or stale else 0


if __name__ == "__main__":
    sys.exit(main())
