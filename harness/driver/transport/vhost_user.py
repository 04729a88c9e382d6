"""Virtio over vhost-user: the driver is the front-end, the device a process at a UNIX socket.

A vhost-user back-end is a device without registers. This module keeps the state
that a bus would show, in the same way as a VMM:

- Device status is kept here, unless the back-end offers PROTOCOL_F_STATUS. Features
  are sent when FEATURES_OK is set. If the back-end refuses them or closes the
  connection, or if one was never offered, FEATURES_OK stays clear.
- Virtqueues are sent when DRIVER_OK is set, or at once after that. An earlier
  kick stays in the eventfd until then.
- The reset of a virtqueue stops it (GET_VRING_BASE). When it is enabled again,
  it is sent again.
- A reset stops every virtqueue (GET_VRING_BASE), and sends RESET_DEVICE if the
  back-end supports it. If the back-end has closed the connection, the reset
  connects again.
- ISR bit 0 is set when a call eventfd was signalled, bit 1 by a message that
  the configuration changed. A signal on an error eventfd sets DEVICE_NEEDS_RESET
  with a configuration interrupt (virtio 2.1.2).
- The configuration generation counts these messages, modulo 256.
- With CONFIGURE_MEM_SLOTS memory is sent as a region (ADD_MEM_REG), otherwise in a
  table (SET_MEM_TABLE).
- With INFLIGHT_SHMFD the back-end's buffer for requests in flight is kept here from the
  first start until a reset, and given to a back-end that is connected with `reconnect`.
- The protocol has no largest queue size: the user of the front-end chooses one.
"""

from __future__ import annotations

import mmap
import os
import select
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any

from harness.driver.errors import BadArgumentError, DriverError, NoDeviceError
from harness.driver.interface import QueueLayout
from harness.driver.memory import DmaMemory, Region
from harness.driver.polling import events
from harness.driver.trace import Trace
from harness.driver.transport.base import Transport
from harness.driver.transport.vhost_channel import GoneError, Message, RefusedError
from harness.driver.transport.vhost_inflight import Inflight
from harness.driver.transport.vhost_ring import PACKED_BASE, VhostRing
from harness.driver.transport.vhost_session import Session
from harness.virtio.device import DeviceStatus
from harness.virtio.features import Feature
from harness.virtio.pci import ISR_CONFIG, ISR_QUEUE
from harness.virtio.vhost_user import (
    CONFIG,
    FEATURE_LOG_ALL,
    FEATURE_PROTOCOL,
    MEMORY,
    REGION,
    U64,
    FrontEndRequest,
    ProtocolFeature,
)

QUEUE_SIZE = 128
"""Default size of a virtqueue in descriptors, the same as VMMs use for vhost-user-blk."""

ANSWER_TIMEOUT = 5.0
"""Seconds a back-end may take to answer a message."""

BORDER = 1 << 32
"""Bus address from which memory is used first."""

MEMORY_SIZE = 65 << 20
"""Bytes of shared memory. Pages that are never used take no memory of the host."""

BUS_ADDRESS = BORDER - (1 << 20)
USER_ADDRESS = 0x5000_0000_0000
"""Addresses of shared memory: bus addresses in descriptors, user addresses for rings.

They differ and do not fit into 32 bits, so that a back-end that confuses or
truncates them fails. The first MiB fits; only tests of the border use it.
"""

OUR_REGION = REGION.pack(BUS_ADDRESS, MEMORY_SIZE, USER_ADDRESS, 0)


