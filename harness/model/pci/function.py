"""The PCI function of the model device: configuration space, BARs and resets (virtio 4.1).

Nothing here knows how the function is carried. A client reads and writes configuration
space and BARs, maps memory, and gets interrupts from `Interrupts`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Literal

from harness.model.block import Block
from harness.model.device import Device
from harness.model.loop import Loop
from harness.model.memory import BrokenError, Memory
from harness.model.observer import SHOWN, Observer
from harness.model.pci.common import NOTIFY_MULTIPLIER
from harness.model.pci.interrupts import BAR_SIZE as MSIX_BAR_SIZE
from harness.model.pci.interrupts import MAX_VECTORS, Interrupts
from harness.model.pci.legacy import LegacyInterface
from harness.model.pci.registers import Registers
from harness.model.pci.space import CONVENTIONAL_SIZE, EXPRESS_SIZE, ConfigSpace
from harness.model.queue import Queue
from harness.virtio.blk import CONFIG_SIZE
from harness.virtio.device import BLOCK_DEVICE, DeviceStatus
from harness.virtio.features import Feature, mask
from harness.virtio.pci import (
    BAR_64,
    BAR_IO,
    BAR_PREFETCHABLE,
    CAP,
    CAP_EXPRESS,
    CAP_POWER,
    CAP_VENDOR,
    COMMAND,
    COMMAND_INTX_DISABLE,
    COMMAND_IO,
    COMMAND_MASTER,
    COMMAND_MEMORY,
    EXPRESS_RESET,
    INTERRUPT_LINE,
    INTERRUPT_PIN,
    MODERN_DEVICE_ID,
    REVISION,
    SUBSYSTEM,
    SUBSYSTEM_VENDOR,
    TRANSITIONAL_DEVICE_ID,
    VENDOR_ID,
    CapType,
)

Layout = Literal["modern", "transitional"]

LEGACY_BAR, MSIX_BAR, MEMBERS_BAR, PORT_BAR, REGISTER_BAR = 0, 1, 2, 3, 4
LEGACY_BAR_SIZE = 128
PORT_BAR_SIZE = 4
COMMON, ISR, DEVICE, NOTIFY = 0x0000, 0x1000, 0x2000, 0x3000
REGISTER_BAR_SIZE = 0x4000
NOTIFY_LENGTH = 0x1000
COMMON_LENGTH = 0x40
"""Offsets and lengths of the structures in the register BAR, in bytes."""

MAX_QUEUES = NOTIFY_LENGTH // NOTIFY_MULTIPLIER

CLASS_STORAGE = bytes([0x00, 0x00, 0x01])
"""Programming interface, subclass (SCSI controller), base class (mass storage)."""

POWER_STATE = 0x3
NO_SOFT_RESET = 0x8
"""Bits of Power Management Control/Status: the state (0 is D0), and that D3 forgets nothing."""

WINDOW_WIDTHS = (1, 2, 4)

TRANSPORT_FEATURES = mask(Feature.NOTIFICATION_DATA, Feature.NOTIF_CONFIG_DATA)
"""Features of the transport, which every function of ours offers."""


def _area(bar: int, offset: int, legacy_config: int) -> tuple[str, int]:
    """Return the structure that an offset of a BAR is in, and where it starts in the BAR.

    `legacy_config` is where the device configuration of the legacy interface starts.
    """
    if bar in (MSIX_BAR, MEMBERS_BAR):
        return ("msix" if bar == MSIX_BAR else "members"), 0
    if bar == PORT_BAR:
        return "notify", 0
    if bar != REGISTER_BAR:
        return ("legacy", 0) if offset < legacy_config else ("legacy device", legacy_config)
    starts = ((NOTIFY, "notify"), (DEVICE, "device"), (ISR, "isr"), (COMMON, "common"))
    return next((name, start) for start, name in starts if offset >= start)


class Function(LegacyInterface):
    """One function, from power-on. `send_message` and `send_line` are its interrupts."""

    def __init__(
        self,
        block: Block,
        loop: Loop,
        layout: Layout,
        send_message: Callable[[int], None],
        send_line: Callable[[], None],
        observer: Observer | None = None,
    ) -> None:
        """`layout` "transitional" adds the legacy interface. ValueError for too many queues."""
        if block.queues > MAX_QUEUES:
            raise ValueError(f"{block.queues} virtqueues; a function has at most {MAX_QUEUES}")
        self.layout = layout
        self._send_message = send_message
        self._send_line = send_line
        self.device = Device(block, loop, self, self._transport_features(block), observer)
        self._observer = observer
        self._loop = loop
        self._add_queues(block, loop)
        for index, queue in enumerate(self.device.queues):
            queue.signal = self._queue_signal(index)
        self._common = Registers(self._common_registers())
        self._legacy = Registers(self._legacy_registers())
        self._power_on()
        if observer:
            observer(
                "device",
                transport=f"pci, {layout}",
                offered=self.device.offered(),
                config=self.device.read_config().hex(),
                queues=self.device.block.queues,
                vectors=self.interrupts.vectors,
                space=self.space.read(0, CONVENTIONAL_SIZE).hex(),
                **self.device.block.zone_facts(),
            )

    def _transport_features(self, block: Block) -> int:
        """Return the features that the function offers in addition to the block device."""
        del block
        return TRANSPORT_FEATURES

    def _add_queues(self, block: Block, loop: Loop) -> None:
        """Add virtqueues that do not belong to the block device; for subclasses."""

    def _power_on(self) -> None:
        self.space = ConfigSpace(EXPRESS_SIZE)
        self._define_header()
        vectors = min(self.device.block.queues + 1, MAX_VECTORS)
        self.interrupts = Interrupts(
            self.space,
            MSIX_BAR,
            vectors,
            lambda vector: self._send_message(vector),
            lambda: self._send_line(),
        )
        self._define_capabilities()
        self._reset_registers()

    # --- configuration space

    @property
    def bars(self) -> dict[int, int]:
        """Return the sizes of the BARs in bytes, by number."""
        sizes = {MSIX_BAR: MSIX_BAR_SIZE, REGISTER_BAR: REGISTER_BAR_SIZE}
        sizes |= {PORT_BAR: PORT_BAR_SIZE} if self._has_port else {}
        return sizes | ({LEGACY_BAR: LEGACY_BAR_SIZE} if self.layout == "transitional" else {})

    @property
    def _has_port(self) -> bool:
        """Return whether the function can be notified at an I/O port, too (virtio 4.1.4)."""
        return bool(self.device.block.spec.notify_port)

    def _define_header(self) -> None:
        transitional = self.layout == "transitional"
        ident = TRANSITIONAL_DEVICE_ID if transitional else MODERN_DEVICE_ID
        subsystem = BLOCK_DEVICE if transitional else MODERN_DEVICE_ID
        command = COMMAND_MEMORY | COMMAND_MASTER | COMMAND_INTX_DISABLE
        command |= COMMAND_IO if transitional or self._has_port else 0
        define = self.space.define
        define(0x00, VENDOR_ID.to_bytes(2, "little") + ident.to_bytes(2, "little"))
        define(COMMAND, bytes(2), command.to_bytes(2, "little"))
        define(REVISION, bytes([0 if transitional else 1]) + CLASS_STORAGE)
        define(0x0C, bytes(2), b"\xff\xff")  # cache line size and latency timer
        define(SUBSYSTEM_VENDOR, VENDOR_ID.to_bytes(2, "little"))
        define(SUBSYSTEM, subsystem.to_bytes(2, "little"))
        define(INTERRUPT_LINE, b"\0", b"\xff")
        define(INTERRUPT_PIN, b"\1")
        if transitional:
            self.space.define_bar(LEGACY_BAR, LEGACY_BAR_SIZE, BAR_IO)
        if self._has_port:
            self.space.define_bar(PORT_BAR, PORT_BAR_SIZE, BAR_IO)
        self.space.define_bar(MSIX_BAR, MSIX_BAR_SIZE, 0)
        self.space.define_bar(REGISTER_BAR, REGISTER_BAR_SIZE, BAR_64 | BAR_PREFETCHABLE)

    def _define_capabilities(self) -> None:
        # Version 3, no D1 and D2; what a driver can write is the power state.
        power = (3).to_bytes(2, "little") + NO_SOFT_RESET.to_bytes(2, "little") + bytes(2)
        self._power = self.space.add_capability(CAP_POWER, power, bytes([0, 0, POWER_STATE])) + 4
        # Version 2, an endpoint; function level reset; a link of 1 lane at 2.5 GT/s.
        express = bytearray(58)
        express[0:2] = (0x0002).to_bytes(2, "little")
        express[2:6] = (1 << 28 | 1 << 15).to_bytes(4, "little")
        express[6:8] = (0x2810).to_bytes(2, "little")
        express[10:14] = (0x11).to_bytes(4, "little")
        express[16:18] = (0x11).to_bytes(2, "little")
        control = bytes(6) + (0x7FFF).to_bytes(2, "little")
        self._express_control = self.space.add_capability(CAP_EXPRESS, bytes(express), control) + 8
        for kind, offset, length in (
            (CapType.COMMON_CFG, COMMON, COMMON_LENGTH),
            (CapType.ISR_CFG, ISR, 1),
            (CapType.DEVICE_CFG, DEVICE, CONFIG_SIZE),
        ):
            self._define_structure(kind, REGISTER_BAR, offset, length)
        if self._has_port:
            # First, because an access to a port is quicker. The value tells the virtqueue.
            self._define_structure(CapType.NOTIFY_CFG, PORT_BAR, 0, PORT_BAR_SIZE, bytes(4))
        multiplier = NOTIFY_MULTIPLIER.to_bytes(4, "little")
        self._define_structure(CapType.NOTIFY_CFG, REGISTER_BAR, NOTIFY, NOTIFY_LENGTH, multiplier)
        self._window = self._define_structure(CapType.PCI_CFG, 0, 0, 0, bytes(4))

    def _define_structure(
        self, kind: CapType, bar: int, offset: int, length: int, more: bytes = b""
    ) -> int:
        size = CAP.size + len(more)
        whole = CAP.pack(CAP_VENDOR, 0, size, kind, bar, 0, offset, length) + more
        writable = bytearray(size)
        if kind == CapType.PCI_CFG:
            writable[4] = 0xFF  # the BAR
            writable[8:] = b"\xff" * (size - 8)  # offset, length, data
        return self.space.add_capability(CAP_VENDOR, whole[2:], bytes(writable[2:]))

    def config_read(self, offset: int, length: int) -> bytes:
        """Return bytes of configuration space; reading the window's data reads the device."""
        found = self._config_read(offset, length)
        self._show("pci", offset, found, write=False)
        return found

    def _show(self, area: str, offset: int, data: bytes, write: bool) -> None:
        """Tell the observer, if there is one, about an access to registers."""
        if self._observer:
            value = int.from_bytes(data[:SHOWN], "little") if len(data) <= 8 else -1
            width = len(data)
            self._observer(
                "register", area=area, offset=offset, width=width, value=value, write=write
            )

    def _config_read(self, offset: int, length: int) -> bytes:
        data = self._window + CAP.size
        if offset < data + 4 and data < offset + length and (access := self._window_access()):
            bar, at, width = access
            self.space.define(data, self.bar_read(bar, at, width))
        return self.space.read(offset, length)

    def config_write(self, offset: int, data: bytes) -> None:
        """Write configuration space; writing the window's data writes the device."""
        self._show("pci", offset, data, write=True)
        at = self._express_control
        written = data[at + 1 - offset] if offset <= at + 1 < offset + len(data) else 0
        if written << 8 & EXPRESS_RESET:
            self.reset()
            return
        self.space.write(offset, data)
        self.interrupts.control_written(offset, len(data))
        window = self._window + CAP.size
        touched = offset < window + 4 and window < offset + len(data)
        if touched and (access := self._window_access()):
            bar, at, width = access
            self.bar_write(bar, at, self.space.read(window, width))
        if offset < COMMAND + 2 and offset + len(data) > COMMAND:
            self.device.run_all()

    def _window_access(self) -> tuple[int, int, int] | None:
        """Return BAR, offset and width of the PCI_CFG window (virtio 4.1.4.9)."""
        _, _, _, _, bar, _, offset, width = CAP.unpack(self.space.read(self._window, CAP.size))
        usable = bar in self.bars and width in WINDOW_WIDTHS and offset % width == 0
        return (bar, offset, width) if usable else None

    # --- BARs

    @property
    def _powered(self) -> bool:
        return not self.space.field(self._power, 2) & POWER_STATE

    def bar_read(self, bar: int, offset: int, length: int) -> bytes:
        """Return bytes of a BAR by one access; ones in the power state D3."""
        data = self._bar_read(bar, offset, length)
        if self._observer:
            area, start = _area(bar, offset, self._legacy_config)
            self._show(area, offset - start, data, write=False)
        return data

    def _bar_read(self, bar: int, offset: int, length: int) -> bytes:
        if not self._powered:
            return b"\xff" * length
        if bar == MSIX_BAR:
            return self.interrupts.read_bar(offset, length)
        if bar == LEGACY_BAR:
            return self._legacy_read(offset, length)
        if bar == PORT_BAR:
            return bytes(length)
        if offset < ISR:
            return self._common.read(offset, length)
        if offset < DEVICE:
            isr = self.interrupts.read_isr() if offset == ISR else 0
            return isr.to_bytes(length, "little")
        if offset < NOTIFY:
            return self._config_bytes(offset - DEVICE, length)
        return bytes(length)

    def bar_write(self, bar: int, offset: int, data: bytes) -> None:
        """Write bytes of a BAR by one access."""
        if self._observer:
            area, start = _area(bar, offset, self._legacy_config)
            self._show(area, offset - start, data, write=True)
        if not self._powered:
            return
        if bar == MSIX_BAR:
            self.interrupts.write_bar(offset, data)
        elif bar == LEGACY_BAR:
            self._legacy_write(offset, data)
        elif bar == PORT_BAR:
            value = int.from_bytes(data, "little")
            queue = (value & 0xFFFF) - self._notify_value(0)
            if queue >= 0 and not offset:
                self._take_notification(queue * NOTIFY_MULTIPLIER, data)
        elif offset < ISR:
            self._common.write(offset, data)
        elif DEVICE <= offset < NOTIFY:
            self.device.write_config(offset - DEVICE, data)
        elif offset >= NOTIFY:
            self._take_notification(offset - NOTIFY, data)

    def _take_notification(self, offset: int, data: bytes) -> None:
        """Take a notification, and tell the observer about it.

        `offset` is that in the structure in memory, also of a write to the port.
        """
        if self._observer:
            queue = offset // NOTIFY_MULTIPLIER
            value = int.from_bytes(data[:8], "little")
            self._observer(
                "notified", queue=queue, width=len(data), value=value, **self._asked(queue)
            )
        self._notify(offset, int.from_bytes(data, "little"))

    # --- power, resets and memory

    def serves(self, queue: Queue) -> bool:
        """Return whether the driver has set DRIVER_OK, and the function can reach memory."""
        master = self.space.field(COMMAND, 2) & COMMAND_MASTER
        # A legacy driver may use the device before DRIVER_OK (virtio 3.1.2).
        running = self._legacy_driver or self.device.status & DeviceStatus.DRIVER_OK
        return bool(master and running and self._powered)

    def reset(self) -> None:
        """Reset the function: a function level reset, or a reset of its bus."""
        self.device.reset()
        self._power_on()

    def set_memory(self, memory: Memory) -> None:
        """Use another view of the client's memory.

        A client takes memory away and gives it back in pieces, also under a virtqueue that
        runs. A virtqueue whose rings are not there finds them when they are given back.
        """
        self.device.show_memory(memory)
        self.device.memory = memory
        for queue in self.device.queues:
            with suppress(BrokenError):
                queue.remap(memory)
