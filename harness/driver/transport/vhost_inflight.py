"""The buffer in which a vhost-user back-end notes the requests that it works on.

The back-end makes it (GET_INFLIGHT_FD). The front-end keeps it when the back-end dies, and gives it
to the next one (SET_INFLIGHT_FD), which finds there what has to be done again.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from harness.driver.errors import DriverError
from harness.driver.transport.vhost_channel import Channel
from harness.virtio.vhost_user import INFLIGHT, FrontEndRequest


@dataclass(frozen=True)
class Inflight:
    """Shared memory for requests in flight: `size` bytes at `offset` of the file `fd`.

    It is for `queues` virtqueues of `queue_size` descriptors each.
    """

    fd: int
    size: int
    offset: int
    queues: int
    queue_size: int

    @classmethod
    def get(cls, channel: Channel, queues: int, queue_size: int) -> Inflight | None:
        """Ask a back-end for a buffer. Return None if it answers with a size of 0, for no buffer.

        DriverError for an answer that has no file, or that is of another length.
        """
        asked = INFLIGHT.pack(0, 0, queues, queue_size)
        answer, fd = channel.ask_for_file(FrontEndRequest.GET_INFLIGHT_FD, asked)
        if len(answer) == INFLIGHT.size:
            size, offset, _, _ = INFLIGHT.unpack(answer)
            if fd is not None and size:
                return cls(fd, size, offset, queues, queue_size)
            if fd is None and not size:
                return None
        if fd is not None:
            os.close(fd)
        raise DriverError(
            f"{channel.path} answered GET_INFLIGHT_FD with {len(answer)} bytes and"
            f" {'no' if fd is None else 'a'} file: {answer.hex(' ')}"
        )

    def send(self, channel: Channel) -> None:
        """Give the buffer to a back-end. RefusedError if it does not take it."""
        payload = INFLIGHT.pack(self.size, self.offset, self.queues, self.queue_size)
        channel.tell(FrontEndRequest.SET_INFLIGHT_FD, payload, [self.fd])

    def close(self) -> None:
        """Close the file. The back-end has its own duplicate."""
        os.close(self.fd)