class VhostUser(Transport):
    """A block back-end that listens on the UNIX socket `path`.

    `queue_size` is in descriptors, `timeout` (for each answer) in seconds. `before_connect` is
    called before each connection, for a back-end that ends with its connection. Protocol features
    in `without` are not used, though the back-end may offer them. Raises
    NoDeviceError if there is no block back-end. Other methods may raise
    `GoneError` when the back-end has closed the connection; a reset connects again.
    """

    kind = "vhost-user"

    def __init__(
        self,
        path: str,
        queue_size: int = QUEUE_SIZE,
        timeout: float = ANSWER_TIMEOUT,
        before_connect: Callable[[], None] = lambda: None,
        without: Collection[ProtocolFeature] = (),
    ) -> None:
        self.trace = Trace()
        self._path = path
        self._without = without
        self._before_connect = before_connect
        self._queue_size = queue_size
        self._timeout = timeout
        self._status = 0
        self._driver_features = 0
        self._sent_features = False
        self._generation = 0
        self._isr = 0
        self.lost_at_reset = 0
        """Resets at which the back-end hung up, though it had not before."""
        self._raised = 0
        self._signals: Counter[int] = Counter()
        self.inflight: Inflight | None = None
        """The back-end's buffer for requests in flight, None before the first start."""
        self._file = os.memfd_create("virtqueues")
        os.truncate(self._file, MEMORY_SIZE)
        mapped = mmap.mmap(self._file, MEMORY_SIZE)
        self.memory = DmaMemory([Region(BUS_ADDRESS, memoryview(mapped))], first=BORDER)
        self._events = select.epoll()
        self.handed_over = False
        """True from `hand_over` until the driver has connected again."""
        try:
            self._session = self._connect()
        except BaseException:
            self._events.close()
            os.close(self._file)
            raise

    def _connect(self) -> Session:
        self._before_connect()
        try:
            session = Session(self._path, self._timeout, self._without, self.trace)
        except NoDeviceError:
            raise
        except DriverError as error:
            raise NoDeviceError(error.message) from None
        self._events.register(session.channel, select.EPOLLIN | select.EPOLLRDHUP)
        if session.requests:
            self._events.register(session.requests, select.EPOLLIN)
        self.handed_over = False
        return session

    def description(self) -> dict[str, Any]:
        """Return facts on transport and address, for reports."""
        return {
            "transport": "vhost-user",
            "address": self._path,
            "protocol_features": [feature.name for feature in sorted(self._session.protocol)],
            "queues": self._session.queues,
            "config_size": self._session.config_size,
            "memory_slots": self._session.memory_slots,
            "lost_at_reset": self.lost_at_reset,
        }

    def hand_over(self) -> str:
        """Close the connection, and return the socket's path for another front-end.

        A reset connects again, once the other front-end has closed its connection.
        """
        self._hang_up()
        self.handed_over = True
        self._before_connect()
        return self._path

    # --- status and features

    def status(self) -> int:
        """Return the back-end's device status if it has one (PROTOCOL_F_STATUS), else ours."""
        if ProtocolFeature.STATUS in self._session.protocol:
            return self._session.channel.ask_number(FrontEndRequest.GET_STATUS) & 0xFF
        return self._status

    def set_status(self, value: int) -> None:
        """Write the device status field, and act on its new bits; 0 resets the device."""
        self.trace("status", value, self._status)
        if value == 0:
            self._reset()
            return
        new = value & ~self._status
        if new & DeviceStatus.FEATURES_OK and not self._features_agreed():
            value &= ~DeviceStatus.FEATURES_OK
        if new & DeviceStatus.DRIVER_OK:
            self._start()
        self._status = value | self._status & DeviceStatus.NEEDS_RESET
        self._tell_status()
        if new & DeviceStatus.DRIVER_OK and not self._session.channel.acknowledged:
            # Without REPLY_ACK the messages may not have been handled yet. A change of the
            # device before that would not be announced.
            self._session.channel.ask_number(FrontEndRequest.GET_FEATURES)

    def _tell_status(self) -> None:
        if ProtocolFeature.STATUS in self._session.protocol:
            self._session.channel.tell(FrontEndRequest.SET_STATUS, U64.pack(self._status))

    def offered(self) -> int:
        """Return device feature bits 0 to 63, without those that vhost uses for itself."""
        return self._session.offered & ~(FEATURE_PROTOCOL | FEATURE_LOG_ALL)

    def accept(self, features: int) -> None:
        """Store driver feature bits 0 to 63, which are sent with FEATURES_OK."""
        self.trace("features", features)
        self._driver_features = features

    def accepted(self) -> int:
        """Return the stored driver feature bits 0 to 63: no back-end shows them."""
        return self._driver_features

    def _features_agreed(self) -> bool:
        """Send the driver's features if all were offered. Return True if they are accepted."""
        if self._driver_features & ~self.offered():
            return False
        protocol = self._session.offered & FEATURE_PROTOCOL
        channel = self._session.channel
        try:
            payload = U64.pack(self._driver_features | protocol)
            # Some acknowledge and then close the connection: only the next answer shows it.
            channel.tell_all_and_ask(
                [(FrontEndRequest.SET_FEATURES, payload, ())], FrontEndRequest.GET_FEATURES
            )
        except (RefusedError, GoneError):
            return False
        self._sent_features = True
        return True

    # --- reset and start

    def _reset(self) -> None:
        """Restore the initial state on both sides; reconnect if the connection is closed."""
        session = self._session
        self._status = 0
        try:
            session.channel.check()
        except GoneError:
            # It hung up before, as a back-end may on a driver that breaks the rules.
            self._hang_up()
            self._session = self._connect()
            self._forget()
            return
        try:
            for ring in session.rings.values():
                ring.stop(session.channel)
            messages = list[Message]()
            if ProtocolFeature.RESET_DEVICE in session.protocol:
                messages.append((FrontEndRequest.RESET_DEVICE, b"", ()))
            if ProtocolFeature.STATUS in session.protocol:
                messages.append((FrontEndRequest.SET_STATUS, U64.pack(0), ()))
            # A back-end that will close the connection for an earlier error may have answered.
            session.channel.tell_all_and_ask(messages, FrontEndRequest.GET_FEATURES)
            self._drop_rings()
        except GoneError as error:
            self.lost_at_reset += 1
            # The document on vhost-user has a back-end keep the device through a reset.
            warnings.warn(
                f"{error.message}, in a reset: a VMM would have lost the device", stacklevel=2
            )
            self._hang_up()
            self._session = self._connect()
        self._forget()

    def _forget(self) -> None:
        """Forget what the driver set up before a reset."""
        self._driver_features = 0
        self._sent_features = False
        self._isr = 0
        if self.inflight:
            self.inflight.close()
            self.inflight = None

    def _drop_rings(self) -> None:
        for index in list(self._session.rings):
            self._drop_ring(index)

    def _drop_ring(self, index: int) -> None:
        ring = self._session.rings.pop(index)
        for fd in (ring.call, ring.error):
            # The back-end's duplicates would keep it registered after it is closed here.
            self._events.unregister(fd)
        ring.close()

    def _hang_up(self) -> None:
        self._drop_rings()
        self._session.close()

    def _start(self) -> None:
        """Send memory and virtqueues to the back-end."""
        if not self._sent_features:
            self._features_agreed()
        packed = self._driver_features & Feature.RING_PACKED.mask
        self._share()
        for ring in self._session.rings.values():
            self._start_ring(ring, PACKED_BASE if packed else 0)

    def _share(self) -> None:
        """Send the buffer for requests in flight, and memory."""
        session = self._session
        if ProtocolFeature.INFLIGHT_SHMFD in session.protocol:
            if self.inflight is None:
                sizes = [ring.layout.size for ring in session.rings.values()]
                size = max([self._queue_size, *sizes])
                self.inflight = Inflight.get(session.channel, session.queues, size)
            if self.inflight:
                self.inflight.send(session.channel)
        if session.has_memory:
            return
        if ProtocolFeature.CONFIGURE_MEM_SLOTS in session.protocol:
            session.channel.tell(FrontEndRequest.ADD_MEM_REG, OUR_REGION, [self._file])
        else:
            table = MEMORY.pack(1, BUS_ADDRESS, MEMORY_SIZE, USER_ADDRESS, 0)
            session.channel.tell(FrontEndRequest.SET_MEM_TABLE, table, [self._file])
        session.has_memory = True

    def _start_ring(self, ring: VhostRing, base: int) -> None:
        ring.start(
            self._session.channel,
            base,
            user_offset=USER_ADDRESS - BUS_ADDRESS,
            enable=bool(self._session.offered & FEATURE_PROTOCOL),
        )

    def remove_memory(self) -> None:
        """Take the memory from the back-end (REM_MEM_REG). The next start gives it again.

        Every virtqueue has to be stopped. RefusedError if the back-end does not remove it,
        BadArgumentError without CONFIGURE_MEM_SLOTS, or if the back-end has no memory.
        """
        session = self._session
        if ProtocolFeature.CONFIGURE_MEM_SLOTS not in session.protocol:
            raise BadArgumentError("without CONFIGURE_MEM_SLOTS memory cannot be removed")
        if not session.has_memory:
            raise BadArgumentError("the back-end has no memory that could be removed")
        session.channel.tell(FrontEndRequest.REM_MEM_REG, OUR_REGION)
        session.has_memory = False

    def reconnect(self, bases: Mapping[int, int] | None = None) -> None:
        """Connect again without a reset, as a VMM does after its back-end has died.

        Features, memory, the buffer for requests in flight and every virtqueue are sent again, and
        each virtqueue is notified once. `bases` has the position of each virtqueue as
        SET_VRING_BASE takes it; by default a split virtqueue goes on at its used index.
        BadArgumentError for a packed virtqueue without a position, which its memory does not show.
        DriverError if the back-end does not take the features that were negotiated.
        """
        rings = {i: ring for i, ring in self._session.rings.items() if ring.started}
        packed = self._driver_features & Feature.RING_PACKED.mask
        bases = {} if bases is None else bases
        if packed and (missing := rings.keys() - bases.keys()):
            raise BadArgumentError(f"no position for the packed virtqueues {sorted(missing)}")
        kept = self._session.rings
        self._session.close()
        self._session = self._connect()
        self._session.rings = kept
        if self._sent_features and not self._features_agreed():
            raise DriverError(
                f"{self._path} does not take the features {self._driver_features:#x} again"
            )
        if self._status & DeviceStatus.DRIVER_OK:
            self._share()
            for index, ring in rings.items():
                base = bases[index] if index in bases else self._used_index(ring)
                self._start_ring(ring, base)
        self._tell_status()
        for ring in rings.values():
            ring.notify()

    def _used_index(self, ring: VhostRing) -> int:
        return self.memory.view(ring.layout.device + 2, 2).cast("H")[0]

    # --- registers and configuration space

    def register_read(self, name: str, width: int | None = None) -> int:
        """Raise BadArgumentError: a back-end has no registers."""
        del width
        raise BadArgumentError(f"vhost-user has no register {name!r}: it has no registers")

    def register_write(self, name: str, value: int, width: int | None = None) -> None:
        """Raise BadArgumentError: a back-end has no registers."""
        del width
        raise BadArgumentError(f"vhost-user has no register {name!r} to write {value:#x} to")

    def config_read(self, offset: int, length: int) -> bytes:
        """Read bytes of the device configuration space, in one message.

        The message asks for them from offset 0 on, as VMMs do: some back-ends
        ignore the offset in a message.
        """
        return self.config_pieces([(offset, length)])[0]

    def config_pieces(self, places: Sequence[tuple[int, int]]) -> list[bytes]:
        """Read several pieces of the device configuration space, in one message."""
        size = self._session.config_size
        for offset, length in places:
            if offset < 0 or offset + length > size:
                raise BadArgumentError(f"configuration space ends at {size}, not {offset + length}")
        space = self._session.config(size)
        if not space:
            raise DriverError(f"{self._path} refused GET_CONFIG, which it answered before")
        return [space[offset : offset + length] for offset, length in places]

    def config_write(self, offset: int, data: bytes) -> None:
        """Write 1, 2 or 4 bytes of the device configuration space; a refusal is ignored."""
        if len(data) not in (1, 2, 4) or offset % len(data):
            raise BadArgumentError(f"no single access writes {len(data)} bytes at {offset}")
        with suppress(RefusedError):
            self._session.channel.tell(
                FrontEndRequest.SET_CONFIG, CONFIG.pack(offset, len(data), 0) + data
            )

    def config_size(self) -> int:
        """Return the bytes of device configuration space that the back-end shows at once."""
        return self._session.config_size

    def config_generation(self) -> int:
        """Return the number of configuration change messages so far, modulo 256."""
        self._collect(0)
        return self._generation & 0xFF

    # --- virtqueues and interrupts

    def queue_max_size(self, index: int) -> int:
        """Return the queue size that the user chose, 0 if the back-end has no such queue."""
        return self._queue_size if 0 <= index < self._session.queues else 0

    def queue_enable(self, layout: QueueLayout) -> None:
        """Store the layout of a virtqueue, which is sent when DRIVER_OK is set."""
        if layout.index in self._session.rings:
            raise BadArgumentError(f"queue {layout.index} is enabled: only a reset disables it")
        ring = VhostRing(layout)
        self._session.rings[layout.index] = ring
        for fd in (ring.call, ring.error):
            self._events.register(fd, select.EPOLLIN)
        if self._status & DeviceStatus.DRIVER_OK:
            packed = self._driver_features & Feature.RING_PACKED.mask
            self._start_ring(ring, PACKED_BASE if packed else 0)

    def queue_reset(self, index: int) -> None:
        """Stop a virtqueue in the back-end. It is stopped when this returns."""
        if index not in self._session.rings:
            raise BadArgumentError(f"queue {index} was not set up")
        self._collect(0)
        self._session.rings[index].stop(self._session.channel)
        self._collect(0)
        self._drop_ring(index)

    def queue_resetting(self, index: int) -> bool:
        """Return False: the reset of a virtqueue is done when `queue_reset` returns."""
        del index
        return False

    def notify(self, index: int, next_available: int | None) -> None:
        """Signal the virtqueue's kick eventfd, which carries no data."""
        del next_available
        self.trace("notified", index)
        try:
            self._session.rings[index].notify()
        except KeyError:
            raise BadArgumentError(f"queue {index} was not set up") from None

    def isr(self) -> int:
        """Read and clear the ISR status that a bus would show."""
        if not self._isr:  # signals after those already taken are for the next read
            self._collect(0)
        isr, self._isr = self._isr, 0
        return isr

    def fileno(self) -> int | None:
        """Return a descriptor, readable for a pending interrupt or a closed connection."""
        return self._events.fileno()

    def take_interrupts(self, timeout: float) -> int:
        """Return signals on call eventfds and config messages since the last call.

        Wait up to `timeout` seconds for the first.
        """
        self._collect(0 if self._raised else timeout)
        raised, self._raised = self._raised, 0
        return raised

    def signals_by_queue(self) -> tuple[int, ...]:
        """Return how often each virtqueue's call eventfd was signalled since the start."""
        return tuple(self._signals[index] for index in range(self._session.queues))

    def unmask_interrupts(self) -> None:
        """Do nothing: an eventfd is never masked."""

    def _collect(self, timeout: float) -> None:
        """Take the back-end's signals, waiting up to `timeout` seconds for the first."""
        session = self._session
        if session.channel.unread:
            session.channel.check()
        ready = {fd for fd, _ in events(self._events, timeout)}
        if not ready:
            return
        for ring in session.rings.values():
            if ring.call in ready and (calls := ring.take_calls()):
                self.trace("interrupt", ring.layout.index, calls)
                self._raised += calls
                self._signals[ring.layout.index] += calls
                self._isr |= ISR_QUEUE
            if ring.error in ready and ring.take_errors():
                self.trace("broken", ring.layout.index)
                self._status |= DeviceStatus.NEEDS_RESET
                self._raised += 1
                self._isr |= ISR_CONFIG
        requests = session.requests
        if requests and requests.fileno() in ready:
            if changes := requests.take_config_changes():
                self.trace("interrupt", -1, changes)
                self._generation += changes
                self._raised += changes
                self._isr |= ISR_CONFIG
            if not requests.open:
                self._events.unregister(requests)
        if session.channel.fileno() in ready:
            session.channel.check()

    def close(self) -> None:
        """Close the connection."""
        self._hang_up()
        self._forget()
        self._events.close()
        with suppress(OSError):
            os.close(self._file)
