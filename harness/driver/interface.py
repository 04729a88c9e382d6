"""The narrow waist: what a test can ask of a driver, wherever that driver lives.

A test holds one `Driver` and cannot tell whether it is an object in this
process or one in a guest at the far end of a serial line: every method takes
and returns plain values (int, bytes, str, bool, None, tuples, lists, dicts of
those, and the dataclasses below), so that one call is one message.

Units: lengths and offsets are bytes, addresses are bus addresses as the device
sees them, sectors are 512 bytes, times are seconds.

Errors: every method may raise `DriverError` (see `harness.driver.errors`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from harness.virtio.blk import BlockConfig

CANARY = 0xC5
"""What every device-writable byte (but the status byte) and every guard byte holds before a
request: a byte that still holds it was not written. Test data avoids this value."""

GUARD = 64
"""Bytes of canary before and after every buffer of a request."""

REQUEST_TIMEOUT = 10.0
"""Seconds a request may take, unless the caller says otherwise (as in the seed)."""

Source = Literal["queue", "config", "raised"]
"""What an interrupt announced, or "raised": any interrupt, whatever for (see `Interrupts`)."""


@dataclass(frozen=True)
class Buffer:
    """One descriptor's worth of memory: bus address, length in bytes, direction."""

    address: int
    length: int
    writable: bool = False


@dataclass(frozen=True)
class Used:
    """A chain that was used (virtio 2.7.8): its head, and the bytes written.

    With IN_ORDER one element of the used ring may stand for several chains
    (virtio 2.7.9); each of them comes as one of these, those without an element
    of their own with all their device-writable bytes.
    """

    id: int
    length: int


@dataclass(frozen=True)
class QueueLayout:
    """Where a virtqueue lies: its size in descriptors and the bus addresses of its areas."""

    index: int
    size: int
    desc: int
    driver: int
    device: int


@dataclass(frozen=True)
class QueueState:
    """A virtqueue's indices as they stand in memory, and what the driver expects."""

    index: int
    size: int
    avail_flags: int
    avail_idx: int
    used_flags: int
    used_idx: int
    last_used: int
    free_descriptors: int
    in_flight: int


@dataclass(frozen=True)
class Request:
    """A block request (virtio 5.2.6), framed as the caller likes.

    `data` is device-readable and follows the header; `receive` is the length
    in bytes of the device-writable area before the status byte. `readable` and
    `writable` cut the readable bytes (header, data) and the writable bytes
    (received data, status) into descriptors of these lengths; empty means the
    usual cut (header | data, data | status). A `receive` area or `data` of no
    bytes gets no descriptor. With `indirect` the chain goes through an
    indirect table, which must have been negotiated.
    """

    type: int
    sector: int = 0
    data: bytes = b""
    receive: int = 0
    reserved: int = 0
    readable: tuple[int, ...] = ()
    writable: tuple[int, ...] = ()
    indirect: bool = False


@dataclass(frozen=True)
class Completion:
    """What the device made of a request.

    `status` is the status byte as it stands in memory (0xff: never written),
    `used_len` the length in the used ring, `data` the whole receive area (a
    byte equal to `CANARY` was not written). `damage` names everything that
    changed and must not have: guard bytes, device-readable buffers,
    descriptors, indirect tables. `seconds` runs from notify to used.
    """

    status: int
    used_len: int
    data: bytes = b""
    damage: tuple[str, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True)
class Interrupts:
    """Interrupts since the driver was attached, by what they announced.

    `raised` counts assertions of the line (or messages), whatever they were
    for; `unexplained` those of them with an empty ISR status. `vectors` counts
    messages by MSI-X vector, and is empty without MSI-X.
    """

    queue: int = 0
    config: int = 0
    raised: int = 0
    unexplained: int = 0
    vectors: tuple[int, ...] = ()


@dataclass(frozen=True)
class ConfigChange:
    """One run of the config-change callback: what it read, and in which generation.

    `capacity` is in sectors of 512 bytes.
    """

    capacity: int
    generation: int


@dataclass(frozen=True)
class Negotiation:
    """The outcome of feature negotiation: bit masks, and the device status after it."""

    offered: int
    accepted: int
    status: int


@dataclass(frozen=True)
class Repetition:
    """The outcome of one request sent many times, one at a time."""

    count: int
    seconds: float
    statuses: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Capability:
    """A virtio capability in PCI configuration space (virtio 4.1.4).

    `at` is its offset there; `offset` and `length` lie within BAR `bar`.
    """

    at: int
    type: int
    bar: int
    id: int
    offset: int
    length: int
    cap_len: int


