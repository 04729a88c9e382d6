"""For pytest: the profiles `ci` and `long`, and the fixture `random_run`."""

from __future__ import annotations

import random
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
"""Examples of a round, which has one kind of disk."""

CI_EXAMPLES, CI_STEPS, CI_SECONDS = 40, 30, 30.0
"""Unless told otherwise; no round begins after so many seconds."""

LONG_EXAMPLES, LONG_STEPS = 200_000, 50

CI_SEED = 1
"""So that a run in CI does what the last one did."""

RandomRun = Callable[[], str]
"""The type of the fixture: what was found as text, empty if nothing was."""


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Make the profiles known before hypothesis looks for the one that was asked for."""
    if config.getoption("hypothesis_profile", None) is None:
        return
    from hypothesis import settings

    settings.register_profile("ci", max_examples=CI_EXAMPLES, stateful_step_count=CI_STEPS)
    settings.register_profile("long", max_examples=LONG_EXAMPLES, stateful_step_count=LONG_STEPS)


@pytest.fixture
def random_run(
    request: pytest.FixtureRequest, _bench: TargetRun, _guest: None
) -> Iterator[RandomRun]:
    """Runs random legal operations on the target, as the profile and the seed say."""
    from hypothesis import core, settings

    from harness.random import rounds
    from harness.random.hunt import Hunt

    # The bench's own way to a first disk: a target that has none is a skip or the end of the run.
    _bench.plug(DiskSpec(), True, request.session).unplug()
    assert _bench.target
    hunt = Hunt(_bench.target)
    profile = settings.get_current_profile_name()
    examples, steps, seconds = CI_EXAMPLES, CI_STEPS, CI_SECONDS
    if profile not in ("default", "ci"):
        asked = settings()
        examples, steps, seconds = asked.max_examples, asked.stateful_step_count, float("inf")
    said = core.global_force_seed
    usual = random.randrange(10**6) if profile == "long" else CI_SEED
    first = said if isinstance(said, int) else usual
    directory = Path(getattr(request.config.option, "artifacts", None) or "reports")

    def run() -> str:
        print(f"random: seed {first}; again with --hypothesis-seed={first}")
        disks = rounds.disks_of(hunt, rounds.LEGAL_DISKS)
        deadline = monotonic() + seconds
        for number in range(first, first - (-examples // ROUND)):
            if monotonic() > deadline:
                break
            # global_force_seed would give every round the same seed.
            core.global_force_seed = None
            try:
                plug = disks[number % len(disks)]
                found = rounds.run(hunt, plug, number, min(ROUND, examples), steps)
            finally:
                core.global_force_seed = said
            if found:
                return "\n\n".join(_told(one, number) for one in found)
        print(f"random: {hunt.tally}")
        return ""

    def _told(one: Found, number: int) -> str:
        from harness.random.saved import save
        from harness.random.script import text_of

        path = save(one, hunt, directory, f"found by pytest, seed {number}")
        return f"{one.finding}\n{text_of(one.script)}saved as {path}"

    try:
        yield run
    finally:
        hunt.drop()
