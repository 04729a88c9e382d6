"""Event descriptors of a virtqueue, and the messages that start and stop it in a back-end."""

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
"""Base of a packed virtqueue at its start: both positions 0, both wrap counters 1."""


def _taken(fd: int) -> int:
    """Read an eventfd: return how often it was signalled since the last read."""
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


class VhostRing:
    """A virtqueue for the back-end: layout, and eventfds for kick, call and error."""

    def __init__(self, layout: QueueLayout) -> None:
        self.layout = layout
        self._started = False
        flags = os.EFD_CLOEXEC | os.EFD_NONBLOCK
        self.kick, self.call, self.error = (os.eventfd(0, flags) for _ in range(3))

    @property
    def started(self) -> bool:
        """True after `start`."""
        return self._started

    def start(self, channel: Channel, base: int, user_offset: int, enable: bool) -> None:
        """Send the virtqueue to the back-end, which goes on at the position `base`.

        The user address of a ring is its bus address plus `user_offset`. `enable` is
        for a back-end with protocol features, where rings start disabled.
        """
        self._started = True
        layout = self.layout
        index = layout.index
        desc, device, driver = (
            area + user_offset for area in (layout.desc, layout.device, layout.driver)
        )
        # A back-end may signal a call descriptor when it receives it, in case a notification on
        # an earlier descriptor was lost. No buffer is used yet, so this signal is dropped.
        channel.tell_all_and_ask(
            [
                (FrontEndRequest.SET_VRING_NUM, VRING_STATE.pack(index, layout.size), ()),
                (FrontEndRequest.SET_VRING_BASE, VRING_STATE.pack(index, base), ()),
                (
                    FrontEndRequest.SET_VRING_ADDR,
                    VRING_ADDR.pack(index, 0, desc, device, driver, 0),
                    (),
                ),
                (FrontEndRequest.SET_VRING_ERR, U64.pack(index), [self.error]),
                (FrontEndRequest.SET_VRING_CALL, U64.pack(index), [self.call]),
            ],
            FrontEndRequest.GET_FEATURES,
        )
        _taken(self.call)
        kick = (FrontEndRequest.SET_VRING_KICK, U64.pack(index), [self.kick])
        ready = (FrontEndRequest.SET_VRING_ENABLE, VRING_STATE.pack(index, 1), ())
        channel.tell_all([kick, ready] if enable else [kick])

    def stop(self, channel: Channel) -> None:
        """Stop the virtqueue in the back-end, if it was started there."""
        if self._started:
            channel.ask(FrontEndRequest.GET_VRING_BASE, VRING_STATE.pack(self.layout.index, 0))

    def notify(self) -> None:
        """Signal the kick descriptor. A signal before the start stays in the descriptor."""
        os.eventfd_write(self.kick, 1)

    def take_calls(self) -> int:
        """Return how often the back-end has signalled used buffers since the last call."""
        return _taken(self.call)

    def take_errors(self) -> int:
        """Return how often the back-end has signalled an error since the last call."""
        return _taken(self.error)

    def close(self) -> None:
        """Close the descriptors. The back-end has its own duplicates."""
        for fd in (self.kick, self.call, self.error):
            os.close(fd)
