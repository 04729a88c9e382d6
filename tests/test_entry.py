"""The plugin stays out of runs that do not ask for it, and takes no option of another plugin."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from harness.pytestplugin import entry

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[1]

OTHER = """
def pytest_addoption(parser):
    group = parser.getgroup("board")
    for name in ("target", "level", "channel"):
        group.addoption(f"--{name}", dest=name, default="none")
"""

Run = Callable[..., pytest.RunResult]


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run pytest with our entry point and another plugin that has options of the same names."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTHONPATH", f"{pytester.path}:{ROOT}")
    pytester.makepyfile(board=OTHER)
    pytester.makepyfile(
        test_board="def test_it(pytestconfig):\n"
        "    assert pytestconfig.option.target == 'esp32' and pytestconfig.option.level == 'none'\n"
    )

    def run(*arguments: str) -> pytest.RunResult:
        return pytester.runpytest_subprocess("-p", entry.__name__, "-p", "board", *arguments)

    return run


def test_a_run_of_other_tests_shows_nothing_of_ours(run: Run) -> None:
    result = run("--target=esp32", "test_board.py")

    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*virtio 1.4*")
    result.stdout.no_fnmatch_line("*statements*")


def test_the_help_of_other_projects_shows_no_option_of_ours(run: Run) -> None:
    result = run("--help")

    assert result.ret == 0
    assert "--target" in result.stdout.str() and "vblk" not in result.stdout.str()


def test_names_that_are_not_free_belong_to_the_other_plugin(run: Run) -> None:
    result = run("--vblk-target=model", "--target=esp32", "--section=2.7", "test_board.py")

    result.stdout.fnmatch_lines(["virtio 1.4, target model, *"])
    assert result.parseoutcomes()["deselected"] == 1


@pytest.mark.parametrize(
    "place",
    [["--pyargs", "conformance.test_status"], [str(ROOT / "conformance" / "test_status.py")]],
    ids=["module", "path"],
)
def test_the_suite_is_what_runs(run: Run, place: list[str]) -> None:
    # An option that begins with --vblk- would load the plugin whatever the place is, and so would
    # the checkout's conftest.py, which an installed suite does not have.
    result = run("--noconftest", *place, "-q", "--co", "--clause=2.4.1-D-01")

    assert result.ret == 0, result.stderr.str()
    result.stdout.fnmatch_lines(["*::test_status_is_zero_after_a_reset*"])


def test_another_package_of_the_same_name_is_not_the_suite(
    run: Run, pytester: pytest.Pytester
) -> None:
    package = pytester.mkpydir("conformance")
    (package / "test_theirs.py").write_text("def test_it(): pass\n")

    result = run("--pyargs", "conformance", "--target=esp32")

    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*virtio 1.4*")


def test_a_conftest_asks_for_the_plugin(run: Run, pytester: pytest.Pytester) -> None:
    pytester.makeconftest('pytest_plugins = ["harness.pytestplugin.plugin"]')

    result = run("--target=esp32", "--section=2.7", "test_board.py")

    result.stdout.fnmatch_lines(["virtio 1.4, target guest-pci, *"])
