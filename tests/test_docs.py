"""The documentation: links have a destination, and commands exist."""

from __future__ import annotations

import itertools
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from harness.cli.main import _parser, _shielded
from harness.targets.registry import descriptions

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
PIPELINES = sorted((ROOT / "docs").rglob("*.yml"))

PROGRAMS = ("pytest", "vblk", "tox")


def ids(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def page(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def prose(path: Path) -> str:
    """Return the text of a page without its code blocks."""
    return re.sub(r"^```.*?^```$", "", page(path), flags=re.S | re.M)


def anchors(path: Path) -> set[str]:
    """Return the anchors of a page: its headings as GitHub and GitLab spell them."""
    titles = re.findall(r"^#+ +(.*)$", prose(path), re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def links(path: Path) -> Iterator[str]:
    """Yield the destinations of a page's links and pictures, except web addresses."""
    for place in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if not re.match(r"[a-z]+:", place):
            yield place


@pytest.mark.parametrize("path", PAGES, ids=ids)
def test_links_lead_somewhere(path: Path) -> None:
    for place in links(path):
        file, _, anchor = place.partition("#")
        to = (path.parent / file).resolve() if file else path
        assert to.exists(), f"{ids(path)}: there is no {place}"
        if anchor:
            assert anchor in anchors(to), f"{ids(path)}: {ids(to)} has no heading #{anchor}"


def test_every_page_is_linked_from_another() -> None:
    linked = {
        (path.parent / place.partition("#")[0]).resolve() for path in PAGES for place in links(path)
    }

    lost = [ids(path) for path in (*PAGES, *PIPELINES) if path not in linked]
    assert lost == []


def commands(path: Path) -> Iterator[list[str]]:
    """Yield the words of each pytest, vblk and tox command in code blocks and pipelines."""
    text = page(path)
    blocks = (
        [text] if path.suffix == ".yml" else re.findall(r"^```.*?\n(.*?)^```$", text, re.S | re.M)
    )
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    for line in lines:
        for part in re.split(r"&&|\|(?![\w|])", re.sub(r"^\s*(?:\$ |- |run: |- run: )+", "", line)):
            words = _words(part)
            program = words[0].rpartition("/")[2] if words else ""
            if program in PROGRAMS and (words[0] == program or words[0].startswith(".venv/bin/")):
                yield [program, *words[1:]]


def named(path: Path) -> Iterator[list[str]]:
    """Yield the words of each command between backticks in a page's sentences."""
    for words in map(_words, re.findall(r"`([^`\n]+)`", prose(path))):
        if words and words[0] in PROGRAMS and path.suffix == ".md":
            yield [word.partition("|")[0] for word in words]  # the first of several alternatives


def _words(line: str) -> list[str]:
    try:
        words = shlex.split(line, comments=True)
    except ValueError:
        return []  # not a command
    while words and re.fullmatch(r"\w+=.*", words[0]):
        words.pop(0)  # an environment variable
    return words


@cache
def options() -> set[str]:
    """Return all options of pytest with our plugin."""
    answer = subprocess.run(
        [sys.executable, "-m", "pytest", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    # The help does not show the older, better known spelling.
    return {"--junitxml", *re.findall(r"(?<![\w-])-{1,2}[a-zA-Z][\w-]*", answer.stdout)}


def check_pytest(words: list[str]) -> None:
    """Assert that options, paths of our tests, and named targets exist."""
    for number, word in enumerate(words):
        if word.startswith("--"):
            assert word.partition("=")[0] in options(), f"pytest has no {word}"
        elif re.match(r"(conformance|tests)/", word):
            file, _, test = word.partition("::")
            assert (ROOT / file).exists(), f"there is no {file}"
            name = re.sub(r"\[.*", "", test)
            assert name in page(ROOT / file) if name else True, f"{file} has no {name}"
        if word == "--target" and number + 1 < len(words):
            check_target(words[number + 1])


def check_target(name: str) -> None:
    defined = {
        found for path in PAGES for found in re.findall(r"^\[target\.([\w-]+)\]", page(path), re.M)
    }
    if re.fullmatch(r"[a-z-]+", name):
        assert name in {*descriptions(), *defined}, f"there is no target {name}"


def check_vblk(words: list[str]) -> None:
    try:
        _parser().parse_args(_shielded(words or ["--help"]))
    except SystemExit as ending:
        assert ending.code == 0, f"vblk does not take {shlex.join(words)}"


def check_tox(words: list[str]) -> None:
    environments = set(re.findall(r"^\[testenv:(.+)\]$", page(ROOT / "tox.ini"), re.M))
    for option, value in itertools.pairwise(words):
        if option == "-e":
            assert set(value.split(",")) <= environments, f"tox has no environment {value}"


CHECKS = {"pytest": check_pytest, "vblk": check_vblk, "tox": check_tox}


@pytest.mark.parametrize("path", [*PAGES, *PIPELINES], ids=ids)
def test_commands_exist(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a report's directory may be created here
    for program, *words in commands(path):
        CHECKS[program](words)
    for program, *words in named(path):
        CHECKS[program]([*words, "--help"])


def test_commands_are_found_at_all() -> None:
    found = [words for path in (*PAGES, *PIPELINES) for words in commands(path)]

    for program, least in (("pytest", 20), ("vblk", 10), ("tox", 2)):
        assert sum(words[0] == program for words in found) >= least, program


def test_files_that_blocks_run_exist() -> None:
    for path in PAGES:
        for script in re.findall(r"(?<![\w/])\.ci/[\w.-]*\w", page(path)):
            if "." in Path(script).name:
                continue  # a script of the reader's repository: ours have no suffix
            assert (ROOT / script).is_file(), f"{ids(path)}: there is no {script}"
