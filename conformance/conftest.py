"""Distribution of the suite over the workers of pytest-xdist, and fixtures of several modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conformance.administration import Members
    from harness.targets import Disk


@pytest.hookimpl(wrapper=True)
def pytest_cmdline_main(config: pytest.Config) -> Iterator[None]:
    """Set `--dist worksteal` when the user gave `-n` without `--dist`.

    Tests differ much in duration, and tests of similar duration are neighbours. With a fixed
    distribution one worker would be idle at the end.
    """
    option = config.option
    if getattr(option, "numprocesses", None) and option.dist == "no":
        option.dist = "worksteal"
    return (yield)


@pytest.fixture
def owner_fields() -> dict[str, Any]:
    """Return the fields of the disk that `members` starts, for a test to replace."""
    return {}


@pytest.fixture
def members(plug: Callable[..., Disk], owner_fields: dict[str, Any]) -> Iterator[Members]:
    """A started device with one enabled virtual function, which is disabled after the test."""
    from conformance.administration import Members, owner

    found = Members(*owner(plug, **owner_fields))
    yield found
    found.capability.disable()
