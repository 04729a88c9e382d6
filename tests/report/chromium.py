"""Debian's Chromium without a window, for the tests of the page and the pictures in docs/."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

DEADLINE = 30.0
"""Seconds that the browser may take to load a page or to answer."""

OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

MISSING = [
    words
    for words, there in (
        ("apt-get install chromium", shutil.which("chromium")),
        ("apt-get install chromium-driver", shutil.which("chromedriver")),
        ("pip install 'selenium>=4.20,<5'", importlib.util.find_spec("selenium")),
    )
    if not there
]
"""Commands that install the missing parts."""


@contextmanager
def chromium(profile: Path) -> Iterator[Any]:
    """Start a browser with an empty profile directory, and end it with the block."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for option in (*OPTIONS, f"--user-data-dir={profile}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        browser.set_page_load_timeout(DEADLINE)
        browser.set_script_timeout(DEADLINE)
        yield browser
    finally:
        browser.quit()


def resize(browser: Any, width: int, height: int) -> None:
    """Set width and height of the page (CSS pixels), also below the smallest window."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
