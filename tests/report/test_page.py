"""The page as text: its contents; no text of a result becomes markup or a request."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from made_up import HOSTILE, OTHER, PCI_NEW, PCI_OLD, a_test, broken, kept, made_up, row

from harness.report.page import rendered
from harness.report.page.rows import LEAST, WHOLE
from harness.report.results import Results, Row
from harness.virtio.catalogue import clauses
from harness.virtio.sections import NAMES, SPECIFICATION, section_name, section_url

VOID = {"meta", "input", "br", "link", "img", "hr"}


class Page(HTMLParser):
    """Parser of a page's elements; it asserts that each is closed at the right place."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data):
        self.texts.setdefault(self._open[-1] if self._open else "", []).append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


@pytest.fixture
def results() -> Results:
    return made_up()


def test_a_row_says_what_each_target_comes_to(results: Results) -> None:
    page = Page(rendered(results))

    rows = {item["id"]: item["data-v"] for item in page.all("tr") if item.get("class") == "r"}
    assert rows == {
        "2.1.2-D-01": "kkb",
        "2.4.1-D-02": "dkn",
        "2.4.1-D-03": "skn",  # its test ended at the deviation of its other statement
        "2.7.4.1-D-01": "aks",
        "2.10.2-D-01": "esn",
        "5.2.6-P-07": "kkk",
        "5.2.6.2-D-01": "nnn",
    }


def test_a_row_says_why(results: Results) -> None:
    page = re.sub(r"<[^>]+>", "", rendered(results))

    assert "known deviation of pci (qemu 7.2.22): it writes on after a reset" in page
    assert "expected used &lt;= 1, seen used 513" in page
    assert ": the test ended at the known deviation from 2.4.1-D-02" in page
    assert "no test is possible: nothing shows it" in page
    assert "skipped on &quot;}*{color:red}&lt;b&gt;: it has no &lt;ring&gt;" in page
    assert "2.7.4.1 Framing" in page


def test_the_summary_says_how_bad_it_is(results: Results) -> None:
    page = re.sub(r"<[^>]+>", "", rendered(results))

    assert (
        "1 statement is broken, and not recorded as a known deviation, on 1 of 3 targets." in page
    )
    assert "Of 7 statements, 6 were tested; for 1 no test is possible" in page
    assert "2 of 4 tested" not in page
    del results.tests["suite/test_a.py::test_start"]
    results.runs[0] = replace(results.runs[0], complete=False)
    page = re.sub(r"<[^>]+>", "", rendered(results))
    assert "Nothing is broken except known deviations, on 3 targets." in page
    assert "A run was cut short:" in page


def test_a_trace_has_the_driver_on_the_left_and_the_rings_around_the_mark(results) -> None:
    text = rendered(results)
    page = Page(text)

    assert page.texts["caption"][:2] == ["Rings before the marked event", "Rings after it"]
    assert "<td>0.000100</td><td>notified virtqueue 0 &lt;b&gt;</td><td></td>" in text
    assert '<tr class="x"><td>0.000300</td><td></td><td>used 0 of virtqueue 0' in text
    assert '<td colspan="2">the test failed: 513</td>' in text
    assert "<td>queue 0 (split, 8)</td><td>0</td><td>[0] 0x5000+16</td><td>available</td>" in text
    folded = [item for item in page.all("details") if (item.get("id") or "").startswith("r")]
    assert folded
    assert all("open" not in item for item in folded)
    assert "no line of a trace" not in text


def test_nothing_of_a_console_or_a_name_is_markup(results: Results) -> None:
    text = rendered(results)
    page = Page(text)

    assert len(page.all("script")) == 1
    assert all("class" in item for item in page.all("b"))  # each of ours has one
    assert not set(re.findall(r"[\x00-\x08\x0b-\x1f\x7f]", text))
    (evidence,) = [item for item in page.texts["pre"] if "owned" in item]
    assert evidence == HOSTILE.replace("\x1b", "\ufffd").replace("\x00", "\ufffd")
    style = "".join(page.texts["style"])
    assert "color:red" not in style


