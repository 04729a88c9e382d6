"""Fixtures of the tests of the vhost-user protocol."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from conformance.vhost_user.front_end import SIMPLE, FrontEnd
from harness.virtio.vhost_user import ProtocolFeature

if TYPE_CHECKING:
    from harness.targets import Disk


class MakeFront(Protocol):
    """The type of the fixture `front`."""

    disk: Disk | None

    def __call__(
        self,
        *,
        protocol: Iterable[ProtocolFeature] = SIMPLE,
        needs: Iterable[ProtocolFeature] = (),
        **fields: Any,
    ) -> FrontEnd:
        """Return a front-end that is connected to a disk with these fields of `DiskSpec`.

        It accepts the protocol features `protocol` and `needs`; without one of the latter the test
        is skipped. A second call connects to the same disk: the first front-end has to be closed.
        """
        ...


class _Fronts:
    """Front-ends of one test, one after the other, on one disk."""

    def __init__(self, plug: Callable[..., Disk]) -> None:
        self._plug = plug
        self.disk: Disk | None = None
        self.connected: list[FrontEnd] = []

    def __call__(
        self,
        *,
        protocol: Iterable[ProtocolFeature] = SIMPLE,
        needs: Iterable[ProtocolFeature] = (),
        **fields: Any,
    ) -> FrontEnd:
        if self.disk is None:
            self.disk = self._plug(start=False, **fields)
        front = FrontEnd(self.disk.hand_over(), protocol, needs)
        self.connected.append(front)
        return front


@pytest.fixture
def front(plug: Callable[..., Disk]) -> Iterator[MakeFront]:
    """Factory of front-ends, whose messages are the test's."""
    fronts = _Fronts(plug)
    yield fronts
    for connection in fronts.connected:
        connection.close()
