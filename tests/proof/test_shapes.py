"""No test of the suite blames a conforming device: a fixed share of the shapes.

`tox -e shapes` tries all of them.
"""

from __future__ import annotations

from pathlib import Path

import pytest

import conformance
from harness.proof.forks import ForkError
from harness.proof.shapes import OWNED, SHARE, Found, Shape, run, wrong

SUITE = Path(conformance.__file__).parent

Results = dict[str, Found | ForkError]


@pytest.fixture(scope="module")
def results() -> Results:
    """The result of each shape of the share. They wait much, so they run together."""
    found: Results = {}
    shapes = [Shape((name,), OWNED) for name in SHARE]
    run(shapes, SUITE, len(shapes), lambda shape, result: found.update({shape.label: result}))
    return found


@pytest.mark.parametrize("name", SHARE)
def test_no_shape_of_the_share_is_blamed(results: Results, name: str) -> None:
    result = results[name]

    assert isinstance(result, Found), result
    assert wrong([result]) == []
    assert result.passed > 50
