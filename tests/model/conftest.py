"""The model's process for the tests that look at it from elsewhere than the target."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from harness.targets.model import ModelProcess


@pytest.fixture
def model() -> Iterator[ModelProcess]:
    process = ModelProcess()
    yield process
    process.stop()
