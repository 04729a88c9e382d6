"""Rounds of hypothesis: each has a seed, a kind of disk, and a number of examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis.errors import Flaky
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test
from hypothesis.strategies import integers

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
    Plug(capacity=6144, queues=2),
)
"""Kinds of disk that rounds use in turn, if the target has them."""

HOSTILE_DISKS: Sequence[Plug] = (
    Plug(capacity=2048, queues=2),
    Plug(capacity=2048, queues=2, packed=True),
    Plug(capacity=2048, queues=2, iops=2000),
)
"""Kinds of disk for hostile rounds."""

QUIET = settings(
    database=None,
    deadline=None,
    phases=(Phase.generate, Phase.shrink),
    print_blob=False,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
    verbosity=Verbosity.quiet,
)
"""Settings without a database between runs, so that the seed alone determines a run."""


def warm_up() -> None:
    """Have hypothesis do, before any round, what it does once for a process."""

    @settings(QUIET, max_examples=1)
    @given(integers())
    def draw(number: int) -> None:
        del number

    draw()


def disks_of(hunt: Hunt, wanted: Sequence[Plug]) -> list[Plug]:
    """Return the kinds of disk that the target has.

    Raise LacksError, with the reason, if it has none.
    """
    kinds = []
    for plug in hunt.as_found(wanted):
        try:
            hunt.shape(plug)
        except LacksError as error:
            reason = error
        else:
            kinds.append(plug)
    if not kinds:
        raise reason
    return kinds


def run(
    hunt: Hunt,
    plug: Plug,
    number: int,
    examples: int,
    steps: int,
    hostile: bool = False,
) -> list[Found]:
    """Run one round with the seed `number`. Return its new findings."""

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
        pass  # the finding did not come every time, or the time was over: it is kept in any case
    return hunt.settle()
