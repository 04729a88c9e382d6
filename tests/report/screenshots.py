"""Take the pictures of the matrix in docs/: python tests/report/screenshots.py PAGE.html."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from chromium import MISSING, chromium, resize

DOCS = Path(__file__).parents[2] / "docs"

OPEN = """
const row = document.querySelector(".r[data-v*=b], .r[data-v*=d], .r[data-v*=a], .r");
row.querySelector("input").click();
return row.id;
"""
"""Script that opens the first statement with a failure or deviation."""


def main(page: Path) -> None:
    """Overwrite docs/matrix-desktop.png and docs/matrix-phone.png."""
    with tempfile.TemporaryDirectory() as profile, chromium(Path(profile)) as browser:
        browser.get(page.absolute().as_uri())
        below = browser.execute_script("return document.querySelector('.matrix').offsetTop")
        resize(browser, 1280, below + 640)
        row = browser.execute_script(OPEN)
        take(browser, "matrix-desktop.png")
        resize(browser, 390, 844)
        browser.execute_script("document.getElementById(arguments[0]).scrollIntoView()", row)
        take(browser, "matrix-phone.png")


def take(browser: Any, name: str) -> None:
    """Save a picture of the visible page in docs/."""
    (DOCS / name).write_bytes(browser.get_screenshot_as_png())


if __name__ == "__main__":
    if MISSING:
        sys.exit("; ".join(MISSING))
    main(Path(sys.argv[1]))
