"""The tests of error policies fail on a device that handles errors in another way."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partial, partialmethod
from typing import Any

import pytest

from conformance.hardening import test_error_policies as suite
from harness.diskspec import DiskSpec, ErrorPolicy
from harness.machine import Machine
from harness.targets import Disk
from harness.targets.qtest import QtestTarget

Act = Callable[[Any], None]

STOPS = partial(suite.test_a_request_that_stops_the_machine_is_repeated, operation="write", stops=1)
REPORTED = partial(suite.test_a_reported_error_is_the_requests_status, operation="write")
IGNORED = partial(suite.test_an_ignored_error_is_a_success, operation="write")
FULL = suite.test_only_a_full_store_stops_the_machine_with_enospc


@pytest.mark.parametrize(
    ("act", "policy"),
    [
        (STOPS, "report"),
        (STOPS, "ignore"),
        (REPORTED, "ignore"),
        (IGNORED, "report"),
        (FULL, "report"),
        (FULL, "ignore"),
    ],
    ids=[
        *("stop-reports", "stop-ignores", "report-ignores", "ignore-reports"),
        *("enospc-reports", "enospc-ignores"),
    ],
)
def test_another_policy_is_noticed(act: Act, policy: ErrorPolicy) -> None:
    with closing(QtestTarget("qtest-pci")) as target:

        def plug(*, start: bool, **fields: Any) -> Disk:
            assert not start
            return Disk(target.plug(replace(DiskSpec(**fields), on_error=policy)))

        with pytest.raises(AssertionError):
            act(suite.failing(plug, None))


def test_a_request_that_is_lost_with_the_process_is_noticed(monkeypatch) -> None:
    awaited = partialmethod(Machine.wait_io_error, timeout=1.0)
    with closing(QtestTarget("qtest-pci")) as target:

        def plug(*, start: bool, **fields: Any) -> Disk:
            disk = Disk(target.plug(DiskSpec(**fields)))

            def lose() -> None:
                disk.system_reset()
                monkeypatch.setattr(Machine, "wait_io_error", awaited)

            monkeypatch.setattr(disk, "move", lose)
            return disk

        with pytest.raises(AssertionError, match="the request was not repeated"):
            suite.test_a_request_that_waits_is_repeated_after_a_save_and_restore(
                suite.failing(plug, None), "write"
            )
