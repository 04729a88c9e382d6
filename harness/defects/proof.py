"""The proof that the suite sees what it says it checks: run on each defect, it turns red.

    python -m harness.defects.proof DIRECTORY [--write FILE]

takes what `prove` found for the defects (a file each in DIRECTORY) and makes
one page of it: statement, defect, tests that turn red, and the tests that no
defect turns red. Its exit status is 1 if one of these has no reason on record.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import conformance
from harness.report.deviations import load as load_deviations
from harness.report.results import Results, Verdict, load
from harness.virtio.catalogue import clauses, section_order

from .catalogue import Defect, defects

SUITE = Path(conformance.__file__).parent
REASONS = Path(__file__).with_name("unproven.toml")
DEADLINE = 600.0
"""Seconds that the tests of one defect's statements may take."""


class ProofError(Exception):
    """The suite did not run on a device with a defect; one line, with its last words."""


@dataclass(frozen=True)
class Proof:
    """What the tests of a defect's statements made of it: the ids of tests without parameters.

    `keyed` are those about one of its statements that turned red, `red` all that did.
    """

    defect: str
    ran: int
    keyed: tuple[str, ...]
    red: tuple[str, ...]


def prove(defect: Defect) -> Proof:
    """Run the tests of a defect's statements on it; on a harmless one, the whole suite.

    ProofError if that comes to no end within `DEADLINE` seconds, or to no results.
    """
    with tempfile.TemporaryDirectory(prefix="proof-") as directory:
        results = Path(directory) / "results.json"
        command = [
            *(sys.executable, "-m", "pytest", str(SUITE), "-q", "--tb=no"),
            # A SHOULD that the real device does not keep says nothing of what is harmless.
            *(["--strict-should"] if defect.statements else []),
            *("-p", "no:cacheprovider", "-p", "no:xdist", "--matrix", str(results)),
            *("--target", defect.target, "--defect", defect.name),
            *_selection(defect.statements),
        ]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=DEADLINE, check=False
            )
        except subprocess.TimeoutExpired:
            raise ProofError(f"{defect.name}: no end within {DEADLINE:g} s") from None
        # A device that its driver turns down ends the session (2): nothing can be had of it.
        usual = (0, 1, 2) if defect.unusable else (0, 1)
        if done.returncode not in usual or not results.exists():
            words = (done.stderr or done.stdout).strip().splitlines()
            raise ProofError(f"{defect.name}: {words[-1] if words else 'no word of pytest'}")
        return _judged(defect, load(results))


def _selection(statements: Iterable[str]) -> Iterator[str]:
    for name in statements:
        yield from ("--clause" if "-" in name else "--section", name)


def _judged(defect: Defect, results: Results) -> Proof:
    seen_red = {Verdict.BROKEN, *([Verdict.ERROR] if defect.unusable else [])}
    red: dict[str, bool] = {}
    for test in results.tests.values():
        if any(result.verdict in seen_red for result in test.results.values()):
            name = plain(test.id)
            about = {part for one in test.statements for part in (one, results.rows[one].section)}
            red[name] = red.get(name, False) or bool(about & set(defect.statements))
    keyed = tuple(name for name, about in red.items() if about)
    return Proof(defect.name, len(results.tests), keyed, tuple(red))


def plain(test: str) -> str:
    """A test's id without its directory and its parameters."""
    return test.rpartition("/")[2].partition("[")[0]


def save(directory: Path, proof: Proof) -> None:
    """Keep a proof in a directory, for the page."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{proof.defect}.json").write_text(json.dumps(asdict(proof)), encoding="utf-8")


def saved(directory: Path) -> list[Proof]:
    """The proofs in a directory, in the order of the defects. ProofError if one is missing."""
    proofs = []
    for name in defects():
        try:
            kept = json.loads((directory / f"{name}.json").read_text(encoding="utf-8"))
        except OSError:
            raise ProofError(f"{directory} has no proof for {name}: run tox -e proof") from None
        proofs.append(Proof(kept["defect"], kept["ran"], tuple(kept["keyed"]), tuple(kept["red"])))
    return proofs


def all_tests() -> dict[str, str]:
    """The tests of the suite about statements: id without parameters -> statements, by pytest."""
    listed = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", str(SUITE), "-q", "--collect-only"),
            *("-p", "no:cacheprovider", "--target", "qtest-pci"),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=DEADLINE,
    ).stdout
    return {plain(line): "" for line in listed.splitlines() if "::" in line}


def unproven(proofs: Iterable[Proof], tests: Iterable[str]) -> list[str]:
    """The tests that nothing has turned red: no defect, and no real device's deviation."""
    red = {name for proof in proofs for name in proof.red}
    for path in sorted((SUITE / "deviations").glob("*.toml")):
        for deviation in load_deviations(path):
            red |= {pattern.partition("[")[0].rstrip("*") for pattern in deviation.tests}
    return [name for name in tests if name not in red]


def reasons() -> dict[str, str]:
    """Test -> why no defect turns it red."""
    return tomllib.loads(REASONS.read_text(encoding="utf-8"))


def page(proofs: Sequence[Proof], tests: Iterable[str]) -> str:
    """The page in Markdown."""
    tests = list(tests)
    by_statement: defaultdict[str, list[Proof]] = defaultdict(list)
    for proof in proofs:
        for name in defects()[proof.defect].statements:
            by_statement[name].append(proof)
    without = unproven(proofs, tests)
    why = reasons()
    lines = [
        "# What turns each check red",
        "",
        f"{len(proofs)} defects, {len(by_statement)} statements, {len(tests)} tests;"
        f" {len(without)} tests that nothing turns red. Made by `tox -e proof`; a defect is"
        " planted with `--target TARGET --defect NAME`.",
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
    lines += ["", "## Tests that no defect turns red", ""]
    lines += [f"- `{name}`: {why.get(name, '**no reason on record**')}" for name in without]
    if not without:
        lines.append("None.")
    return "\n".join(lines) + "\n"


def _order(name: str) -> tuple[list[int], str]:
    section = clauses()[name].section if name in clauses() else name
    return section_order(section), name


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m harness.defects.proof")
    parser.add_argument("directory", type=Path, help="where `tox -e proof` left its results")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the page there")
    asked = parser.parse_args()
    try:
        proofs = saved(asked.directory)
    except ProofError as error:
        print(f"proof: {error}", file=sys.stderr)
        return 2
    tests = all_tests()
    if asked.write:
        asked.write.write_text(page(proofs, tests), encoding="utf-8")
    without = unproven(proofs, tests)
    unexplained = [name for name in without if name not in reasons()]
    stale = [name for name in reasons() if name not in without]
    print(f"{len(proofs)} defects, {len(tests)} tests, {len(without)} that nothing turns red")
    for name in unexplained:
        print(f"no defect turns this red, and {REASONS.name} has no reason: {name}")
    for name in stale:
        print(f"{REASONS.name} has a reason that is not needed: {name}")
    return 1 if unexplained or stale else 0


if __name__ == "__main__":
    sys.exit(main())