class Driver(ABC):
    """A driver of one virtio block device."""

    # --- the device as it is

    @abstractmethod
    def description(self) -> dict[str, Any]:
        """What is driven from where: transport, address, PCI ids, kernel, Python."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Device status, features, every virtqueue's indices, interrupts: for a report."""

    @abstractmethod
    def close(self) -> None:
        """Reset the device and give everything back. A second call does nothing."""

    # --- registers (virtio 2.1, 2.2, 2.5, 4.1.4)

    @abstractmethod
    def status(self) -> int:
        """The device status field (virtio 2.1)."""

    @abstractmethod
    def set_status(self, value: int) -> None:
        """Write the device status field; nothing is added or checked."""

    @abstractmethod
    def reset(self, timeout: float = 5.0) -> None:
        """Write 0 to device status and wait until it reads 0; forget all queues and requests.

        DeviceTimeoutError if it never does (virtio 2.4, 4.1.4.3.1).
        """

    @abstractmethod
    def offered(self) -> int:
        """The feature bits the device offers, 0 to 63."""

    @abstractmethod
    def accept(self, features: int) -> None:
        """Write the driver's feature bits 0 to 63; device status is left alone."""

    @abstractmethod
    def accepted(self) -> int:
        """The driver's feature bits as the device shows them."""

    @abstractmethod
    def register_read(self, name: str, width: int | None = None) -> int:
        """A register of the transport by the specification's name (e.g. `queue_size`).

        `width` (1, 2 or 4 bytes) reads that many of its bytes in one access,
        which need not be a width that it may be read with; None takes its own.
        """

    @abstractmethod
    def register_write(self, name: str, value: int, width: int | None = None) -> None:
        """Write a register of the transport by the specification's name; `width` likewise."""

    @abstractmethod
    def config_read(self, offset: int, length: int) -> bytes:
        """Bytes of the device configuration space, each read with the width of a field."""

    @abstractmethod
    def config_write(self, offset: int, data: bytes) -> None:
        """Write one field (1, 2 or 4 bytes) of the device configuration space."""

    @abstractmethod
    def config_size(self) -> int:
        """Bytes of device configuration space that the transport shows."""

    @abstractmethod
    def config_generation(self) -> int:
        """The configuration generation (virtio 2.5.1, 4.1.4.3)."""

    @abstractmethod
    def isr(self) -> int:
        """Read ISR status, which clears it (virtio 4.1.4.5)."""

    @abstractmethod
    def pci_read(self, offset: int, length: int) -> bytes:
        """Bytes of PCI configuration space. DriverError where there is none."""

    @abstractmethod
    def pci_write(self, offset: int, data: bytes) -> None:
        """Write 1, 2 or 4 bytes of PCI configuration space."""

    @abstractmethod
    def capabilities(self) -> list[Capability]:
        """The virtio capabilities in PCI configuration space, in the list's order."""

    # --- memory the device can reach

    @abstractmethod
    def alloc(self, length: int, align: int = 16) -> int:
        """Zeroed memory, as a bus address; it lasts until `reset` or `close`."""

    @abstractmethod
    def memory_read(self, address: int, length: int) -> bytes:
        """Bytes at a bus address that `alloc` or a queue's layout gave."""

    @abstractmethod
    def memory_write(self, address: int, data: bytes) -> None:
        """Write at a bus address that `alloc` or a queue's layout gave."""

    # --- virtqueues (virtio 2.6, 2.7)

    @abstractmethod
    def queue_setup(
        self, index: int, size: int | None = None, vector: int | None = None
    ) -> QueueLayout:
        """Lay a virtqueue out in fresh memory and enable it.

        `size` in descriptors, None for the device's largest. With MSI-X `vector` is
        written to queue_msix_vector before the queue is enabled (virtio 4.1.4.3.2),
        whatever the register shows then; None is the vector that `use_msix` says.
        """

    @abstractmethod
    def queue_add(self, index: int, buffers: Sequence[Buffer], indirect: bool = False) -> int:
        """Write a descriptor chain and return its head; the device is not told yet."""

    @abstractmethod
    def queue_publish(self, index: int, heads: Sequence[int]) -> None:
        """Put chains into the available ring, then move its index once."""

    @abstractmethod
    def queue_kick(self, index: int) -> None:
        """Notify the device of available buffers, whatever the rings say."""

    @abstractmethod
    def suppress_notifications(self, enabled: bool) -> None:
        """Whether the driver takes part in notification suppression (virtio 2.7.7, 2.7.10, 2.8.10).

        Off, as at first, each `submit` notifies the device, and used_event (in a
        packed ring, the driver's event suppression area) is the test's to write.
        On, a request is only notified of if the device asks for it, by its flags
        or with EVENT_IDX by its place; and with EVENT_IDX the driver asks, after
        each look at a virtqueue, for an interrupt at the next chain used. The
        driver accepts EVENT_IDX only where it is among the features asked for.
        """

    @abstractmethod
    def queue_poll(
        self, index: int, count: int = 1, timeout: float = REQUEST_TIMEOUT
    ) -> list[Used]:
        """Wait until `count` chains that `queue_add` made are used; free their descriptors.

        DeviceTimeoutError if they are not; as with every wait for a virtqueue,
        sooner if the device shows that it needs a reset. With a `count` of 0,
        take what is there.
        """

    @abstractmethod
    def queue_reset(self, index: int, timeout: float = 5.0) -> None:
        """Reset one virtqueue and wait until that is done (virtio 2.6.1); set it up anew after.

        RING_RESET must have been accepted. DeviceTimeoutError if it is not done
        in time, DriverError where the transport has no such thing.
        """

    @abstractmethod
    def queue_state(self, index: int) -> QueueState:
        """The virtqueue's indices."""

    # --- interrupts (virtio 2.3, 2.9, 4.1.4.5)

    @abstractmethod
    def interrupts(self) -> Interrupts:
        """Service what is pending, then say how many there have been.

        While `service_interrupts` is off, ISR is left alone: only `raised` moves.
        """

    @abstractmethod
    def wait_interrupt(self, source: Source, above: int, timeout: float = 5.0) -> Interrupts:
        """Wait until more than `above` interrupts of this source were counted."""

    @abstractmethod
    def use_msix(self, vectors: int) -> None:
        """Switch to MSI-X with this many vectors, or with 0 back to INTx (virtio 4.1.5.1.2).

        Configuration changes get vector 0, the virtqueues the others in turn
        (with one vector, that one); they are mapped by `negotiate` and
        `queue_setup`. To be called while no queue is set up. DriverError where
        the device, the bus or the transport has no MSI-X, or too few vectors.
        """

    @abstractmethod
    def service_interrupts(self, enabled: bool) -> None:
        """Whether the driver reads ISR and runs callbacks by itself (as it does at first)."""

    # --- the block driver (virtio 3.1, 5.2)

    @abstractmethod
    def negotiate(self, features: int | None = None) -> Negotiation:
        """Reset, then initialise up to and with FEATURES_OK (virtio 3.1.1, steps 1 to 6).

        None accepts all that the device offers and this driver can serve. Any
        other set is written as it is. FeaturesRefusedError if FEATURES_OK does
        not stay set.
        """

    @abstractmethod
    def start(
        self, features: int | None = None, queues: int = 1, queue_size: int | None = None
    ) -> Negotiation:
        """`negotiate`, set up this many virtqueues, set DRIVER_OK (virtio 3.1.1)."""

    @abstractmethod
    def config(self) -> BlockConfig:
        """The fields that the accepted features make valid, in one generation (virtio 2.5.1)."""

    @abstractmethod
    def request(
        self, request: Request, queue: int = 0, timeout: float = REQUEST_TIMEOUT
    ) -> Completion:
        """Send a request and wait for it. DeviceTimeoutError if it does not complete."""

    @abstractmethod
    def submit(self, requests: Sequence[Request], queue: int = 0) -> list[int]:
        """Make requests available together, notify once, and return a token for each.

        Of the notification, see `suppress_notifications`.
        """

    @abstractmethod
    def complete(self, tokens: Sequence[int], timeout: float = REQUEST_TIMEOUT) -> list[Completion]:
        """Wait for submitted requests; completions in the order of the tokens."""

    @abstractmethod
    def completed(self) -> list[int]:
        """Tokens of submitted requests that the device has used and nobody has collected."""

    @abstractmethod
    def repeat(
        self,
        request: Request,
        count: int,
        queue: int = 0,
        timeout: float = 60.0,
        interrupts: bool = False,
    ) -> Repetition:
        """Send one request `count` times, one at a time, in the same buffers.

        Without `interrupts` the driver asks the device for none (virtio
        2.7.7) and polls; with them, for one each time, also by EVENT_IDX.
        """

    @abstractmethod
    def config_changes(self) -> list[ConfigChange]:
        """Every run of the config-change callback since the driver was attached."""

    @abstractmethod
    def wait_config_change(self, above: int, timeout: float = 5.0) -> list[ConfigChange]:
        """Wait until the callback has run more than `above` times; all its runs."""
