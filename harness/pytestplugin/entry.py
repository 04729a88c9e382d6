"""Entry point of the pytest plugin: loads the rest only in a run that asks for it.

Other projects' tests run in the same environment. Their pytest gets no options, hooks or header
from this package. A run asks for the plugin in one of these ways:

- it names the conformance suite, by path or with `--pyargs conformance`;
- it has an option that begins with `--vblk-`;
- its top conftest.py says `pytest_plugins = ["harness.pytestplugin.plugin"]`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Iterable
from importlib.util import find_spec
from pathlib import Path

import pytest

PLUGIN = "harness.pytestplugin.plugin"
PREFIX = "--vblk-"
SUITE_PACKAGE = "conformance"
SUITE = Path(__file__).resolve().parents[2] / SUITE_PACKAGE


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_load_initial_conftests(
    early_config: pytest.Config, args: list[str]
) -> Generator[None, None, None]:
    """Load the plugin if the run asks for it, after the conftest files.

    By then all other options are known, so that a short name which is not free is left alone.
    """
    asked_for = _asked_for(early_config, args)
    if asked_for and sys.stdout is None:
        # The process was started without one. pytest needs it before it captures output.
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 (until its end)
    yield
    if not early_config.pluginmanager.has_plugin(PLUGIN) and asked_for:
        early_config.pluginmanager.import_plugin(PLUGIN)


def _asked_for(config: pytest.Config, args: Iterable[str]) -> bool:
    # A worker of pytest-xdist has the options of its controller as attributes.
    if any(name.startswith("vblk_") for name in vars(config.option)):
        return True
    modules = config.known_args_namespace.pyargs
    for arg in args:
        if arg.startswith(PREFIX):
            return True
        place = arg.partition("::")[0]
        if not arg.startswith("-") and (_is_path(config, place) or (modules and _is_module(place))):
            return True
    return False


def _is_path(config: pytest.Config, place: str) -> bool:
    """Return True for a path of the suite or in it."""
    path = (config.invocation_params.dir / place).resolve()
    return path == SUITE or SUITE in path.parents


def _is_module(place: str) -> bool:
    """Return True for the suite as a package, or a module in it."""
    if place.partition(".")[0] != SUITE_PACKAGE:
        return False
    spec = find_spec(SUITE_PACKAGE)
    return bool(spec and spec.origin and Path(spec.origin).resolve().parent == SUITE)
