"""Devices of a QEMU whose CPU is halted: registers over the qtest socket, RAM as shared memory.

The driver runs on the host, in this process. QEMU and this process both map the
file of guest RAM, so rings and buffers are plain memory; only register accesses
use the socket. No firmware runs, so this module sets BARs and interrupt routing.
"""

from __future__ import annotations

import mmap
import select
import socket
import struct
import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from harness.driver.bus.base import Access, Bus, MmioWindow, PciFunction, aligned_accesses
from harness.driver.bus.msix import msix_table, set_enabled, write_entry
from harness.driver.errors import DriverError, NoDeviceError
from harness.driver.memory import DmaMemory, Region
from harness.virtio.mmio import REGISTERS
from harness.virtio.pci import (
    BAR_0,
    BAR_64,
    BAR_IO,
    BAR_IO_FLAGS,
    BAR_MEMORY_FLAGS,
    BAR_TYPE,
    BARS,
    BRIDGE_BUSES,
    BRIDGE_CONTROL,
    BRIDGE_MEMORY,
    BRIDGE_RESET,
    COMMAND,
    COMMAND_IO,
    COMMAND_MASTER,
    COMMAND_MEMORY,
    STATUS,
    STATUS_INTERRUPT,
)

ANSWER_TIMEOUT = 10.0
"""Seconds QEMU may take to answer a register access."""

MAX_LINE = 1 << 16
"""Most bytes of an answer; answers to register accesses have about 20."""

MAX_TAKEN = 1 << 16
"""Most interrupts per poll: a line that QEMU raises all the time must not block the driver."""

CONFIG_ADDRESS = 0xCF8
CONFIG_DATA = 0xCFC
BAR_WINDOW = 0xE000_0000
BAR_WINDOW_SIZE = 0x10_0000
"""Bytes of the PCI hole for the BARs of each slot."""

IO_WINDOW = 0xC000
IO_WINDOW_SIZE = 0x100
"""I/O ports for the BARs of each slot."""

LOW_MEMORY = 1 << 20
"""Address below which RAM has holes (VGA, option ROMs) and is not used."""

HIGH_MEMORY = 1 << 32

MESSAGES = 0x1000
"""Address in this low RAM of the words that MSI-X messages set, one per vector."""

MESSAGE = 1

EJECT = 0xAE08
"""I/O port of the board `pc` to which a guest writes the slots that it has given up (ACPI)."""

BRIDGE_SLOT = 1
PIRQ_ROUTING = 0x60
INTERRUPT = 11

EXPRESS_INTERRUPTS = range(16, 24)
PORT_BUS = 1

LETTER = {1: "b", 2: "w", 4: "l"}


@dataclass(frozen=True)
class Bar:
    """Place of a BAR: base, size in bytes, and True if it is in I/O space."""

    base: int
    size: int
    in_ports: bool