def test_a_page_asks_for_nothing_from_elsewhere(results: Results) -> None:
    page = Page(rendered(results))

    assert not [item for _, item in page.found if "src" in item or "srcset" in item]
    assert not page.all("link") and not page.all("iframe")
    assert "url(" not in "".join(page.texts["style"])
    (policy,) = [
        item["content"]
        for item in page.all("meta")
        if item.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy is not None and policy.startswith("default-src 'none'; ")
    outside = {item["href"] for item in page.all("a") if not (item["href"] or "").startswith("#")}
    sections = {section_url(row.section) for row in results.rows.values()}
    assert outside == {"https://example.org/a/blob/abc/suite/test_a.py#L7", *sections}


def test_every_link_within_the_page_leads_somewhere(results: Results) -> None:
    page = Page(rendered(results))

    ids = [item["id"] for _, item in page.found if "id" in item]
    assert len(ids) == len(set(ids))
    inside = {item["href"] for item in page.all("a") if (item["href"] or "").startswith("#")}
    assert {f"#{item}" for item in ids} >= inside


@pytest.mark.parametrize("source", ["javascript:alert(1)//{file}", "", "ftp://x/{file}"])
def test_a_source_that_is_not_on_the_web_is_no_link(results: Results, source: str) -> None:
    results.runs[0] = replace(results.runs[0], source=source)

    page = Page(rendered(results))

    links = [item["href"] or "" for item in page.all("a")]
    assert all(link.startswith(("#", SPECIFICATION)) for link in links)
    assert "suite/test_a.py, line 7" in "".join(page.texts["p"])


def test_a_long_failure_keeps_its_start_and_its_end(results: Results) -> None:
    test = results.tests["suite/test_a.py::test_start"]
    test.results[OTHER.id] = broken(evidence="START" + "x" * 10 * WHOLE + "END")

    (evidence,) = [item for item in Page(rendered(results)).texts["pre"] if "START" in item]

    assert evidence.endswith("END")
    assert f"[{9 * WHOLE + 8} characters left out here; the results file has them]" in evidence
    assert len(evidence) < WHOLE + 200


def test_very_many_failures_are_cut_shorter() -> None:
    tests = [a_test(f"test_{n}", "2.1.2-D-01", old=broken(str(n), "y" * WHOLE)) for n in range(900)]
    results = Results([], [PCI_OLD], {"2.1.2-D-01": row("2.1.2-D-01")}, {t.id: t for t in tests})

    page = Page(rendered(results))

    evidence = [item for item in page.texts["pre"] if item.startswith("yy")]
    assert len(evidence) == 900
    assert LEAST < len(evidence[0]) < WHOLE / 3


def test_results_that_say_the_same_are_said_once() -> None:
    test = a_test("test_a", "2.1.2-D-01", old=kept(), new=kept())
    one_row = {"2.1.2-D-01": row("2.1.2-D-01")}

    page = rendered(Results([], [PCI_OLD, PCI_NEW], one_row, {test.id: test}))

    assert page.count("<li>") == 1
    assert "on all 2 targets" in page


def test_hardening_is_kept_apart() -> None:
    rows = {
        "2.1.2-D-01": row("2.1.2-D-01"),
        "2.7: odd": Row("2.7: odd", "2.7", "hardening", "device", "odd", kind="hardening"),
        "2.7: loop": Row("2.7: loop", "2.7", "hardening", "device", "loop", kind="hardening"),
    }
    crashed = replace(broken(), hardening={"verdict": "crashed"})
    served = replace(kept(), hardening={"verdict": "served"})
    tests = [
        a_test("test_a", "2.1.2-D-01", old=kept()),
        a_test("test_odd", "2.7: odd", old=served),
        a_test("test_loop", "2.7: loop", old=crashed),
    ]

    page = rendered(Results([], [PCI_OLD], rows, {test.id: test for test in tests}))

    words = re.sub(r"<[^>]+>", "", page)
    assert "Nothing is broken except known deviations, on 1 target." in words
    assert "Of 1 statement, 1 were tested." in words
    assert "of 2 kinds tried, 1 did no harm on any target." in words
    assert "1 of 1 tested" in words
    assert "kept on pci: served" in words
    assert "broken on pci: crashed" in words


def test_a_run_of_nothing_is_a_page_that_says_so() -> None:
    page = rendered(Results([], [], {"2.1.2-D-01": row("2.1.2-D-01")}, {}))

    Page(page)
    assert "Nothing was tested." in page


def test_every_section_with_a_statement_has_a_name_near() -> None:
    for clause in clauses().values():
        depth = clause.section.count(".")
        assert section_name(clause.section) != NAMES[clause.section.split(".")[0]] or depth < 1


def test_a_section_that_only_says_whom_it_binds_is_called_as_the_one_around_it() -> None:
    assert section_name("2.7.5.3.2") == "Indirect descriptors"
    assert section_name("99.1") == ""
