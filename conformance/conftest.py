"""Distribution of the suite over the workers of pytest-xdist."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


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
