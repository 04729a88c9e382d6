"""Interrupts of the function: MSI-X with masks and pending bits, INTx with Interrupt Status."""

from __future__ import annotations

from collections.abc import Callable

from harness.model.pci.space import ConfigSpace
from harness.virtio.pci import (
    CAP_MSIX,
    COMMAND,
    COMMAND_INTX_DISABLE,
    COMMAND_MASTER,
    MSIX_ENABLE,
    MSIX_ENTRY,
    MSIX_ENTRY_MASKED,
    MSIX_FUNCTION_MASK,
    STATUS,
    STATUS_INTERRUPT,
)

TABLE = 0x000
PENDING = 0x800
BAR_SIZE = 0x1000
"""Offsets of the MSI-X table and the pending bit array in their BAR, and the BAR's size.

All are in bytes.
"""

MAX_VECTORS = (PENDING - TABLE) // MSIX_ENTRY.size

VECTOR_CONTROL = MSIX_ENTRY.size - 4


class Interrupts:
    """The function's interrupts. `send_message` and `send_line` carry them to the client.

    A client that keeps the MSI-X table to itself (QEMU) never writes to ours. Mask bits
    of a table that nobody has written do not count.
    """

    def __init__(
        self,
        space: ConfigSpace,
        bar: int,
        vectors: int,
        send_message: Callable[[int], None],
        send_line: Callable[[], None],
    ) -> None:
        self.vectors = vectors
        self.isr = 0
        self._space = space
        self._send_message = send_message
        self._send_line = send_line
        self._table = bytearray(MSIX_ENTRY.size * vectors)
        self._table_written = False
        self._pending = 0
        self.line_masked = False
        for vector in range(vectors):
            self._table[MSIX_ENTRY.size * vector + VECTOR_CONTROL] = MSIX_ENTRY_MASKED
        body = (
            (vectors - 1).to_bytes(2, "little")
            + (TABLE | bar).to_bytes(4, "little")
            + (PENDING | bar).to_bytes(4, "little")
        )
        writable = (MSIX_ENABLE | MSIX_FUNCTION_MASK).to_bytes(2, "little")
        self._control = space.add_capability(CAP_MSIX, body, writable) + 2

    # --- causes

    @property
    def messages_enabled(self) -> bool:
        """Return whether MSI-X is enabled."""
        return bool(self._space.field(self._control, 2) & MSIX_ENABLE)

    def raise_interrupt(self, vector: int, cause: int) -> None:
        """Interrupt for a cause (a bit of ISR status): by its vector, or by the line."""
        if not self.messages_enabled:
            self.isr |= cause
            self.update_line()
        elif vector < self.vectors:
            self._pending |= 1 << vector
            self.send_pending()

    def read_isr(self) -> int:
        """Return ISR status and clear it (virtio 4.1.4.5)."""
        value, self.isr = self.isr, 0
        self.update_line()
        return value

    # --- INTx

    def update_line(self) -> None:
        """Show Interrupt Status, and send the line's interrupt if it is asserted and not masked.

        The client masks the line until it has served it, so a level is sent again then.
        """
        asserted = bool(self.isr)
        self._space.change(STATUS, STATUS_INTERRUPT, asserted)
        disabled = self._space.field(COMMAND, 2) & COMMAND_INTX_DISABLE
        if asserted and not disabled and not self.line_masked:
            self.line_masked = True
            self._send_line()

    def set_line_masked(self, masked: bool) -> None:
        """Mask or unmask the line, as the client says."""
        self.line_masked = masked
        self.update_line()

    # --- MSI-X

    def _masked(self, vector: int) -> bool:
        if self._space.field(self._control, 2) & MSIX_FUNCTION_MASK:
            return True
        control = self._table[MSIX_ENTRY.size * vector + VECTOR_CONTROL]
        return self._table_written and bool(control & MSIX_ENTRY_MASKED)

    def send_pending(self) -> None:
        """Send the message of every pending vector that is not masked."""
        master = self._space.field(COMMAND, 2) & COMMAND_MASTER
        if not self._pending or not self.messages_enabled or not master:
            return
        for vector in range(self.vectors):
            if self._pending >> vector & 1 and not self._masked(vector):
                self._pending &= ~(1 << vector)
                self._send_message(vector)

    def control_written(self, offset: int, length: int) -> None:
        """Act on a write of configuration space, which may have unmasked an interrupt."""
        if offset < self._control + 2 and self._control < offset + length:
            self.send_pending()
        if offset < COMMAND + 2 and offset + length > COMMAND:
            self.update_line()
            self.send_pending()

    def read_bar(self, offset: int, length: int) -> bytes:
        """Return bytes of the BAR with the table and the pending bits."""
        size = -(-self.vectors // 64) * 8
        areas = ((TABLE, bytes(self._table)), (PENDING, self._pending.to_bytes(size, "little")))
        whole = bytearray(BAR_SIZE)
        for start, data in areas:
            whole[start : start + len(data)] = data
        return bytes(whole[offset : offset + length]).ljust(length, b"\0")

    def write_bar(self, offset: int, data: bytes) -> None:
        """Write the table; pending bits are read-only."""
        inside = data[: max(len(self._table) - offset, 0)]
        if inside:
            self._table[offset : offset + len(inside)] = inside
            self._table_written = True
            self.send_pending()
