"""Waits of the suite: they end, whatever the device does."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from conformance import waiting


def disk(*completed: list[int]) -> SimpleNamespace:
    """Return a disk whose completions at each look are these; the last repeats."""
    looks = list(completed)
    return SimpleNamespace(
        driver=SimpleNamespace(completed=lambda: looks.pop(0) if len(looks) > 1 else looks[0])
    )


def test_each_look_at_what_has_completed_is_had_the_last_one_too() -> None:
    seen = list(waiting.until_completed(disk([], [4], [4], [4, 5]), [4, 5]))
    assert seen == [[], [4], [4], [4, 5]]


def test_requests_that_never_complete_fail_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "PATIENCE", 0.01)
    with pytest.raises(AssertionError, match="2 of 3 requests did not complete in time"):
        for _ in waiting.until_completed(disk([], [4]), [4, 5, 6]):
            pass
