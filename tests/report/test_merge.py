"""Merging of several results, and differences between two."""

from __future__ import annotations

from dataclasses import replace

import pytest
from made_up import OTHER, PCI_NEW, PCI_OLD, a_test, broken, deviates, kept, made_up, row, skipped

from harness.report.compare import Direction, difference, lines
from harness.report.merge import merged
from harness.report.results import Column, Result, Results, Run, Test, Verdict

EARLY = Run("2026-01-01T00:00:00+00:00", 1.0, True, "virtio 1.4", "0.1")
LATE = Run("2026-01-02T00:00:00+00:00", 1.0, True, "virtio 1.4", "0.1")
CLAUSE = "2.1.2-D-01"


def results(run: Run, *tests: Test, columns: tuple[Column, ...] = (PCI_OLD,)) -> Results:
    statements = {name: row(name) for test in tests for name in test.statements}
    return Results([run], list(columns), statements, {test.id: test for test in tests})


def test_shards_of_a_run_are_one_column() -> None:
    first = results(EARLY, a_test("test_a", CLAUSE, old=kept()))
    second = results(LATE, a_test("test_b", "2.4.1-D-02", old=broken()))

    both = merged([second, first])

    assert [column.id for column in both.columns] == [PCI_OLD.id]
    assert both.columns[0].runs == [0, 1]
    assert both.runs == [EARLY, LATE]
    assert {name: of_row[PCI_OLD.id] for name, of_row in both.verdicts().items()} == {
        CLAUSE: Verdict.KEPT,
        "2.4.1-D-02": Verdict.BROKEN,
    }


def test_two_versions_of_a_target_stand_side_by_side() -> None:
    first = results(
        EARLY, a_test("test_a", CLAUSE, old=kept(), other=kept()), columns=(PCI_OLD, OTHER)
    )
    second = results(LATE, a_test("test_a", CLAUSE, new=broken()), columns=(PCI_NEW,))

    both = merged([first, second])

    assert [column.id for column in both.columns] == [PCI_OLD.id, PCI_NEW.id, OTHER.id]
    assert both.columns[1].runs == [1]
    assert len(both.tests) == 1
    assert both.verdicts()[CLAUSE][PCI_NEW.id] is Verdict.BROKEN


@pytest.mark.parametrize(
    ("earlier", "later", "counts"),
    [
        (broken("1"), kept(), "1"),
        (kept(), broken("2"), "2"),
        (broken("1"), broken("2"), "2"),
        (skipped("no"), kept(), ""),
    ],
)
def test_of_a_test_that_ran_twice_the_worst_counts(
    earlier: Result, later: Result, counts: str
) -> None:
    both = merged(
        [
            results(EARLY, a_test("test_a", CLAUSE, old=earlier)),
            results(LATE, a_test("test_a", CLAUSE, old=later)),
        ]
    )

    (test,) = both.tests.values()
    assert test.results[PCI_OLD.id].seen == counts


def test_the_words_of_the_later_run_stay_and_facts_of_both() -> None:
    first = results(EARLY, a_test("test_a", CLAUSE, old=kept()))
    second = results(LATE, a_test("test_a", CLAUSE, old=kept()))
    second.rows[CLAUSE] = replace(second.rows[CLAUSE], text="Better words.")
    second.columns[0] = replace(PCI_OLD, facts={"qemu": "QEMU 7.2.22", "accelerator": "kvm"})
    first.columns[0] = replace(PCI_OLD, facts={"accelerator": "tcg"})

    both = merged([second, first])

    assert both.rows[CLAUSE].text == "Better words."
    assert both.columns[0].facts == {"accelerator": "tcg; kvm", "qemu": "QEMU 7.2.22"}


def test_a_file_given_twice_counts_once() -> None:
    assert merged([made_up(), made_up()]) == merged([made_up()])


def test_parts_are_left_as_they_were() -> None:
    first = results(EARLY, a_test("test_a", CLAUSE, old=kept()))
    merged([first, results(LATE, a_test("test_a", CLAUSE, old=broken()))])

    assert first == results(EARLY, a_test("test_a", CLAUSE, old=kept()))


NOTHING = Result(Verdict.NOT_RUN)
TROUBLE = Result(Verdict.ERROR, seen="QEMU died")


@pytest.mark.parametrize(
    ("old", "new", "direction"),
    [
        (kept(), broken(), Direction.WORSE),
        (deviates(), broken(), Direction.WORSE),
        (skipped("no"), deviates(), Direction.WORSE),
        (kept(), TROUBLE, Direction.WORSE),
        (kept(), skipped("no"), Direction.LOST),
        (broken(), NOTHING, Direction.LOST),
        (broken(), deviates(), Direction.BETTER),
        (TROUBLE, kept(), Direction.BETTER),
        (NOTHING, kept(), Direction.BETTER),
        (kept(), kept(), None),
        (skipped("no"), NOTHING, None),
    ],
)
def test_a_change_has_a_direction(old: Result, new: Result, direction: Direction | None) -> None:
    name = "2.4.1-D-02"  # the statement of `deviates`
    before = results(EARLY, a_test("test_a", name, old=old))
    after = results(LATE, a_test("test_a", name, old=new))

    found = difference(before, after)

    assert [change.direction for change in found.changes] == ([direction] if direction else [])
    assert found.regressed is (direction in (Direction.WORSE, Direction.LOST))


def test_another_version_of_a_target_is_compared_with_the_one_before() -> None:
    before = results(EARLY, a_test("test_a", CLAUSE, old=kept()))
    after = results(LATE, a_test("test_a", CLAUSE, new=broken()), columns=(PCI_NEW,))

    found = difference(before, after)

    assert found.pairs == [(PCI_OLD.id, PCI_NEW.id)]
    assert list(lines(found)) == [
        "pci (qemu 7.2.22) -> pci (qemu 10.0.2)",
        "",
        "worse: 1",
        "  2.1.2-D-01, MUST, pci (qemu 10.0.2): kept -> broken: 513",
    ]


def test_but_not_if_there_are_several_that_it_could_be() -> None:
    before = results(EARLY, a_test("test_a", CLAUSE, old=kept()))
    newer = Column("pci", {"qemu": "10.1.0"})
    after = results(LATE, a_test("test_a", CLAUSE, new=broken()), columns=(PCI_NEW, newer))

    found = difference(before, after)

    assert found.pairs == []
    assert (found.gone, found.added) == ([PCI_OLD.id], [PCI_NEW.id, newer.id])
    assert not found.regressed


def test_the_same_version_is_compared_with_itself_where_both_have_it() -> None:
    before = results(EARLY, a_test("test_a", CLAUSE, old=kept()))
    after = results(
        LATE, a_test("test_a", CLAUSE, old=kept(), new=broken()), columns=(PCI_OLD, PCI_NEW)
    )

    found = difference(before, after)

    assert found.pairs == [(PCI_OLD.id, PCI_OLD.id)]
    assert found.added == [PCI_NEW.id]
    assert list(lines(found))[-1] == "no verdict has changed"


def test_the_worst_comes_first() -> None:
    before = results(EARLY, a_test("a", "2.1.2-D-01", "2.4.1-D-02", "6.2-D-01", old=kept()))
    after = results(
        LATE,
        a_test("a", "6.2-D-01", old=broken()),
        a_test("b", "2.4.1-D-02", old=broken()),
        a_test("c", "2.1.2-D-01", old=TROUBLE),
    )

    found = difference(before, after)

    assert [change.row.id for change in found.changes] == ["2.4.1-D-02", "6.2-D-01", "2.1.2-D-01"]
