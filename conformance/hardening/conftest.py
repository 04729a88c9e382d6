"""Fixtures of the hardening tests."""

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import pytest

from conformance.hardening.victim import QUEUES, Victim
from harness.driver.errors import BadArgumentError
from harness.report.hardened import EVIDENCE, RING, VERDICT
from harness.robustness.process_watch import Judgement
from harness.virtio.features import Feature

QUEUE_SIZE = 64
"""Size of both queues (descriptors), if the driver may choose it."""

RINGS = ("split", "packed")


@pytest.fixture(params=RINGS)
def kind(request: pytest.FixtureRequest) -> str:
    """The format of the rings. Each test runs on both formats, unless it overrides this fixture."""
    return str(request.param)


class MakeVictim(Protocol):
    """The type of the fixture `victim`."""

    def __call__(
        self, *, needs: Iterable[Feature] = (), size: int | None = QUEUE_SIZE, **fields: Any
    ) -> Victim:
        """Return a started disk with these fields of `DiskSpec`; the test writes its first ring."""
        ...


@pytest.fixture
def victim(plug: Callable[..., Any], kind: str, request: pytest.FixtureRequest) -> MakeVictim:
    """Factory of disks for a test that breaks the rules; the verdict goes into the report."""

    def record(judgement: Judgement) -> None:
        request.node.user_properties += [
            (RING, kind),
            (VERDICT, str(judgement.fate)),
            (EVIDENCE, judgement.evidence),
        ]

    def make(
        *, needs: Iterable[Feature] = (), size: int | None = QUEUE_SIZE, **fields: Any
    ) -> Victim:
        packed = kind == "packed"
        needs = [*needs, *([Feature.RING_PACKED] if packed else [])]
        fields = {**({"packed": True} if packed else {}), **fields}
        prefer = {} if "queues" in fields else {"queues": QUEUES}
        disk = plug(start=False, needs=needs, prefer=prefer, **fields)
        if not disk.driver.offered() & Feature.VERSION_1.mask:
            size = None  # the driver cannot choose the size of a legacy queue
        return Victim(disk, packed, record, size)

    return make


@pytest.fixture
def registers(victim: MakeVictim) -> MakeVictim:
    """Factory like `victim`; skips a device without registers."""

    def make(**wanted: Any) -> Victim:
        new_victim = victim(**wanted)
        try:
            new_victim.driver.register_read("no such register")
        except BadArgumentError as error:
            if "no registers" in error.message:
                pytest.skip(error.message)
        return new_victim

    return make
