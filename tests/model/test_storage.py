"""The model's storage: what a flush waits for."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from harness.diskspec import SECTOR, Fault
from harness.model.storage import Storage


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Give the list of descriptors that were passed to fdatasync()."""
    calls: list[int] = []
    monkeypatch.setattr(os, "fdatasync", calls.append)
    return calls


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Give a file of 8 sectors."""
    file = tmp_path / "disk"
    file.write_bytes(bytes(8 * SECTOR))
    return str(file)


@pytest.mark.parametrize("syncs", [True, False])
def test_a_flush_waits_for_the_disk_of_the_host(path: str, synced: list[int], syncs: bool) -> None:
    storage = Storage(path, False, (), syncs=syncs)
    storage.write(1, [memoryview(b"a" * SECTOR)])
    storage.flush()
    storage.close()

    assert len(synced) == syncs
    assert Path(path).read_bytes()[SECTOR : 2 * SECTOR] == b"a" * SECTOR


def test_a_fault_applies_to_a_flush_that_waits_for_nothing(path: str) -> None:
    storage = Storage(path, False, [Fault("flush", errno=errno.EIO)], syncs=False)
    storage.write(1, [memoryview(b"a" * SECTOR)])
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        storage.flush()
    storage.close()
