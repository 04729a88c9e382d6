"""Groups of failures by what they have in common: the property of requests, or the error's text."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from harness.driver.flight import Sent
from harness.report.causes import causes, lines, plain_text
from harness.report.page import rendered
from harness.report.results import Column, Result, Results, Run, Test, Verdict, dumped, parsed

RUN = Run("2025-01-01T00:00:00+00:00", 1.0, True, "virtio 1.4", "0.1")

IN = Sent(0, room=512, align=4096, elements=3, status=0, used=513)
OUT = Sent(1, size=512, align=4096, elements=3, status=0, used=1)
FLUSH = Sent(4, elements=2, status=0, used=1)
GET_ID = Sent(8, room=20, align=16, elements=3, status=0, used=21)


def failing(
    *requests: Sent, seen: str = "1 is 0", verdict: Verdict = Verdict.BROKEN, name: str = ""
) -> tuple[str, Result]:
    """Return the name and the result of a failed test that has sent these requests last."""
    return name, Result(verdict, seen=seen, requests=list(requests))


def results_of(*failed: tuple[str, Result], served: tuple[Sent, ...] = ()) -> Results:
    """Return results with these failures, and with requests that other tests sent."""
    column = Column("model", served=list(served))
    tests = {}
    for number, (name, result) in enumerate(failed):
        node = f"test_it.py::{name or f'test_{number}'}"
        tests[node] = Test(node, "test_it.py", 1, [], results={column.id: result})
    return Results([RUN], [column], {}, tests)


def texts(results: Results) -> list[tuple[int, str]]:
    """Return the size and the text of each group."""
    return [(len(cause.tests), cause.text) for cause in causes(results)]


def test_unaligned_buffers_are_the_cause_if_aligned_ones_are_served() -> None:
    wrong = [replace(kind, align=align, status=1) for kind in (IN, OUT) for align in (16, 256)]
    results = results_of(*map(failing, wrong), served=(IN, OUT, GET_ID, FLUSH))

    assert texts(results) == [
        (
            4,
            "IN and OUT requests with buffers that are not aligned to 512 bytes end with IOERR",
        )
    ]


def test_without_served_requests_only_the_type_is_the_cause() -> None:
    wrong = [replace(IN, align=align, status=1) for align in (16, 256)]

    assert texts(results_of(*map(failing, wrong), served=(GET_ID,))) == [
        (2, "IN requests end with IOERR")
    ]


def test_the_request_at_which_the_device_died_is_the_cause_and_the_first_test_is_named() -> None:
    last = replace(GET_ID, status=-1, used=-1)
    seen = "the vhost-user back-end at /tmp/x{}/disk0 closed the connection"
    results = results_of(
        *(
            failing(IN, *more, last, seen=seen.format(number), verdict=Verdict.ERROR)
            for number, more in enumerate([(OUT,), ()])
        ),
        served=(IN, OUT, FLUSH),
    )
    (cause,) = causes(results)

    assert cause.line == (
        "GET_ID requests end the device, or its connection; first in test_it.py::test_0"
    )


def test_a_timeout_whose_evidence_has_the_end_of_the_process_is_the_death_of_the_device() -> None:
    last = replace(GET_ID, status=-1, used=-1)
    waited = "waited 10 s for 1 requests to complete"
    ended = "--- model, last words\nthe model exited with status 1\n"
    alive = "--- QEMU, last words\nQEMU is running\n"
    died, hung = (
        results_of(
            *(
                (name, replace(result, evidence=text))
                for name, result in [failing(last, seen=waited)]
            ),
            served=(IN,),
        )
        for text in (ended, alive)
    )

    assert texts(died) == [(1, "GET_ID requests end the device, or its connection")]
    assert texts(hung) == [(1, "GET_ID requests never complete")]


def test_failures_after_the_loss_of_a_device_are_one_line_with_the_first_test() -> None:
    lost = [failing(seen=f"QEMU {n} is gone: status {n}", verdict=Verdict.ERROR) for n in range(3)]
    assert list(lines(results_of(*lost), None)) == [
        "3 failures, probably 1 cause:",
        "  3: the device or its connection was lost: QEMU 0 is gone: status 0;"
        " first in test_it.py::test_0",
    ]


def test_a_type_on_other_queues_is_two_properties_together() -> None:
    wrong = [replace(FLUSH, queue=queue, status=1) for queue in (1, 3)]
    served = (FLUSH, replace(IN, queue=1), replace(IN, queue=3))

    assert texts(results_of(*map(failing, wrong), served=served)) == [
        (2, "FLUSH requests on queues other than 0 end with IOERR")
    ]


def test_a_used_length_is_wrong_in_every_request() -> None:
    wrong = [replace(sent, used=sent.used + 1) for sent in (IN, OUT, FLUSH, GET_ID)]
    refused = replace(IN, status=1, used=1)
    results = results_of(*map(failing, wrong), served=(*wrong, refused))

    assert texts(results) == [
        (
            4,
            "requests of every type have a used length that is always 1 larger than their"
            " device-writable buffers",
        )
    ]


def test_a_request_with_more_room_than_was_written_shows_no_used_length() -> None:
    wrong = [replace(sent, used=sent.used + 1) for sent in (IN, OUT, FLUSH, GET_ID)]
    roomy = replace(GET_ID, room=512, used=22)  # 20 bytes and the status, and one too many

    assert texts(results_of(*map(failing, wrong), served=(roomy,))) == [
        (
            4,
            "requests of every type have a used length that is always 1 larger than their"
            " device-writable buffers",
        )
    ]


def test_long_requests_that_never_complete_are_told_by_their_size() -> None:
    long = replace(OUT, size=(1 << 20) + 512, status=-1, used=-1)
    fits = replace(OUT, size=1 << 20)
    waited = "waited 10 s for 1 requests to complete"
    results = results_of(
        failing(fits, long, seen=waited),
        failing(replace(long, size=4 << 20), seen=waited),
        served=(IN, OUT),
    )
    (cause,) = causes(results)

    assert cause.text == "OUT requests with more than 1 MiB of data never complete"
    assert cause.test == "test_it.py::test_1"


def test_two_causes_are_two_groups_and_the_larger_is_first() -> None:
    wrong = [replace(FLUSH, queue=1, status=1)]
    wrong += [replace(IN, indirect=True, status=2), replace(OUT, indirect=True, status=2)]
    results = results_of(*map(failing, wrong), served=(IN, OUT, FLUSH, GET_ID))

    assert texts(results) == [
        (2, "IN and OUT requests with an indirect table end with UNSUPP"),
        (1, "FLUSH requests on queues other than 0 end with IOERR"),
    ]


def test_the_same_text_with_other_numbers_is_a_group_with_its_parameter() -> None:
    results = results_of(
        failing(seen="index 0x10 is not 17", name="test_a[packed-1]"),
        failing(seen="index 0x20 is not 33", name="test_b[packed-2]"),
    )
    results.tests["test_it.py::test_a[split-1]"] = Test(
        "test_it.py::test_a[split-1]",
        "test_it.py",
        1,
        [],
        results={"model": Result(Verdict.KEPT)},
    )
    assert texts(results) == [
        (
            2,
            "the same error, index N is not N"
            " (all with the parameter packed, which no passed test has)",
        )
    ]


def test_failures_with_nothing_in_common_are_not_listed_again() -> None:
    results = results_of(failing(seen="no interrupt"), failing(seen="wrong capacity"))

    assert list(lines(results, None)) == []
    assert len(causes(results)) == 2


def test_recorded_deviations_and_passed_tests_have_no_cause() -> None:
    wrong = replace(IN, status=1)
    results = results_of(
        *(failing(wrong, verdict=verdict) for verdict in (Verdict.DEVIATION, Verdict.KEPT))
    )
    assert causes(results) == []


@pytest.mark.parametrize("most", [0, 1])
def test_the_terminal_counts_the_causes_that_it_leaves_out(most: int) -> None:
    wrong = [replace(kind, status=1) for kind in (FLUSH, FLUSH)]
    texts_alike = [failing(seen="no interrupt") for _ in range(2)]
    results = results_of(*map(failing, wrong), *texts_alike, served=(IN, OUT, GET_ID))
    shown = list(lines(results, most))

    assert shown[0] == "4 failures, probably 2 causes:"
    assert shown[-1] == f"  {2 - most} other causes of several failures; -v lists all"
    assert len(shown) == 2 + most


def test_the_page_links_the_smallest_test_and_the_file_keeps_the_requests() -> None:
    wrong = replace(FLUSH, status=1)
    results = results_of(failing(IN, wrong), failing(wrong), served=(IN, OUT, GET_ID))
    page = rendered(results)

    assert "model: 2 failures, probably 1 cause:" in page
    assert 'FLUSH requests end with IOERR; see <a href="#t1">test_it.py::test_1</a>' in page
    assert texts(parsed(json.loads(dumped(results)))) == texts(results)


def test_numbers_addresses_and_paths_are_left_out_of_a_text() -> None:
    text = "used 513 of 0xff00 at /tmp/vblk-1a/disk0"
    assert plain_text(text) == "used N of N at PATH"
