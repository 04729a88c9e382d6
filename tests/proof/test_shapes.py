"""No test of the suite blames a conforming device: a fixed share of the shapes.

`tox -e shapes` tries all of them.
"""

from __future__ import annotations

from pathlib import Path

import conformance
from harness.proof.shapes import OWNED, SHARE, parse, run, wrong

SUITE = Path(conformance.__file__).parent


def test_no_shape_of_the_share_is_blamed() -> None:
    shapes = [shape for text in SHARE for shape in parse(text) if shape.way == OWNED]
    found = run(shapes, SUITE, jobs=4, each=lambda result: None)

    assert len(found) == len(shapes), "a shape came to no result"
    assert all(result.passed > 50 for result in found)
    assert wrong(found) == []