class Qtest:
    """QEMU's qtest protocol: a line per command, a line per answer, interrupts in between."""

    def __init__(self, connection: socket.socket) -> None:
        self.raised: Counter[int] = Counter()
        self.use(connection)

    def use(self, connection: socket.socket) -> None:
        """Use another connection from now on. The machine behind it may be another process."""
        self._broken = ""
        self._socket = connection
        self._socket.settimeout(ANSWER_TIMEOUT)
        self._buffer = b""
        self.command("irq_intercept_in ioapic")

    def command(self, line: str) -> int:
        """Send a command and return the value of its answer, 0 if it has none.

        Raises DriverError as `commands` does.
        """
        return self.commands(line)[0]

    def commands(self, *lines: str) -> list[int]:
        """Send commands that QEMU executes in this order, and return the values of their answers.

        Raises DriverError if one is refused, or if QEMU has ended. After an incomplete exchange the
        next answer could belong to any command, so every later command raises DriverError.
        """
        self._check()
        asked = "; ".join(lines)
        try:
            self._socket.sendall("".join(f"{line}\n" for line in lines).encode())
            deadline = time.monotonic() + ANSWER_TIMEOUT
            answers = [self._answer(deadline) for _ in lines]
        except TimeoutError:
            self._broken = f"QEMU did not answer {asked!r} within {ANSWER_TIMEOUT:g} s"
            raise DriverError(self._broken) from None
        except OSError as error:
            self._broken = f"QEMU ended during {asked!r}: {error}"
            raise DriverError(self._broken) from error
        except BaseException as error:  # Ctrl-C too
            self._broken = f"{asked!r} was given up: {error!r}"
            raise
        for line, answer in zip(lines, answers, strict=True):
            if answer[0] != "OK":
                raise DriverError(f"QEMU refused {line!r}: {' '.join(answer)}")
        return [int(answer[1], 0) if len(answer) > 1 else 0 for answer in answers]

    def _check(self) -> None:
        if self._broken:
            raise DriverError(f"the qtest socket is not used any more: {self._broken}")

    def _answer(self, deadline: float) -> list[str]:
        """Return the words of the next answer. Interrupts that come before it are counted."""
        while self._interrupt(answer := self._line()):
            if time.monotonic() > deadline:
                raise TimeoutError
        return answer

    def _line(self) -> list[str]:
        deadline = time.monotonic() + ANSWER_TIMEOUT
        while b"\n" not in self._buffer:
            if len(self._buffer) > MAX_LINE or time.monotonic() > deadline:
                raise TimeoutError
            received = self._socket.recv(4096)
            if not received:
                raise ConnectionResetError("it closed the qtest socket")
            self._buffer += received
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode(errors="replace").split() or [""]

    def _interrupt(self, words: list[str]) -> bool:
        if words[0] != "IRQ":
            return False
        try:
            if words[1] == "raise":
                self.raised[int(words[2])] += 1
        except (IndexError, ValueError):
            raise ConnectionError(f"it said {' '.join(words)[:80]!r}") from None
        return True

    def poll(self, timeout: float) -> None:
        """Read interrupts from QEMU. Wait up to `timeout` seconds for the first.

        A call reads at most MAX_TAKEN of them; the next call reads the others.
        """
        self._check()
        try:
            for _ in range(MAX_TAKEN):
                if not self._pending(timeout):
                    break
                words = self._line()
                if not self._interrupt(words):
                    raise DriverError(f"QEMU sent {' '.join(words)!r} without being asked")
                timeout = 0
        except OSError as error:
            self._broken = f"QEMU is gone: {error}"
            raise DriverError(self._broken) from error
        except BaseException as error:
            self._broken = f"a poll of interrupts was aborted: {error!r}"
            raise

    def _pending(self, timeout: float) -> bool:
        return b"\n" in self._buffer or bool(select.select([self._socket], [], [], timeout)[0])

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()


class _QtestBus(Bus):
    """Guest RAM through its file, and an input of the I/O APIC."""

    def __init__(
        self, qtest: Qtest, ram: Path, interrupts: Sequence[int], below: int | None = None
    ) -> None:
        """Use the inputs `interrupts` of the I/O APIC.

        `below` are the bytes of `ram` below 4 GiB; the others follow from 4 GiB on.
        """
        self.qtest = qtest
        self._interrupts = interrupts
        self._seen = self._raised
        with ram.open("r+b") as file:
            self._ram = mmap.mmap(file.fileno(), 0)
        view = memoryview(self._ram)
        regions = [Region(LOW_MEMORY, view[LOW_MEMORY:below])]
        if below is not None and below < len(view):
            regions.append(Region(HIGH_MEMORY, view[below:]))
        self.memory = DmaMemory(regions)

    @property
    def _raised(self) -> int:
        return sum(self.qtest.raised[number] for number in self._interrupts)

    def fileno(self) -> int | None:
        """Return None: only the driver itself waits for the socket."""
        return None

    def take_interrupts(self, timeout: float) -> int:
        """Return how often the line was raised since the last call; wait up to `timeout` s."""
        raised = self._raised - self._seen
        if not raised:
            self.qtest.poll(timeout)
            raised = self._raised - self._seen
        self._seen += raised
        return raised

    def continue_on(self, connection: socket.socket) -> None:
        """Go on in another process of QEMU, with the same memory.

        That process sends only changes of the line, so a line that is raised already counts now.
        """
        self.qtest.use(connection)
        if self._line_is_raised():
            self.qtest.raised[self._interrupts[0]] += 1

    @abstractmethod
    def _line_is_raised(self) -> bool:
        """Return True while the device asserts its interrupt line."""

    def unmask_interrupts(self) -> None:
        """Do nothing: the line is not masked here."""

    def close(self) -> None:
        """Close the socket. RAM is unmapped with its last view."""
        self.qtest.close()


class QtestMmio(_QtestBus, MmioWindow):
    """A window of the machine `microvm`, at a physical address."""

    size = 0x200

    def __init__(self, qtest: Qtest, ram: Path, address: int, interrupt: int) -> None:
        super().__init__(qtest, ram, (interrupt,))
        self.address = address

    def description(self) -> dict[str, Any]:
        """Return bus and address, for reports."""
        return {"bus": "mmio through qtest", "address": f"{self.address:#x}"}

    def _line_is_raised(self) -> bool:
        return bool(self.read(REGISTERS["InterruptStatus"], 4))

    def windows(self) -> dict[int, tuple[int, bool]]:
        """Return the physical address of the window."""
        return {-1: (self.address, False)}

    def read(self, offset: int, width: int) -> int:
        """Read in one access of `width` (1, 2 or 4) bytes."""
        return self.qtest.command(f"read{LETTER[width]} {self.address + offset:#x}")

    def write(self, offset: int, width: int, value: int) -> None:
        """Write in one access of `width` (1, 2 or 4) bytes."""
        self.qtest.command(f"write{LETTER[width]} {self.address + offset:#x} {value:#x}")


