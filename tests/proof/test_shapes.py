"""No test of the suite blames a conforming device: a fixed share of the shapes.

`tox -e shapes` tries all of them.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

import conformance
from harness.proof.forks import ForkError
from harness.proof.shapes import OWNED, SHARE, Found, Shape, recorded, run, wrong

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


def test_a_line_that_is_no_result_is_named(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    result = Found(Shape(("used-length-0",), OWNED), 300, 0, 0, 0, 20, (), 1.5)
    file.write_text(json.dumps(asdict(result)) + "\n")
    assert recorded(file) == {result.shape: result}

    file.write_text(file.read_text() + '{"shape": {"whims": ["used-')
    with pytest.raises(
        ValueError, match=r"results\.jsonl:2: no result of a shape: delete the line"
    ):
        recorded(file)
    assert recorded(tmp_path / "missing") == {}
