"""How the suite is spread over the workers of pytest-xdist."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_cmdline_main(config: pytest.Config) -> Iterator[None]:
    """With `-n` alone a worker that has done its share takes over from another one.

    A test takes milliseconds or seconds, a skipped one nothing, and those of a kind stand
    together: whatever was dealt out beforehand, one worker would idle at the end.
    """
    option = config.option
    if getattr(option, "numprocesses", None) and option.dist == "no":
        option.dist = "worksteal"
    return (yield)
