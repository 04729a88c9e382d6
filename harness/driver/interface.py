"""Interface of a driver: all that a test can ask of it, wherever the driver runs.

A `Driver` is an object in this process, or stands for one in a guest at the
other end of a serial line. Tests cannot see the difference: every method takes
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
from harness.virtio.pci import BARS

CANARY = 0xC5
"""Value of all device-writable bytes (except the status byte) and guard bytes before a request.
A byte that still has this value was not written. Test data does not contain it."""

GUARD = 64
"""Bytes of canary before and after every buffer of a request."""

REQUEST_TIMEOUT = 10.0
"""Default timeout of a request in seconds, the same as in Haiku's driver."""

Source = Literal["queue", "config", "raised"]
"""Cause of an interrupt; "raised" is an interrupt of any cause (see `Interrupts`)."""

TransportKind = Literal["pci", "pci-legacy", "mmio", "mmio-legacy", "vhost-user"]
"""Interface between driver and device (virtio 4). "pci" and "mmio" are the modern interfaces."""


@dataclass(frozen=True)
class Buffer:
    """Memory of one descriptor: bus address, length in bytes, direction."""

    address: int
    length: int
    writable: bool = False


@dataclass(frozen=True)
class Used:
    """A used chain (virtio 2.7.8): its head, and the number of bytes written.

    With IN_ORDER one element of the used ring may stand for several chains
    (virtio 2.7.9). Each of these chains is a `Used`. The length of a chain without
    an own element is the size of all its device-writable buffers.
    """

    id: int
    length: int


@dataclass(frozen=True)
class QueueLayout:
    """Layout of a virtqueue: its size in descriptors and the bus addresses of its areas."""

    index: int
    size: int
    desc: int
    driver: int
    device: int


@dataclass(frozen=True)
class QueueState:
    """Indices and flags of a virtqueue in memory, and the driver's own counters."""

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
    """A block request (virtio 5.2.6), with the framing that the caller chooses.

    `data` is device-readable and follows the header; `receive` is the length
    in bytes of the device-writable area before the status byte. `readable` and
    `writable` cut the readable bytes (header, data) and the writable bytes
    (received data, status) into descriptors of these lengths; empty means the
    default (header | data, data | status). Empty `data`, or a `receive` of 0,
    gets no descriptor. With `indirect` the chain is in an indirect table;
    INDIRECT_DESC must have been negotiated.

    With `shift` each buffer, and the indirect table, begins this number of bytes
    after a multiple of 4096; None leaves the addresses to the driver. With
    `unusual` the driver uses what it is free in: links of an indirect table that
    are out of order, and other values in fields that the device has to ignore
    (virtio 2.7.5, 2.8.6, 2.8.7).
    """

    type: int
    sector: int = 0
    data: bytes = b""
    receive: int = 0
    reserved: int = 0
    readable: tuple[int, ...] = ()
    writable: tuple[int, ...] = ()
    indirect: bool = False
    shift: int | None = None
    unusual: bool = False


@dataclass(frozen=True)
class Completion:
    """The result of a request.

    `status` is the status byte in memory (0xff: never written), `used_len` is the
    length in the used ring, `data` is the whole receive area (a byte equal to
    `CANARY` was not written). `damage` lists what the device changed and must
    not change: guard bytes, device-readable buffers, descriptors, indirect
    tables. `seconds` is the time from before the notification until it was used.
    """

    status: int
    used_len: int
    data: bytes = b""
    damage: tuple[str, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True)
class Interrupts:
    """Counts of interrupts since the driver was attached, by cause.

    `raised` counts all assertions of the line (or messages), `unexplained` those
    with an empty ISR status. `vectors` counts messages by MSI-X vector, and is
    empty without MSI-X. `queues` counts signals by virtqueue on a transport where
    each virtqueue has its own (vhost-user), and is empty on others.
    """

    queue: int = 0
    config: int = 0
    raised: int = 0
    unexplained: int = 0
    vectors: tuple[int, ...] = ()
    queues: tuple[int, ...] = ()