class QtestPci(_QtestBus, PciFunction):
    """The function in a slot of bus 0 (machine `pc`), BARs assigned, INTx routed and counted.

    `ram` is the file of guest RAM, of which `below` bytes lie below 4 GiB (None: all). Raises
    NoDeviceError if the slot is still empty after `timeout` seconds.
    """

    owns_configuration = True
    inputs: Sequence[int] = (INTERRUPT,)

    def __init__(
        self,
        qtest: Qtest,
        ram: Path,
        slot: int,
        below: int | None = None,
        timeout: float = 5.0,
    ) -> None:
        super().__init__(qtest, ram, self.inputs, below)
        self.slot = slot
        self._vectors = 0
        self._prepare()
        self._wait_for_device(timeout)
        self._bars = self._assign_bars()
        self.pci_write(
            COMMAND, (COMMAND_IO | COMMAND_MEMORY | COMMAND_MASTER).to_bytes(2, "little")
        )

    def _wait_for_device(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while self.pci_read(0, 2) == b"\xff\xff":
            if time.monotonic() > deadline:
                raise NoDeviceError(f"no PCI function in slot {self.slot:#x} after {timeout:g} s")
            time.sleep(0.01)

    def _assign_bars(self) -> dict[int, Bar]:
        """Find the size of every BAR and place it in the slot's windows."""
        bars: dict[int, Bar] = {}
        memory = BAR_WINDOW + self.slot * BAR_WINDOW_SIZE
        ports = IO_WINDOW + self.slot * IO_WINDOW_SIZE
        bar = 0
        while bar < BARS:
            at = BAR_0 + 4 * bar
            register = self.qtest.commands(
                self._select(*self._place, at),
                f"outl {CONFIG_DATA:#x} {0xFFFFFFFF:#x}",
                f"inl {CONFIG_DATA:#x}",
            )[-1]
            in_ports = bool(register & BAR_IO)
            wide = not in_ports and register & BAR_TYPE == BAR_64
            flags = BAR_IO_FLAGS if in_ports else BAR_MEMORY_FLAGS
            size = -(register & ~flags) & (0xFFFF if in_ports else 0xFFFFFFFF)
            if register:
                base = -(-(ports if in_ports else memory) // size) * size
                self.pci_write(at, base.to_bytes(4, "little"))
                if wide:
                    self.pci_write(at + 4, bytes(4))
                bars[bar] = Bar(base, size, in_ports)
                if in_ports:
                    ports = base + size
                else:
                    memory = base + size
            bar += 2 if wide else 1
        return bars

    def _prepare(self) -> None:
        """Route all four PCI interrupt lines of the chipset to one input of the I/O APIC."""
        self._config_write(0, BRIDGE_SLOT, PIRQ_ROUTING, bytes([INTERRUPT] * 4))

    @property
    def _place(self) -> tuple[int, int]:
        """The function's bus and slot."""
        return 0, self.slot

    def _select(self, bus: int, slot: int, offset: int) -> str:
        """Return the command that selects a word of a function's configuration space."""
        address = 1 << 31 | bus << 16 | slot << 11 | offset & 0xFC
        return f"outl {CONFIG_ADDRESS:#x} {address:#x}"

    def _config_write(self, bus: int, slot: int, offset: int, data: bytes) -> None:
        value = int.from_bytes(data, "little")
        width = LETTER[len(data)]
        write = f"out{width} {CONFIG_DATA + (offset & 3):#x} {value:#x}"
        self.qtest.commands(self._select(bus, slot, offset), write)

    def description(self) -> dict[str, Any]:
        """Return address and ids, for reports."""
        return {
            "bus": "pci through qtest",
            "address": "0000:{:02x}:{:02x}.0".format(*self._place),
            **self.identity(),
            "interrupt": f"MSI-X, {self._vectors} vectors" if self._vectors else "INTx",
        }

    def pci_read(self, offset: int, length: int) -> bytes:
        """Read bytes of configuration space; 1, 2 or 4 at an aligned offset are one access."""
        accesses = list(aligned_accesses(offset, length))
        lines = list[str]()
        for at, width in accesses:
            lines.append(self._select(*self._place, at))
            lines.append(f"in{LETTER[width]} {CONFIG_DATA + (at & 3):#x}")
        values = self.qtest.commands(*lines)[1::2]
        return b"".join(
            value.to_bytes(width, "little")
            for (_, width), value in zip(accesses, values, strict=True)
        )

    def pci_write(self, offset: int, data: bytes) -> None:
        """Write 1, 2 or 4 bytes of configuration space in one access."""
        self._config_write(*self._place, offset, data)

    def _line_is_raised(self) -> bool:
        return bool(self.pci_read(STATUS, 1)[0] & STATUS_INTERRUPT)

    def enable_msix(self, vectors: int) -> None:
        """Give every vector a word of RAM, which its message then sets."""
        table = msix_table(self)
        if vectors > table.size:
            raise DriverError(f"the device has {table.size} MSI-X vectors, not {vectors}")
        for vector in range(vectors):
            address = MESSAGES + 4 * vector
            self._ram[address : address + 4] = bytes(4)
            write_entry(self, table, vector, address, MESSAGE)
        set_enabled(self, table, bool(vectors))
        self._vectors = vectors

    def take_messages(self, timeout: float) -> Counter[int]:
        """Return vectors whose word was set: several messages of a vector count as one."""
        deadline = time.monotonic() + timeout
        while True:
            taken: Counter[int] = Counter()
            for vector in range(self._vectors):
                at = MESSAGES + 4 * vector
                if self._ram[at : at + 4] != bytes(4):
                    self._ram[at : at + 4] = bytes(4)
                    taken[vector] = 1
            if taken or time.monotonic() >= deadline:
                return taken
            time.sleep(0.0002)

    def windows(self) -> dict[int, tuple[int, bool]]:
        """Return the places that were assigned to the BARs."""
        return {number: (bar.base, bar.in_ports) for number, bar in self._bars.items()}

    def bar_size(self, bar: int) -> int:
        """Return the size of a BAR in bytes, 0 if the function does not have it."""
        return self._bars[bar].size if bar in self._bars else 0

    def bar_read(self, bar: int, offset: int, width: int) -> int:
        """Read from a BAR in one access of `width` (1, 2 or 4) bytes."""
        return self.qtest.command(self._line(bar, (offset, width, None)))

    def bar_accesses(self, bar: int, accesses: Sequence[Access]) -> list[int]:
        """Do several accesses to a BAR, whose commands go together."""
        lines = [self._line(bar, access) for access in accesses]
        answers = zip(accesses, self.qtest.commands(*lines), strict=True)
        return [answer for (_, _, value), answer in answers if value is None]

    def _line(self, bar: int, access: Access) -> str:
        """Return the command of an access to a BAR."""
        place, (offset, width, value) = self._bars[bar], access
        read, write = ("in", "out") if place.in_ports else ("read", "write")
        if value is None:
            return f"{read}{LETTER[width]} {place.base + offset:#x}"
        return f"{write}{LETTER[width]} {place.base + offset:#x} {value:#x}"

    def bar_write(self, bar: int, offset: int, width: int, value: int) -> None:
        """Write to a BAR in one access of `width` (1, 2 or 4) bytes."""
        self.qtest.command(self._line(bar, (offset, width, value)))

    def close(self) -> None:
        """Disable bus mastering of the function, and close the socket."""
        self.pci_write(COMMAND, bytes(2))
        super().close()


class QtestExpress(QtestPci):
    """The function below the root port in a slot of bus 0 (machine `q35`).

    The chipset routes the lines of the ports to the inputs EXPRESS_INTERRUPTS of the I/O APIC.
    """

    inputs = EXPRESS_INTERRUPTS

    @property
    def _place(self) -> tuple[int, int]:
        return PORT_BUS, 0

    def _prepare(self) -> None:
        """Give the port its bus, and the memory window of the slot."""
        port = partial(self._config_write, 0, self.slot)
        base = BAR_WINDOW + self.slot * BAR_WINDOW_SIZE >> 16
        for offset, number in enumerate((0, PORT_BUS, PORT_BUS)):
            port(BRIDGE_BUSES + offset, bytes([number]))
        port(BRIDGE_MEMORY, struct.pack("<HH", base, base))  # one MiB
        port(COMMAND, (COMMAND_MEMORY | COMMAND_MASTER).to_bytes(2, "little"))

    def reset_bus(self) -> None:
        """Reset the bus below the port, and so the function (secondary bus reset)."""
        for control in (BRIDGE_RESET, 0):
            self._config_write(0, self.slot, BRIDGE_CONTROL, control.to_bytes(2, "little"))
