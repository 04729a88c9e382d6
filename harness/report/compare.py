"""Comparison of two results: `vblk matrix diff`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from harness.report.results import OPEN, ORDER, Column, Results, Row, Test, Verdict, proves


class Direction(StrEnum):
    """Direction of a change."""

    WORSE = "worse"
    LOST = "no longer tested"
    BETTER = "better"


@dataclass(frozen=True)
class Change:
    """A statement whose verdict on a target has changed.

    `why` is the reason given by the new tests.
    """

    direction: Direction
    row: Row
    column: Column
    old: Verdict
    new: Verdict
    why: str


@dataclass(frozen=True)
class Difference:
    """All changes, the worst first, and the targets that only one of the results has.

    `pairs` are the ids of the compared targets; their versions may differ.
    """

    changes: list[Change]
    pairs: list[tuple[str, str]]
    gone: list[str]
    added: list[str]

    @property
    def regressed(self) -> bool:
        """Return True if a verdict is worse, or a statement is no longer tested."""
        return any(change.direction is not Direction.BETTER for change in self.changes)


def difference(old: Results, new: Results) -> Difference:
    """Compare target by target: those with equal name and versions, else single ones of a name."""
    pairs = list(_pairs(old, new))
    old_verdicts, new_verdicts = old.verdicts(), new.verdicts()
    changes = []
    for row in (old.rows | new.rows).values():
        for before, after in pairs:
            was = old_verdicts.get(row.id, {}).get(before.id, Verdict.NOT_RUN)
            now = new_verdicts.get(row.id, {}).get(after.id, Verdict.NOT_RUN)
            if direction := _direction(was, now):
                why = _why(new.tests_of(row), row, after, now)
                changes.append(Change(direction, row, after, was, now, why))
    order = {row.id: number for number, row in enumerate(new.ordered_rows())}
    changes.sort(
        key=lambda change: (
            [*Direction].index(change.direction),
            ORDER.index(change.new),
            order.get(change.row.id, len(order)),
        )
    )
    return Difference(
        changes,
        [(before.id, after.id) for before, after in pairs],
        [
            change.id
            for change in old.columns
            if change.id not in {before.id for before, _ in pairs}
        ],
        [change.id for change in new.columns if change.id not in {after.id for _, after in pairs}],
    )


def _pairs(old: Results, new: Results) -> Iterator[tuple[Column, Column]]:
    alike = {column.id for column in old.columns} & {column.id for column in new.columns}
    for after in new.columns:
        if after.id in alike:
            yield next(column for column in old.columns if column.id == after.id), after
            continue
        before = [
            column for column in old.columns if column.name == after.name and column.id not in alike
        ]
        rivals = [
            column for column in new.columns if column.name == after.name and column.id not in alike
        ]
        if len(before) == len(rivals) == 1:
            yield before[0], after


def _direction(was: Verdict, now: Verdict) -> Direction | None:
    if was is now or (was in OPEN and now in OPEN):
        return None
    if now in OPEN:
        return Direction.LOST
    if now is Verdict.KEPT or (was not in OPEN and ORDER.index(now) > ORDER.index(was)):
        return Direction.BETTER
    return Direction.WORSE


def _why(tests: list[Test], row: Row, column: Column, verdict: Verdict) -> str:
    for test in tests:
        result = test.results.get(column.id)
        if result and proves(result, row) is verdict:
            return result.deviation.get("why", "") or result.seen or result.reason
    return ""


def lines(changes: Difference) -> Iterator[str]:
    """Yield the difference as text, line by line."""
    for before, after in changes.pairs:
        yield before if before == after else f"{before} -> {after}"
    for name in changes.gone:
        yield f"{name}: only in the old results"
    for name in changes.added:
        yield f"{name}: only in the new results"
    for direction in Direction:
        selected = [change for change in changes.changes if change.direction is direction]
        if selected:
            yield ""
            yield f"{direction}: {len(selected)}"
        for change in selected:
            why = f": {change.why}" if change.why else ""
            where = f"{change.row.id}, {change.row.level}, {change.column.id}"
            yield f"  {where}: {change.old} -> {change.new}{why}"
    if not changes.changes:
        yield ""
        yield "no verdict has changed"
