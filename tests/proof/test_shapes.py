"""No test of the suite blames a conforming device: a fixed share of the shapes.

`tox -e shapes` tries all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import conformance
from harness.proof.forks import ForkServer
from harness.proof.shapes import OWNED, SHARE, Shape, ask, wrong

SUITE = Path(conformance.__file__).parent


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    """The process that has collected the suite."""
    server = ForkServer("harness.proof.shapes", SUITE)
    yield server
    server.close()


@pytest.mark.parametrize("name", SHARE)
def test_no_shape_of_the_share_is_blamed(server: ForkServer, name: str) -> None:
    result = ask(server, Shape((name,), OWNED))

    assert wrong([result]) == []
    assert result.passed > 50
