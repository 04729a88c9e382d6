"""The order of the folders: an import goes down this order, and there is no circle."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

ORDER = (
    "inputs",
    "outputs",
    "images",
    "virtio",
    "diskspec",
    "interrupt",
    "driver",
    "haiku",
    "channel",
    "guest",
    "machine",
    "model",
    "defects",
    "robustness",
    "targets",
    "witness",
    "report",
    "reproducers",
    "random",
    "drivers",
    "pytestplugin",
    "proof",
    "cli",
)
"""The folders and modules of harness/, and images/, from the lowest to the highest."""

SENT_INTO_THE_GUEST = "images.guest"
"""Files of images/ that run in the guest: nothing here imports them, and they start the agent."""


def module_of(path: Path) -> str:
    """Return the dotted name of a source file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources() -> dict[str, Path]:
    """Return all modules of harness/ and images/ with their files."""
    files = [*(ROOT / "harness").rglob("*.py"), *(ROOT / "images").rglob("*.py")]
    return {module_of(path): path for path in files}


def imports(source: str, modules: set[str]) -> Iterator[str]:
    """Yield the modules of this project that a source text imports, wherever in the text."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import of {node.module}"
            package = node.module or ""
            for name in node.names:
                whole = f"{package}.{name.name}"
                yield whole if whole in modules else package


def layer(module: str) -> str:
    """Return the folder of a module: the second part of its name in harness/."""
    first, _, rest = module.partition(".")
    return rest.partition(".")[0] if first == "harness" else first


def upward(module: str, source: str, modules: set[str]) -> list[str]:
    """Return the imports of a module that are not from its own folder or a lower one."""
    if module == "harness" or module.startswith(SENT_INTO_THE_GUEST):
        return []
    allowed = ("", *ORDER[: ORDER.index(layer(module)) + 1])
    return [
        f"{module} imports {name}"
        for name in imports(source, modules)
        if name.partition(".")[0] in ("harness", "images", "conformance", "tests")
        and layer(name) not in allowed
    ]


def test_no_import_goes_up() -> None:
    modules = sources()
    found = [
        line
        for module, path in modules.items()
        for line in upward(module, path.read_text(encoding="utf-8"), set(modules))
    ]
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "from harness.targets import Target",
        "from harness import targets",
        "import harness.cli",
        "import conformance",
        "def f():\n    from harness.report.results import Results",
    ],
)
def test_an_import_in_the_wrong_direction_is_found(source: str) -> None:
    assert upward("harness.machine.machine", source, set(sources()))


def test_there_is_no_circle() -> None:
    modules = sources()
    graph = {
        module: set(imports(path.read_text(encoding="utf-8"), set(modules))) & set(modules)
        for module, path in modules.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"circle: {' -> '.join(error.args[1])}")


def test_every_folder_has_its_place() -> None:
    found = {layer(module) for module in sources()} - {""}
    assert found == set(ORDER)


def test_the_readme_shows_the_folders_in_this_order() -> None:
    picture = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"^harness/\n(?:  .*\n)+", picture, re.M)
    assert block, "README.md has no picture of harness/"
    shown = re.findall(r"^  (\w+)(?:/|\.py)", block[0], re.M)
    assert shown == [name for name in ORDER if name != "images"]
