"""Hypothesis profiles `short`, `ci` and `long`, and the fixture `random_run`."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

import pytest

from harness.diskspec import DiskSpec

if TYPE_CHECKING:
    from harness.pytestplugin.bench import TargetRun
    from harness.random.hunt import Found

ROUND = 10
"""Number of examples in a round. All examples of a round use one kind of disk."""

CI_EXAMPLES, CI_STEPS, CI_SECONDS = 40, 30, 30.0
"""Defaults: examples, steps per example, and seconds after which no new round begins."""

LONG_EXAMPLES, LONG_STEPS = 200_000, 50

CI_SEED = 5
"""Fixed seed: every run in CI does the same. With this one it takes as long as most others do."""

HYPOTHESIS = "hypothesispytest"
"""Name of the plugin of hypothesis."""

RandomRun = Callable[[], str]
"""Type of the fixture: it returns a report of the findings as text, empty if there are none."""


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Register the profiles before hypothesis looks for the requested one."""
    if config.getoption("hypothesis_profile", None) is None:
        return
    from hypothesis import settings

    settings.register_profile("ci", max_examples=CI_EXAMPLES, stateful_step_count=CI_STEPS)
    settings.register_profile("short", max_examples=ROUND, stateful_step_count=CI_STEPS)
    settings.register_profile("long", max_examples=LONG_EXAMPLES, stateful_step_count=LONG_STEPS)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Let hypothesis print nothing if no test has used it: it would be imported for that only.

    A controller of pytest-xdist does not know what the workers have imported.
    """
    plugins = session.config.pluginmanager
    unused = "hypothesis" not in sys.modules and not plugins.hasplugin("dsession")
    if unused and plugins.hasplugin(HYPOTHESIS):
        plugins.unregister(name=HYPOTHESIS)


@pytest.fixture
def random_run(
    request: pytest.FixtureRequest, _bench: TargetRun, _guest: None
) -> Iterator[RandomRun]:
    """Run random legal operations on the target, with the given profile and seed."""
    from hypothesis import core, settings

    from harness.random import rounds
    from harness.random.hunt import Hunt

    # Plug the first disk in the usual way: if the target has none, the test is skipped or the run
    # ends.
    _bench.plug([DiskSpec()], True, request.session).unplug()
    assert _bench.target
    hunt = Hunt(_bench.target)
    profile = settings.get_current_profile_name()
    examples, steps, seconds = CI_EXAMPLES, CI_STEPS, CI_SECONDS
    if profile not in ("default", "ci"):
        profile_settings = settings()
        examples, steps, seconds = (
            profile_settings.max_examples,
            profile_settings.stateful_step_count,
            float("inf"),
        )
    forced_seed = core.global_force_seed
    default_seed = random.randrange(10**6) if profile == "long" else CI_SEED
    first = forced_seed if isinstance(forced_seed, int) else default_seed
    directory = Path(request.config.option.vblk_artifacts or "reports")

    def run() -> str:
        print(f"random: seed {first}; repeat with --hypothesis-seed={first}")
        disks = rounds.disks_of(hunt, rounds.LEGAL_DISKS)
        deadline = monotonic() + seconds
        for number in range(first, first - (-examples // ROUND)):
            if monotonic() > deadline:
                break
            # With global_force_seed set, every round would get the same seed.
            core.global_force_seed = None
            try:
                plug = disks[number % len(disks)]
                findings = rounds.run(hunt, plug, number, min(ROUND, examples), steps)
            finally:
                core.global_force_seed = forced_seed
            if findings:
                _bench.requests = hunt.requests
                return "\n\n".join(_report(finding, number) for finding in findings)
        print(f"random: {hunt.tally}")
        return ""

    def _report(found: Found, number: int) -> str:
        from harness.random.saved import save
        from harness.random.script import text_of

        path = save(found, hunt, directory, f"found by pytest, seed {number}")
        return f"{found.finding}\n{text_of(found.script)}saved as {path}"

    try:
        yield run
    finally:
        _bench.requests = []
        hunt.drop()
