"""The page of the proof names tests, defects and statements that exist."""

from __future__ import annotations

import re
from pathlib import Path

import conformance
from harness.defects.catalogue import defects
from harness.virtio.catalogue import clauses

SUITE = Path(conformance.__file__).parent
PAGE = SUITE.parent / "docs" / "proof.md"
ROW = re.compile(r"^\| ([\w.-]+) \| `([\w-]+)`: .* \| `[\w-]+` \| (.*) \|$", re.MULTILINE)


def test_what_the_page_names_exists() -> None:
    tests = {
        name
        for file in SUITE.rglob("test_*.py")
        for name in re.findall(r"def (test_\w+)", file.read_text(encoding="utf-8"))
    }
    rows = ROW.findall(PAGE.read_text(encoding="utf-8"))
    named = {name for row in rows for name in re.findall(r"`(test_\w+)", row[2])}

    assert len(rows) > 300
    assert {row[0] for row in rows} - set(clauses()) == set()
    assert {row[1] for row in rows} - set(defects()) == set()
    assert named - tests == set()
