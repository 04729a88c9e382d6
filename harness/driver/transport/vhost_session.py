"""A connection to a vhost-user block back-end, from the first message to the last."""

from __future__ import annotations

from collections.abc import Collection

from harness.driver.errors import NoDeviceError
from harness.driver.trace import Trace
from harness.driver.transport.vhost_channel import BackEndChannel, Channel
from harness.driver.transport.vhost_ring import VhostRing
from harness.virtio.vhost_user import (
    CONFIG,
    FEATURE_PROTOCOL,
    MAX_QUEUES,
    U64,
    FrontEndRequest,
    ProtocolFeature,
)

CONFIG_SIZES = (96, 72, 60, 36)
"""Sizes of `struct virtio_blk_config` so far, in bytes: a back-end may support only one."""


ACCEPTED = (
    ProtocolFeature.MQ,
    ProtocolFeature.REPLY_ACK,
    ProtocolFeature.BACKEND_REQ,
    ProtocolFeature.CONFIG,
    ProtocolFeature.INFLIGHT_SHMFD,
    ProtocolFeature.RESET_DEVICE,
    ProtocolFeature.CONFIGURE_MEM_SLOTS,
    ProtocolFeature.STATUS,
)
"""Protocol features that are accepted when they are offered."""

OPTIONAL = frozenset(ACCEPTED) - {ProtocolFeature.CONFIG}
"""Protocol features that a front-end for a block device need not accept."""


class Session:
    """A negotiated connection, with its features and virtqueues.

    Raises DriverError if negotiation fails, NoDeviceError if the peer is not a
    block back-end. Protocol features in `without` are not accepted.
    """

    def __init__(
        self,
        path: str,
        timeout: float,
        without: Collection[ProtocolFeature] = (),
        trace: Trace | None = None,
    ) -> None:
        self.channel = Channel(path, timeout, trace)
        self._without = without
        self.requests: BackEndChannel | None = None
        self.rings: dict[int, VhostRing] = {}
        self.offered = 0
        self.protocol: frozenset[ProtocolFeature] = frozenset()
        self.queues = 1
        self.config_size = 0
        self.has_memory = False
        self.memory_slots: int | None = None
        """Regions of memory that the back-end takes (CONFIGURE_MEM_SLOTS), None if it says none."""
        try:
            self._negotiate()
            self._find_config_size()
        except BaseException:
            self.close()
            raise

    def _negotiate(self) -> None:
        channel = self.channel
        channel.tell(FrontEndRequest.SET_OWNER)
        self.offered = channel.ask_number(FrontEndRequest.GET_FEATURES)
        if self.offered & FEATURE_PROTOCOL:
            bits = channel.ask_number(FrontEndRequest.GET_PROTOCOL_FEATURES)
            self.protocol = frozenset(
                member for member in ACCEPTED if bits & member.mask and member not in self._without
            )
            accepted = sum(member.mask for member in self.protocol)
            channel.tell(FrontEndRequest.SET_PROTOCOL_FEATURES, U64.pack(accepted))
            channel.acknowledged = ProtocolFeature.REPLY_ACK in self.protocol
        if ProtocolFeature.CONFIG not in self.protocol:
            raise NoDeviceError(
                f"{channel.path} offers no configuration space (PROTOCOL_F_CONFIG):"
                " a block back-end needs one"
            )
        if ProtocolFeature.MQ in self.protocol:
            self.queues = min(channel.ask_number(FrontEndRequest.GET_QUEUE_NUM), MAX_QUEUES)
        if ProtocolFeature.CONFIGURE_MEM_SLOTS in self.protocol:
            self.memory_slots = channel.ask_number(FrontEndRequest.GET_MAX_MEM_SLOTS)
            if not self.memory_slots:
                raise NoDeviceError(f"{channel.path} has no slot for memory (GET_MAX_MEM_SLOTS)")
        if ProtocolFeature.BACKEND_REQ in self.protocol:
            self.requests = BackEndChannel()
            theirs = self.requests.theirs
            channel.tell(FrontEndRequest.SET_BACKEND_REQ_FD, fds=[theirs.fileno()])
            theirs.close()

    def _find_config_size(self) -> None:
        for size in CONFIG_SIZES:
            if self.config(size):
                self.config_size = size
                return
        raise NoDeviceError(f"{self.channel.path} shows no configuration of a block device")

    def config(self, size: int) -> bytes:
        """Return the first `size` bytes of the configuration space, b"" if it has fewer."""
        asked = CONFIG.pack(0, size, 0) + bytes(size)
        answer = self.channel.ask(FrontEndRequest.GET_CONFIG, asked)
        return answer[CONFIG.size :] if len(answer) == len(asked) else b""

    def close(self) -> None:
        """Close the connection."""
        if self.requests:
            self.requests.close()
        self.channel.close()
