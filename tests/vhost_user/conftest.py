"""Back-ends for tests of the front-end: scripted ones, and qemu-storage-daemon."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from scripted import ScriptedBackEnd

from harness.driver.block import BlockDriver
from harness.driver.transport.vhost_user import VhostUser
from harness.machine.storage_daemon import StorageDaemon, find_storage_daemon


@pytest.fixture
def new_back_end(short_dir: Path) -> Iterator[Callable[..., ScriptedBackEnd]]:
    """Factory of scripted back-ends on `short_dir`/s, one at a time."""
    with ExitStack() as stack:

        def make(**options: Any) -> ScriptedBackEnd:
            back_end = ScriptedBackEnd(short_dir / "s", **options)
            stack.callback(back_end.close)
            return back_end

        yield make


@pytest.fixture
def back_end(new_back_end: Callable[..., ScriptedBackEnd]) -> ScriptedBackEnd:
    """A back-end that follows the protocol."""
    return new_back_end()


@pytest.fixture
def attach(short_dir: Path) -> Iterator[Callable[..., BlockDriver]]:
    """Function that attaches a driver to a socket, by default `short_dir`/s."""
    with ExitStack() as stack:

        def make(path: Path = short_dir / "s", **options: Any) -> BlockDriver:
            driver = BlockDriver(VhostUser(str(path), **options))
            stack.callback(driver.close)
            return driver

        yield make


@pytest.fixture(scope="module")
def shared_daemon() -> Iterator[StorageDaemon]:
    """A daemon that is shared by the tests that do not end it."""
    with StorageDaemon(find_storage_daemon()) as daemon:
        yield daemon
