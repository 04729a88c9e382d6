"""The types of the suite's helpers are checked in mypy's strict mode."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_all_modules_of_the_suite_without_tests_are_checked_strictly() -> None:
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in (ROOT / "conformance").rglob("*.py")
        if not path.name.startswith("test_")
    }

    mypy = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mypy"]
    _, relaxed, strict = mypy["overrides"]

    assert relaxed["module"] == "conformance.*"
    assert set(strict["module"]) == modules
    assert {name: True for name in relaxed if name != "module"} == {
        name: value for name, value in strict.items() if name != "module"
    }
