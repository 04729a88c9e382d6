"""Number of workers of pytest-xdist, and the copy of target facts into the JUnit properties.

A worker knows the properties of the suite but has no JUnit file to put them in.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

import pytest

from harness.pytestplugin.bench import BENCHES
from harness.pytestplugin.plugin import user_targets
from harness.report.outcome import ATTRIBUTE
from harness.virtio.catalogue import SPECIFICATION

if TYPE_CHECKING:
    from harness.targets.userfile import UserTarget


WORKERS_PER_CPU = 2
"""Workers of `-n auto` for each CPU if the tests of the run's targets mostly wait."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """Return the number of workers for `-n auto`; None leaves it to pytest-xdist.

    On a daemon that is started for each disk, most tests wait: for throttled disks, and for things
    that must not happen. The environment variable of pytest-xdist has precedence.
    """
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None
    names: list[str] = config.option.vblk_target or []
    user = user_targets(config)
    if not names or not all(_waits(name, user) for name in names):
        return None
    return WORKERS_PER_CPU * len(os.sched_getaffinity(0))


def _waits(name: str, user: Mapping[str, UserTarget]) -> bool:
    """Return True if the device is a daemon of its own for each disk, and no QEMU is between."""
    if name in user:
        target = user[name]
        return bool(target.start) and target.per == "disk" and not target.through
    return name.partition("+")[0] == "vhost-user"


def pytest_configure(config: pytest.Config) -> None:
    """Listen in every process that may turn out to be the controller."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Listener(config))


class _Listener:
    """Copies the facts about targets from the reports of tests."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._heard: set[str] = set()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Use the first report of a target that has facts; ignore the rest."""
        target = str(dict(report.user_properties).get("target"))
        facts = getattr(report, ATTRIBUTE, {}).get("facts")
        if not facts or target in self._heard:
            return
        if not self._config.pluginmanager.hasplugin("dsession"):
            return
        self._heard.add(target)
        prefix = f"{target}." if len(self._config.stash[BENCHES]) > 1 else ""
        for plugin in self._config.pluginmanager.get_plugins():
            if add := getattr(plugin, "add_global_property", None):
                for name, value in {"specification": SPECIFICATION, **facts}.items():
                    add(prefix + name, value)
