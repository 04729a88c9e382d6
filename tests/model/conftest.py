"""The model's process, for tests that do not use the target."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from harness.targets.model import ModelProcess


@pytest.fixture
def model() -> Iterator[ModelProcess]:
    process = ModelProcess()
    yield process
    process.stop()
