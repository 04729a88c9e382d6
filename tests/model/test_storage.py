"""The model's storage: what a flush waits for."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from harness.diskspec import SECTOR, Fault
from harness.model import main
from harness.model.loop import Loop
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
def test_a_flush_waits_for_the_disk_of_the_host_only_if_it_syncs(
    path: str, synced: list[int], syncs: bool
) -> None:
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


def test_only_a_file_that_somebody_else_keeps_is_synced(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    syncing: list[bool] = []

    def storage(*_: Any, syncs: bool = True) -> Storage:
        syncing.append(syncs)
        raise OSError("enough is known")

    monkeypatch.setattr(main, "Storage", storage)
    ours, theirs = socket.socketpair()
    with ours:
        control = main.Control(Loop(), theirs.detach())
        answer = control._obey({"do": "add", "name": "a", "spec": {"capacity": 8}, "file": path})
        control._end()
    with pytest.raises(SystemExit, match="enough is known"):
        main.serve(
            Loop(), str(tmp_path / "s"), Path(path), [], {}, main.accept("vhost-user", None), False
        )

    assert answer == {"error": "enough is known"}
    assert syncing == [False, True]
