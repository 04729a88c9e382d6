"""One virtqueue's event descriptors, and the messages that start and stop it in a back-end."""

from __future__ import annotations

import os

from harness.driver.interface import QueueLayout
from harness.driver.transport.vhost_channel import Channel
from harness.virtio.vhost_user import (
    U64,
    VRING_ADDR,
    VRING_STATE,
    FrontEndRequest,
)

PACKED_BASE = 1 << 15 | 1 << 31
"""Both positions 0 with both wrap counters 1, as the base of a packed virtqueue."""


def _taken(fd: int) -> int:
    """How often an eventfd was signalled since the last look."""
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


class VhostRing:
    """A virtqueue as the back-end gets it: layout, and eventfds for kick, call and error."""

    def __init__(self, layout: QueueLayout) -> None:
        self.layout = layout
        self._started = False
        flags = os.EFD_CLOEXEC | os.EFD_NONBLOCK
        self.kick, self.call, self.error = (os.eventfd(0, flags) for _ in range(3))

    def start(self, channel: Channel, packed: bool, user_offset: int, enable: bool) -> None:
        """Tell the back-end all about the virtqueue.

        A ring's own address is the bus address plus `user_offset`. `enable` if
        rings start disabled, which protocol features bring with them.
        """
        self._started = True
        layout = self.layout
        index = layout.index
        desc, device, driver = (
            area + user_offset for area in (layout.desc, layout.device, layout.driver)
        )
        tell = channel.tell
        tell(FrontEndRequest.SET_VRING_NUM, VRING_STATE.pack(index, layout.size))
        tell(FrontEndRequest.SET_VRING_BASE, VRING_STATE.pack(index, PACKED_BASE if packed else 0))
        tell(FrontEndRequest.SET_VRING_ADDR, VRING_ADDR.pack(index, 0, desc, device, driver, 0))
        tell(FrontEndRequest.SET_VRING_ERR, U64.pack(index), [self.error])
        tell(FrontEndRequest.SET_VRING_CALL, U64.pack(index), [self.call])
        # A back-end may signal a call descriptor as it gets it, lest a notification that was
        # due on an earlier one be lost. Nothing is due yet: this announces no used buffer.
        channel.ask_number(FrontEndRequest.GET_FEATURES)
        _taken(self.call)
        tell(FrontEndRequest.SET_VRING_KICK, U64.pack(index), [self.kick])
        if enable:
            tell(FrontEndRequest.SET_VRING_ENABLE, VRING_STATE.pack(index, 1))

    def stop(self, channel: Channel) -> None:
        """Make the back-end let go of the virtqueue, if it has it."""
        if self._started:
            channel.ask(FrontEndRequest.GET_VRING_BASE, VRING_STATE.pack(self.layout.index, 0))

    def notify(self) -> None:
        """Kick. One before the start is not lost: it waits in the descriptor."""
        os.eventfd_write(self.kick, 1)

    def take_calls(self) -> int:
        """How often the back-end has signalled used buffers since the last look."""
        return _taken(self.call)

    def take_errors(self) -> int:
        """How often the back-end has signalled an error since the last look."""
        return _taken(self.error)

    def close(self) -> None:
        """Close the descriptors; the back-end has duplicates of its own."""
        for fd in (self.kick, self.call, self.error):
            os.close(fd)
