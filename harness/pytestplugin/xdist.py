"""Copy of target facts, under pytest-xdist, from the workers' reports into the JUnit properties.

A worker knows the properties of the suite but has no JUnit file to put them in.
"""

from __future__ import annotations

import pytest

from harness.pytestplugin.bench import BENCHES
from harness.report.outcome import ATTRIBUTE
from harness.virtio.catalogue import SPECIFICATION


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
