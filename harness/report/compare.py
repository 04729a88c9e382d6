"""What changed between two results: `vblk matrix diff`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from harness.report.results import OPEN, ORDER, Column, Results, Row, Test, Verdict, proves


class Direction(StrEnum):
    """What a change is."""

    WORSE = "worse"
    LOST = "no longer tested"
    BETTER = "better"


@dataclass(frozen=True)
class Change:
    """A statement whose verdict on a target is another; `why` is what the new tests say of it."""

    direction: Direction
    row: Row
    column: Column
    old: Verdict
    new: Verdict
    why: str


@dataclass(frozen=True)
class Difference:
    """All changes, the worst first, and the targets that only one of the two has.

    `pairs` are the targets compared, by their ids; versions may differ.
    """

    changes: list[Change]
    pairs: list[tuple[str, str]]
    gone: list[str]
    added: list[str]

    @property
    def regressed(self) -> bool:
        """Whether anything is worse, or was tested and is no longer."""
        return any(change.direction is not Direction.BETTER for change in self.changes)


def difference(old: Results, new: Results) -> Difference:
    """Compare target by target: those alike in name and versions, else the only ones of a name."""
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
        key=lambda one: (
            [*Direction].index(one.direction),
            ORDER.index(one.new),
            order.get(one.row.id, len(order)),
        )
    )
    return Difference(
        changes,
        [(before.id, after.id) for before, after in pairs],
        [one.id for one in old.columns if one.id not in {before.id for before, _ in pairs}],
        [one.id for one in new.columns if one.id not in {after.id for _, after in pairs}],
    )


def _pairs(old: Results, new: Results) -> Iterator[tuple[Column, Column]]:
    alike = {one.id for one in old.columns} & {one.id for one in new.columns}
    for after in new.columns:
        if after.id in alike:
            yield next(one for one in old.columns if one.id == after.id), after
            continue
        before = [one for one in old.columns if one.name == after.name and one.id not in alike]
        rivals = [one for one in new.columns if one.name == after.name and one.id not in alike]
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


def lines(found: Difference) -> Iterator[str]:
    """The difference as text, a line each."""
    for before, after in found.pairs:
        yield before if before == after else f"{before} -> {after}"
    for name in found.gone:
        yield f"{name}: only in the old results"
    for name in found.added:
        yield f"{name}: only in the new results"
    for direction in Direction:
        some = [change for change in found.changes if change.direction is direction]
        if some:
            yield ""
            yield f"{direction}: {len(some)}"
        for one in some:
            why = f": {one.why}" if one.why else ""
            where = f"{one.row.id}, {one.row.level}, {one.column.id}"
            yield f"  {where}: {one.old} -> {one.new}{why}"
    if not found.changes:
        yield ""
        yield "no verdict has changed"
