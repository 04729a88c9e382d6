"""The page about the cases of another suite names only tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "peer-cases.md"


def test_every_test_that_the_page_names_exists() -> None:
    named = set(re.findall(r"`([a-z_/]+\.py)::(test_\w+)`", PAGE.read_text(encoding="utf-8")))
    assert named

    missing = [
        f"{file}::{name}"
        for file, name in sorted(named)
        if f"def {name}(" not in (ROOT / "conformance" / file).read_text(encoding="utf-8")
    ]
    assert missing == []


def test_every_case_has_a_test_or_a_reason() -> None:
    rows = re.findall(r"^\| ([A-Z]+\d+) \| (.*?) \| (.*?) \|$", PAGE.read_text("utf-8"), re.M)

    assert len(rows) == 103 + 131
    assert [case for case, _, answer in rows if not answer.strip()] == []
