"""The page in a headless Chromium: filters, links, widths, keys, print, and without scripts."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from chromium import MISSING, chromium, resize
from made_up import OTHER, made_up

from harness.report.page import rendered

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"needs a browser: {'; '.join(MISSING)}")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "matrix.html"
    path.write_text(rendered(made_up()), encoding="utf-8")
    return path.as_uri()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


SOON = 60.0
"""Seconds within which the page has reacted, also on a busy machine."""


class Shown:
    """The page as a user sees it."""

    def __init__(self, browser: Any) -> None:
        self._browser = browser

    def js(self, script: str, *arguments: object) -> Any:
        return self._browser.execute_script(script, *arguments)

    def find(self, selector: str) -> Any:
        return self._browser.find_element("css selector", selector)

    def statements(self) -> list[str]:
        """Return the ids of the visible rows."""
        return self.js(
            "return [...document.querySelectorAll('.r')]"
            ".filter((row) => row.offsetHeight).map((row) => row.id)"
        )

    def visible(self, selector: str) -> bool:
        return self.js("return document.querySelector(arguments[0]).offsetHeight > 0", selector)

    def choose(self, name: str, value: str) -> None:
        self.find(f"select[name={name}] option[value='{value}']").click()

    def wait(self, done: Callable[[], bool]) -> None:
        """Wait until the page has reacted: to a followed link or a reset it does so later."""
        deadline = time.monotonic() + SOON
        while not done():
            assert time.monotonic() < deadline, "the page does not react"
            time.sleep(0.05)

    def untick(self, name: str, *values: str) -> None:
        for value in values:
            self.find(f"input[name={name}][value='{value}']").click()


ALL = ["2.1.2-D-01", "2.4.1-D-02", "2.4.1-D-03", "2.7.4.1-D-01", "2.10.2-D-01", "5.2.6.2-D-01"]


@pytest.fixture
def shown(browser: Any, page: str) -> Iterator[Shown]:
    browser.set_window_size(1280, 900)
    browser.get("about:blank")
    for log in ("browser", "performance"):
        browser.get_log(log)  # drops older entries
    browser.get(page)
    yield Shown(browser)
    assert browser.get_log("browser") == []  # no error of the script, no refused request
    assert (
        browser.title == "virtio 1.4, block device: conformance"
    )  # a script in the evidence did not run


def test_all_statements_show_at_first(shown: Shown) -> None:
    assert shown.statements() == [*ALL[:5], "5.2.6-P-07", ALL[5]]
    assert shown.find("output").text == "7 of 7 statements"


def test_nothing_is_asked_of_anybody(browser: Any, shown: Shown, page: str) -> None:
    shown.find("[id='2.1.2-D-01'] td.b").click()
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]

    asked = [
        entry["params"] for entry in messages if entry["method"] == "Network.requestWillBeSent"
    ]
    assert [entry["request"]["url"] for entry in asked] == [page]


def test_a_filter_by_text(shown: Shown) -> None:
    shown.find("input[name=q]").send_keys("TEST_MEMORY")

    assert shown.statements() == ["2.10.2-D-01"]
    assert shown.find("output").text == "1 of 7 statements"
    assert not shown.visible("tbody[data-s='2.1.2']")
    assert shown.visible("tbody[data-s='2.10.2']")


def test_a_filter_by_text_finds_reasons_but_not_evidence(shown: Shown) -> None:
    shown.find("input[name=q]").send_keys("after a reset")
    assert shown.statements() == ["2.4.1-D-02"]

    shown.find("input[name=q]").clear()
    shown.find("input[name=q]").send_keys("owned")
    assert shown.statements() == []


def test_a_trace_shows_when_its_link_is_clicked(shown: Shown) -> None:
    seen = "return document.querySelector('.q .x').checkVisibility()"
    shown.find("[id='2.1.2-D-01'] td.b").click()
    assert not shown.js(seen)

    shown.find(".m a[href^='#r']").click()

    shown.wait(lambda: shown.js(seen))
    assert shown.find(".q .x").text.endswith("used 0 of virtqueue 0, length 513")


def test_a_filter_by_level(shown: Shown) -> None:
    shown.choose("l", "SHOULD")

    assert shown.statements() == ["2.7.4.1-D-01"]


def test_a_filter_by_section_takes_what_is_below_it(shown: Shown) -> None:
    shown.choose("s", "2")
    assert shown.statements() == ALL[:5]

    shown.choose("s", "2.1")  # 2.10 is not below 2.1
    assert shown.statements() == ["2.1.2-D-01"]


def test_a_filter_by_verdict(shown: Shown) -> None:
    shown.untick("v", "k", "s", "n")

    assert shown.statements() == ["2.1.2-D-01", "2.4.1-D-02", "2.7.4.1-D-01", "2.10.2-D-01"]


def test_a_target_that_is_not_shown_does_not_count(shown: Shown) -> None:
    shown.find("#filters details summary").click()
    shown.untick("c", "2")
    shown.untick("v", "k", "s", "n", "d", "a", "e")

    assert shown.statements() == []  # statements are broken on the third target only
    assert not shown.visible("#matrix thead th:nth-child(4)")
    assert shown.visible("#matrix thead th:nth-child(3)")


def test_filters_together_and_all_again(shown: Shown) -> None:
    shown.choose("s", "2.4")
    shown.untick("v", "d")
    assert shown.statements() == ["2.4.1-D-02", "2.4.1-D-03"]
    shown.find("input[name=q]").send_keys("D-03")
    assert shown.statements() == ["2.4.1-D-03"]

    shown.find("button[type=reset]").click()

    # The page filters again after the event that resets the form.
    shown.wait(lambda: len(shown.statements()) == 7)
    assert len(shown.statements()) == 7


def test_a_click_on_a_cell_shows_the_evidence(shown: Shown) -> None:
    assert not shown.visible("[id='2.1.2-D-01'] + .m")

    shown.find("[id='2.1.2-D-01'] td.b").click()

    assert shown.visible("[id='2.1.2-D-01'] + .m pre")
    assert "document.title='owned'" in shown.find("[id='2.1.2-D-01'] + .m pre").text
    shown.find("[id='2.1.2-D-01'] td.b").click()
    assert not shown.visible("[id='2.1.2-D-01'] + .m")


def test_the_keyboard_does_it_too(browser: Any, shown: Shown) -> None:
    from selenium.webdriver.common.keys import Keys

    box = "[id='2.1.2-D-01'] input"
    shown.js("document.querySelector(arguments[0]).focus()", box)
    browser.switch_to.active_element.send_keys(Keys.SPACE)
    assert shown.visible("[id='2.1.2-D-01'] + .m pre")

    reached = set()
    shown.js("document.activeElement.blur(); scrollTo(0, 0)")
    for _ in range(60):
        shown.find("body").send_keys(Keys.TAB)
        reached.add(
            shown.js("return document.activeElement.name || document.activeElement.tagName")
        )
    assert {"q", "l", "s", "v", "open", "A", "SUMMARY"} <= reached


def test_a_link_to_a_test_opens_its_source(shown: Shown) -> None:
    shown.find("[id='2.1.2-D-01'] td").click()
    shown.find("[id='2.1.2-D-01'] + .m h4 a").click()

    shown.wait(lambda: shown.visible("#t0 + pre"))
    assert "def test_start(plug)" in shown.find("#t0 + pre").text


def test_a_link_to_a_statement_opens_it(browser: Any, shown: Shown, page: str) -> None:
    browser.get("about:blank")
    browser.get(f"{page}#2.4.1-D-02")

    assert shown.visible("[id='2.4.1-D-02'] + .m")
    assert "it writes on after a reset" in shown.find("[id='2.4.1-D-02'] + .m .why").text


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_a_page_is_as_wide_as_its_window(browser: Any, shown: Shown, width: int) -> None:
    resize(browser, width, 800)
    try:
        shown.js("document.querySelectorAll('.r input').forEach((box) => box.click())")
        assert shown.js("return document.documentElement.scrollWidth") <= width
        cell = "return getComputedStyle(document.querySelector(arguments[0]), '::before').content"
        name = shown.js(cell, "[id='2.1.2-D-01'] td.b")
        assert name == ('"' + OTHER.name.replace('"', '\\"') + '"' if width < 700 else "none")
        assert shown.visible("#matrix thead") is (width > 700)
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_without_scripts_the_table_opens_and_no_filter_pretends_to_work(
    browser: Any, shown: Shown, page: str
) -> None:
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get("about:blank")
        browser.get(page)
        assert not shown.find("#filters").is_displayed()
        assert not shown.find("[id='2.1.2-D-01'] + .m").is_displayed()
        shown.find("[id='2.1.2-D-01'] label span").click()
        assert shown.find("[id='2.1.2-D-01'] + .m pre").is_displayed()
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def colours(shown: Shown) -> dict[str, tuple[float, float]]:
    """Return for each verdict the luminance of its background and of its text (WCAG 2)."""
    rgb = shown.js(
        "return Object.fromEntries([...'bedaksn'].map((code) => {"
        " const cell = document.querySelector('.legend .v.' + code);"
        " const style = getComputedStyle(cell);"
        " const ground = code === 'n' ? getComputedStyle(document.body) : style;"
        " return [code, [ground.backgroundColor, style.color]]}))"
    )

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in colour[4:-1].split(",")]
        linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    return {code: (luminance(ground), luminance(ink)) for code, (ground, ink) in rgb.items()}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_verdict_can_be_read(browser: Any, shown: Shown, scheme: str) -> None:
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    try:
        for code, pair in colours(shown).items():
            contrast = (max(pair) + 0.05) / (min(pair) + 0.05)
            assert contrast >= 4.5, f"{code}: {contrast:.1f}"
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_on_paper_there_is_the_table_and_no_control(browser: Any, shown: Shown) -> None:
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        assert not shown.visible("#filters")
        assert len(shown.statements()) == 7
        printed = browser.execute_cdp_cmd("Page.printToPDF", {"landscape": True})
        assert base64.b64decode(printed["data"]).startswith(b"%PDF-")
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
