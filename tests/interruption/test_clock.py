"""The host's clock may be set at any moment: waits and durations do not depend on it."""

from __future__ import annotations

import ast
from datetime import UTC, datetime
from pathlib import Path

import pytest

from harness.report import collect
from harness.report.collect import Collector

ROOT = Path(__file__).parents[2]

TRACE = "the order of a trace's events, some of which a guest has seen and some its host"

PLACES = {
    "harness/report/collect.py": "the date of a run, for its reader",
    "harness/cli/serve.py": "the date of a run, for its reader",
    "harness/driver/trace.py": TRACE,
    "harness/machine/supervisor.py": TRACE,
    "harness/report/trace.py": TRACE,
    "harness/guest/client.py": "the guest's clock is set to the host's",
    "images/cache.py": "the age of an image that was not used",
}
"""Files that may read the host's clock, and the purpose."""

CLOCKS = {
    *("time.time", "time.time_ns", "time.localtime", "time.gmtime"),
    *("datetime.now", "datetime.utcnow", "datetime.today"),
}


def test_the_clock_is_read_for_dates_only() -> None:
    readers = {
        str(path.relative_to(ROOT))
        for folder in ("harness", "images", "conformance")
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and ast.unparse(node) in CLOCKS
    }

    assert readers == PLACES.keys()


def test_a_clock_that_is_set_back_gives_no_negative_duration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Clock(datetime):
        year_now = 2030

        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            cls.year_now -= 1
            return datetime(cls.year_now, 1, 1, tzinfo=UTC)

    monkeypatch.setattr(collect, "datetime", Clock)
    (run,) = Collector(Path.cwd(), []).results(complete=True).runs

    assert run.started.startswith("2029")
    assert run.seconds >= 0
