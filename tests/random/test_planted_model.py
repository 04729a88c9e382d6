"""Random operations find a defect of the model that shows only at large requests."""

import pytest

pytest.importorskip("hypothesis")

from harness.random import rounds
from harness.random.hunt import Hunt
from harness.random.operations import Plug, Send
from harness.targets.model import Model

EXAMPLES, STEPS, ROUNDS = 20, 20, 3


@pytest.fixture
def find(monkeypatch):
    """Return a function that hunts on a model with a defect, and returns the first finding."""
    # The clock limits shrinking.
    monkeypatch.setattr("harness.random.hunt.PATIENCE", 3.0)
    targets = []

    def find(defect, plug, seed, count=ROUNDS):
        targets.append(target := Model([defect]))
        hunt = Hunt(target, deadline=10.0)
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


def test_large_requests_that_fail_are_found(find):
    found = find("large-requests-fail", Plug(capacity=6144, queues=2), seed=1)

    assert found
    assert found.finding.check == "status"
    sent = [ask for step in found.script if isinstance(step, Send) for ask in step.asks]
    assert max(ask.count for ask in sent if hasattr(ask, "count")) > 2048


def test_a_device_without_defects_has_nothing_to_find(find):
    # The defect is a harmless one.
    assert find("driver-asked-late", Plug(capacity=6144, queues=2), seed=1, count=1) is None
