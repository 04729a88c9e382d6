"""Rounds of hypothesis: a seed, a kind of disk, so many examples, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from hypothesis import HealthCheck, Phase, Verbosity, seed, settings
from hypothesis.errors import Flaky
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from harness.random.finding import Finding
from harness.random.hunt import Found, Hunt
from harness.random.machine import HostileMachine, LegalMachine
from harness.random.operations import Plug
from harness.targets import LacksError

SERIAL = "vblk-random-01234567"

LEGAL_DISKS: Sequence[Plug] = (
    Plug(capacity=2048, serial=SERIAL),
    Plug(capacity=2048, serial=SERIAL, packed=True),
    Plug(capacity=2048, queues=3, packed=True, queue_size=64),
    Plug(capacity=2048, queues=4, iops=2000),
    Plug(capacity=2048),
    Plug(capacity=2048, queues=2),
)
"""The kinds of disk that rounds take in turn, as far as the target has them."""

HOSTILE_DISKS: Sequence[Plug] = (
    Plug(capacity=2048, queues=2),
    Plug(capacity=2048, queues=2, packed=True),
    Plug(capacity=2048, queues=2, iops=2000),
)
"""The same for hostile rounds."""

QUIET = settings(
    database=None,
    deadline=None,
    phases=(Phase.generate, Phase.shrink),
    print_blob=False,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
    verbosity=Verbosity.quiet,
)
"""Nothing is remembered between runs, so that a seed says it all."""


def disks_of(hunt: Hunt, wanted: Sequence[Plug]) -> list[Plug]:
    """Those kinds of disk that the target has. LacksError, with the reason, if it has none."""
    found = []
    for plug in hunt.as_found(wanted):
        try:
            hunt.shape(plug)
        except LacksError as error:
            reason = error
        else:
            found.append(plug)
    if not found:
        raise reason
    return found


def run(
    hunt: Hunt,
    plug: Plug,
    number: int,
    examples: int,
    steps: int,
    hostile: bool = False,
) -> list[Found]:
    """One round with the seed `number`; what it has found that nothing had before."""

    def machine() -> RuleBasedStateMachine:
        return HostileMachine(hunt.hostile(plug)) if hostile else LegalMachine(hunt.legal(plug))

    try:
        run_state_machine_as_test(
            cast(type[RuleBasedStateMachine], seed(number)(machine)),
            settings=settings(QUIET, max_examples=examples, stateful_step_count=steps),
        )
    except Finding:
        pass
    except Flaky:
        pass  # it did not come every time, or the hunt lost its patience: it is kept all the same
    return hunt.settle()
