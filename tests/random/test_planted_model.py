"""Random operations find defects of the model that show only at bursts, pauses and sizes."""

import pytest

pytest.importorskip("hypothesis")

from harness.random import rounds
from harness.random.hunt import Hunt
from harness.random.operations import Burst, Plug, Send, Suppress
from harness.targets.model import Model

EXAMPLES, STEPS, ROUNDS = 20, 20, 3


@pytest.fixture
def find(monkeypatch):
    """Return a function that hunts on a model with a defect, and returns the first finding."""
    # The clock limits shrinking, and a lost request costs the deadline each time.
    monkeypatch.setattr("harness.random.hunt.PATIENCE", 3.0)
    targets = []

    def find(defect, plug, seed, count=ROUNDS):
        targets.append(target := Model([defect]))
        hunt = Hunt(target, deadline=0.7)
        try:
            for number in range(seed, seed + count):
                if found := rounds.run(hunt, plug, number, EXAMPLES, STEPS):
                    return found[0]
        finally:
            hunt.drop()
        return None

    yield find
    for target in targets:
        target.close()


def kinds(found):
    return {type(operation) for operation in found.script}


def test_work_that_is_dropped_in_a_pause_is_found(find):
    # A busy machine makes work late, too: so the script need not have a pause.
    found = find("late-work-is-dropped", Plug(capacity=2048, queues=4, iops=2000), seed=1)

    assert found
    assert found.finding.check == "completes"


def test_a_ring_that_is_not_looked_at_again_is_found_with_suppression(find):
    found = find("ring-not-looked-at-again", Plug(capacity=2048, queues=2), seed=4)

    assert found
    assert found.finding.check == "completes"
    assert Suppress in kinds(found)
    assert kinds(found) & {Burst, Send}


def test_large_requests_that_fail_are_found(find):
    found = find("large-requests-fail", Plug(capacity=6144, queues=2), seed=1)

    assert found
    assert found.finding.check == "status"
    sent = [ask for step in found.script if isinstance(step, Send) for ask in step.asks]
    assert max(ask.count for ask in sent if hasattr(ask, "count")) > 2048


def test_a_device_without_defects_has_nothing_to_find(find):
    # The defect is a harmless one.
    assert find("driver-asked-late", Plug(capacity=6144, queues=2), seed=1, count=1) is None
