"""The documentation: links have a destination, commands exist, and quoted code is current."""

from __future__ import annotations

import ast
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
from harness.drivers.registry import makers
from harness.targets.registry import descriptions
from harness.targets.userfile import SPEC_FIELDS, load

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
README = ROOT / "README.md"
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


def test_the_page_of_options_has_each_option_of_the_plugin() -> None:
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", page(ROOT / "docs" / "options.md")))
    ours = {name for name in options() if name.startswith("--vblk-")}

    assert ours, "the help shows none"
    assert {name for name in ours if not named & {name, name.replace("vblk-", "", 1)}} == set()


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


def blocks(path: Path, language: str) -> list[str]:
    """Return the code blocks of a page in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page(path), re.S | re.M)


def functions(source: str) -> dict[str, str]:
    """Return name and text, with decorators, of each function at the top level of a source."""
    lines = source.splitlines()
    return {
        node.name: "\n".join(lines[min(_begins(node)) - 1 : node.end_lineno])
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef)
    }


def _begins(node: ast.FunctionDef) -> list[int]:
    return [node.lineno, *(decorator.lineno for decorator in node.decorator_list)]


@cache
def our_functions() -> dict[str, set[str]]:
    """Return the texts of the functions of the suite and the model, by name."""
    found: dict[str, set[str]] = {}
    for folder in ("conformance", "harness/model"):
        for file in (ROOT / folder).rglob("*.py"):
            for name, text in functions(page(file)).items():
                found.setdefault(name, set()).add(text)
    return found


QUOTES = [
    pytest.param(name, text, id=f"{ids(path)}-{name}")
    for path in PAGES
    for block in blocks(path, "python")
    for name, text in functions(block).items()
]


@pytest.mark.parametrize(("name", "text"), QUOTES)
def test_quoted_functions_are_as_in_their_files(name: str, text: str) -> None:
    assert text in our_functions().get(name, set()), f"{name} differs from the file"


def test_quotes_are_found_at_all() -> None:
    assert len(QUOTES) >= 3


def test_the_properties_of_a_disk_are_listed_as_they_are() -> None:
    text = page(ROOT / "docs" / "your-device.md")
    (listed,) = re.findall(r"^Properties: (.*?) `harness/diskspec.py`", text, re.MULTILINE)

    assert {*re.findall(r"`(\w+)`", listed)} == SPEC_FIELDS


@pytest.mark.parametrize("path", [page for page in PAGES if blocks(page, "toml")], ids=ids)
def test_quoted_targets_files_are_valid(path: Path, tmp_path: Path) -> None:
    for number, block in enumerate(blocks(path, "toml")):
        file = tmp_path / f"{number}.toml"
        file.write_text(block, encoding="utf-8")
        assert makers(file) if "[driver." in block else load(file)


CHEAP = (
    "pytest --list-targets",
    "pytest --list-defects",
)
"""Commands on our pages that take a second or two and need nothing."""


@pytest.mark.parametrize("command", CHEAP)
def test_cheap_commands_work(command: str) -> None:
    assert command.split() in [words for path in PAGES for words in commands(path)]

    ran(command.split())


def ran(words: list[str]) -> str:
    """Run a pytest command in the checkout, assert its success, and return its output."""
    answer = subprocess.run(
        [sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


def test_the_first_command_of_the_readme_prints_what_the_readme_shows() -> None:
    shown = re.search(
        r"^\$ \.venv/bin/(pytest .*)\n\[\.\.\.\]\n((?:.+\n)+)```$", page(README), re.M
    )
    assert shown, "README.md shows no run"

    output = ran([*shown[1].split(), "-p", "no:cacheprovider"])

    found = {without_count(line) for line in output.splitlines()}
    expected = [without_count(line) for line in shown[2].splitlines()]
    assert [line for line in expected if line not in found] == []


def without_count(line: str) -> str:
    """Return a line of a run's summary without its frame, its count and its duration."""
    return re.sub(r"^\d+ passed in .*|\d+$", "", line.strip("= ")).rstrip()


def test_the_readme_is_short() -> None:
    assert len(page(README).splitlines()) <= 200
