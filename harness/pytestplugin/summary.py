"""Summary of a run on several targets."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

import pytest

OUTCOMES = ("passed", "failed", "error", "skipped", "xfailed")


def by_target(reports: Mapping[str, Iterable[object]], names: Iterable[str]) -> list[str]:
    """Return table lines: for every target its tests by outcome, and the seconds they took.

    `reports` are pytest's, by outcome. A test's set-up and the unplugging after it count for its
    target.
    """
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    seconds: defaultdict[str, float] = defaultdict(float)
    for outcome, group in reports.items():
        for report in group:
            if not isinstance(report, pytest.TestReport):
                continue
            target = dict(report.user_properties).get("target")
            if target is None:
                continue
            seconds[str(target)] += report.duration
            if outcome in OUTCOMES:
                counts[str(target)][outcome] += 1
    width = max((len(name) for name in names), default=0)
    lines = [" ".join([f"{'target':<{width}}", *(f"{name:>8}" for name in OUTCOMES), "    time"])]
    for name in names:
        cells = "".join(f"{counts[name][outcome]:>9}" for outcome in OUTCOMES)
        lines.append(f"{name:<{width}}{cells}{seconds[name]:>7.0f} s")
    return lines