@dataclass(frozen=True)
class ConfigChange:
    """A run of the config-change callback: the capacity and the generation that it read.

    `capacity` is in sectors of 512 bytes.
    """

    capacity: int
    generation: int


@dataclass(frozen=True)
class Negotiation:
    """The result of feature negotiation: bit masks, and the device status after it."""

    offered: int
    accepted: int
    status: int


@dataclass(frozen=True)
class Repetition:
    """The result of `Driver.repeat`: requests, seconds in all, and status -> requests."""

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

    @property
    def reserved(self) -> bool:
        """Return whether `bar` is a reserved value: a driver ignores the capability (4.1.4.1)."""
        return self.bar >= BARS


class Driver(ABC):
    """A driver of one virtio block device."""

    # --- the device as it is

    @abstractmethod
    def description(self) -> dict[str, Any]:
        """Return facts for a report: transport, address, PCI ids, kernel, Python."""

    @abstractmethod
    def transport_kind(self) -> TransportKind:
        """Return the interface through which this driver reaches the device."""

    @abstractmethod
    def owns_pci_configuration(self) -> bool:
        """Return True if `pci_read` and `pci_write` reach the function itself.

        False where a kernel answers some accesses to PCI configuration space, and on a
        transport without it.
        """

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Return device status, features, virtqueue indices and interrupts, for a report."""

    @abstractmethod
    def events(self) -> list[tuple[Any, ...]]:
        """Return the last events at this driver, in order: see `harness.driver.trace`."""

    @abstractmethod
    def close(self) -> None:
        """Reset the device and release all resources. A second call does nothing."""

    # --- registers (virtio 2.1, 2.2, 2.5, 4.1.4)

    @abstractmethod
    def status(self) -> int:
        """Return the device status field (virtio 2.1)."""

    @abstractmethod
    def set_status(self, value: int) -> None:
        """Write this value to the device status field, without any check or change."""

    @abstractmethod
    def reset(self, timeout: float = 5.0) -> None:
        """Write 0 to device status, wait until it reads 0, and drop all queues and requests.

        Raises DeviceTimeoutError after `timeout` seconds (virtio 2.4, 4.1.4.3.1).
        """

    @abstractmethod
    def offered(self) -> int:
        """Return the feature bits 0 to 63 that the device offers."""

    @abstractmethod
    def accept(self, features: int) -> None:
        """Write the driver's feature bits 0 to 63, without a change of device status."""

    @abstractmethod
    def accepted(self) -> int:
        """Return the driver's feature bits as the device shows them."""

    @abstractmethod
    def register_read(self, name: str, width: int | None = None) -> int:
        """Read a register of the transport, by its name in the specification (`queue_size`).

        With `width` (1, 2 or 4), read this number of its bytes in one access, even
        if the specification does not permit this width. None means its own width.
        """

    @abstractmethod
    def register_write(self, name: str, value: int, width: int | None = None) -> None:
        """Write a register of the transport, by its name; `width` as in `register_read`."""

    @abstractmethod
    def config_read(self, offset: int, length: int) -> bytes:
        """Read bytes of the device configuration space, in accesses as wide as its fields."""

    @abstractmethod
    def config_write(self, offset: int, data: bytes) -> None:
        """Write one field (1, 2 or 4 bytes) of the device configuration space."""

    @abstractmethod
    def config_size(self) -> int:
        """Return the size in bytes of the device configuration space that the transport shows."""

    @abstractmethod
    def config_generation(self) -> int:
        """Return the configuration generation (virtio 2.5.1, 4.1.4.3)."""

    @abstractmethod
    def isr(self) -> int:
        """Read ISR status, which clears it (virtio 4.1.4.5)."""

    @abstractmethod
    def pci_read(self, offset: int, length: int) -> bytes:
        """Read bytes of PCI configuration space. Raises DriverError if there is none."""

    @abstractmethod
    def pci_write(self, offset: int, data: bytes) -> None:
        """Write 1, 2 or 4 bytes of PCI configuration space."""

    @abstractmethod
    def bar_read(self, bar: int, offset: int, width: int) -> int:
        """Read `width` (1, 2 or 4) bytes of a BAR in one access.

        Raises DriverError for a device that is not on PCI.
        """

    @abstractmethod
    def bar_write(self, bar: int, offset: int, width: int, value: int) -> None:
        """Write `width` (1, 2 or 4) bytes of a BAR in one access."""

    @abstractmethod
    def capabilities(self) -> list[Capability]:
        """Return the virtio capabilities in PCI configuration space, in the order of the list."""

    # --- memory the device can reach

    @abstractmethod
    def alloc(self, length: int, align: int = 16) -> int:
        """Allocate zeroed memory, valid until `reset` or `close`, and return its bus address."""

    @abstractmethod
    def allocate_from(self, address: int | None) -> None:
        """Allocate rings, buffers and tables from this bus address on, while there is room.

        None means from the usual address on. Raises BadArgumentError if the driver has no
        memory there.
        """

    @abstractmethod
    def memory_read(self, address: int, length: int) -> bytes:
        """Read memory at a bus address inside an allocation of `alloc` or a virtqueue."""

    @abstractmethod
    def memory_write(self, address: int, data: bytes) -> None:
        """Write memory at a bus address inside an allocation of `alloc` or a virtqueue."""

    # --- virtqueues (virtio 2.6, 2.7)

    @abstractmethod
    def queue_setup(
        self,
        index: int,
        size: int | None = None,
        vector: int | None = None,
        least_aligned: bool = False,
    ) -> QueueLayout:
        """Allocate memory for a virtqueue and enable it.

        `size` is in descriptors; None means the largest that the device permits. With
        MSI-X, `vector` is written to queue_msix_vector before the queue is enabled
        (virtio 4.1.4.3.2), without a check of what the register shows then; None means
        the vector that `use_msix` chooses. With `least_aligned` the address of each area
        is a multiple of what the specification demands, and of no more (virtio 2.7, 2.8).
        """

    @abstractmethod
    def queue_add(self, index: int, buffers: Sequence[Buffer], indirect: bool = False) -> int:
        """Write a descriptor chain and return its head. It is not available to the device yet."""

    @abstractmethod
    def queue_publish(self, index: int, heads: Sequence[int]) -> None:
        """Put chains into the available ring, then update its index once."""

    @abstractmethod
    def queue_kick(self, index: int) -> None:
        """Notify the device of available buffers, even if the rings suppress it."""

    @abstractmethod
    def suppress_notifications(self, enabled: bool) -> None:
        """Switch notification suppression on or off (virtio 2.7.7, 2.7.10, 2.8.10).

        Off (the default), each `submit` notifies the device, and used_event (in a
        packed ring, the driver's event suppression area) is written by the test.
        On, the driver notifies only if the device asks for it, by its flags or,
        with EVENT_IDX, by its position. With EVENT_IDX it also asks for an interrupt
        at the next used chain, after each poll of a virtqueue. The driver accepts
        EVENT_IDX only if the caller asks for this feature.
        """

    @abstractmethod
    def queue_poll(
        self, index: int, count: int = 1, timeout: float = REQUEST_TIMEOUT
    ) -> list[Used]:
        """Wait until `count` chains of `queue_add` are used, free their descriptors, return them.

        Raises DeviceTimeoutError after `timeout` seconds, or earlier if the device
        sets DEVICE_NEEDS_RESET. With a `count` of 0, return the chains that are
        used now.
        """

    @abstractmethod
    def queue_reset(self, index: int, timeout: float = 5.0) -> None:
        """Reset one virtqueue and wait until it is done (virtio 2.6.1).

        Afterwards `queue_setup` can enable it again. RING_RESET must have been
        accepted. Raises DeviceTimeoutError after `timeout` seconds, DriverError
        if the transport cannot reset a single virtqueue.
        """

    @abstractmethod
    def queue_state(self, index: int) -> QueueState:
        """Return the indices and flags of a virtqueue."""

    # --- interrupts (virtio 2.3, 2.9, 4.1.4.5)

    @abstractmethod
    def interrupts(self) -> Interrupts:
        """Service pending interrupts, then return the counts.

        While `service_interrupts` is off, ISR status is not read: only `raised` counts.
        """

    @abstractmethod
    def wait_interrupt(self, source: Source, above: int, timeout: float = 5.0) -> Interrupts:
        """Wait until more than `above` interrupts of this source were counted; return the counts.

        Raises DeviceTimeoutError after `timeout` seconds.
        """

    @abstractmethod
    def use_msix(self, vectors: int) -> None:
        """Switch to MSI-X with this number of vectors, or with 0 back to INTx (virtio 4.1.5.1.2).

        Configuration changes get vector 0, the virtqueues the other vectors in turn
        (with one vector, all get vector 0). `negotiate` and `queue_setup` map them.
        Raises BadArgumentError if a queue is set up, DriverError if the device, the
        bus or the transport has no MSI-X or too few vectors.
        """

    @abstractmethod
    def service_interrupts(self, enabled: bool) -> None:
        """Switch on (the default) or off that the driver reads ISR status and runs callbacks."""

    # --- the block driver (virtio 3.1, 5.2)

    @abstractmethod
    def negotiate(self, features: int | None = None) -> Negotiation:
        """Reset the device and initialise it up to FEATURES_OK (virtio 3.1.1, steps 1 to 6).

        None accepts all offered features that this driver implements. Any other
        set is written unchanged. Raises FeaturesRefusedError if FEATURES_OK does not
        stay set.
        """

    @abstractmethod
    def start(
        self, features: int | None = None, queues: int = 1, queue_size: int | None = None
    ) -> Negotiation:
        """Negotiate, set up this number of virtqueues, and set DRIVER_OK (virtio 3.1.1)."""

    @abstractmethod
    def config(self) -> BlockConfig:
        """Return the configuration fields that the accepted features make valid (virtio 2.5.1).

        All fields are of the same configuration generation.
        """

    @abstractmethod
    def request(
        self, request: Request, queue: int = 0, timeout: float = REQUEST_TIMEOUT
    ) -> Completion:
        """Send a request and wait for it. Raises DeviceTimeoutError after `timeout` seconds."""

    @abstractmethod
    def submit(self, requests: Sequence[Request], queue: int = 0) -> list[int]:
        """Make requests available together, notify once, and return a token for each.

        `suppress_notifications` describes when the notification is left out.
        """

    @abstractmethod
    def complete(self, tokens: Sequence[int], timeout: float = REQUEST_TIMEOUT) -> list[Completion]:
        """Wait for submitted requests; return their completions in the order of the tokens.

        Raises DeviceTimeoutError after `timeout` seconds.
        """

    @abstractmethod
    def completed(self) -> list[int]:
        """Return the tokens of requests that are used and not yet returned by `complete`."""

    @abstractmethod
    def repeat(
        self,
        request: Request,
        count: int,
        queue: int = 0,
        timeout: float = 60.0,
        interrupts: bool = False,
    ) -> Repetition:
        """Send a request `count` times, one after the other, in the same buffers.

        Without `interrupts` the driver suppresses interrupts (virtio 2.7.7) and
        polls. With them, it asks for an interrupt each time, also with EVENT_IDX.
        `timeout` in seconds is for all requests together.
        """

    @abstractmethod
    def config_changes(self) -> list[ConfigChange]:
        """Return all runs of the config-change callback since the driver was attached."""

    @abstractmethod
    def wait_config_change(self, above: int, timeout: float = 5.0) -> list[ConfigChange]:
        """Wait until the config-change callback has run more than `above` times; return all runs.

        Raises DeviceTimeoutError after `timeout` seconds.
        """
