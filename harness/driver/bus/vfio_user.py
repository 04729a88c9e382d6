"""A PCI function behind a vfio-user server: registers by messages, memory as shared files.

The driver runs in this process. There is no QEMU and no kernel in between: configuration
space and BARs are regions of the server, interrupts come as eventfds.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import select
import socket
import struct
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import ceil
from typing import Any

from harness.driver.bus.base import Access, PciFunction, aligned_accesses
from harness.driver.bus.msix import msix_table, set_enabled, write_entry
from harness.driver.errors import BadArgumentError, DriverError, NoDeviceError
from harness.driver.memory import DmaMemory, Region
from harness.driver.polling import events
from harness.virtio.pci import (
    BARS,
    COMMAND,
    COMMAND_IO,
    COMMAND_MASTER,
    COMMAND_MEMORY,
)
from harness.virtio.vfio_user import (
    ACCESS,
    ACTION_TRIGGER,
    ACTION_UNMASK,
    AREA,
    CONFIG_REGION,
    DATA_EVENTFD,
    DATA_NONE,
    DEVICE_INFO,
    DEVICE_PCI,
    DMA_ACCESS,
    DMA_MAP,
    DMA_READ_ALLOWED,
    DMA_WRITE_ALLOWED,
    ERROR,
    HEADER,
    INTX,
    IRQ_INFO,
    IRQ_SET,
    MAJOR,
    MAX_FDS,
    MAX_MESSAGE,
    MINOR,
    MSIX,
    NO_REPLY,
    REGION_CAPABILITIES,
    REGION_CAPABILITY,
    REGION_INFO,
    REGION_MMAP,
    REPLY,
    SPARSE_MMAP,
    VERSION,
    Command,
)

ANSWER_TIMEOUT = 10.0
"""Seconds that a server may take to answer a message."""

BORDER = 1 << 32
"""Bus address from which memory is used first. The MiB below it is for tests of the border."""

BUS_ADDRESS = BORDER - (1 << 20)
MEMORY_SIZE = 65 << 20
"""Bus address of shared memory, and its size in bytes; unused pages take no memory."""

INFO_ROOM = 4096
"""Most bytes of a region's description with its capabilities."""

MAX_DMA_MESSAGES = 100_000
"""Most messages of the server that are served during the wait for an answer."""

CAPABILITIES = {"max_msg_fds": MAX_FDS, "max_data_xfer_size": MAX_MESSAGE - 4096}

MESSAGE_ADDRESS = 0xFEE0_0000
"""The address in MSI-X table entries; the server signals an eventfd instead of writing there."""


READ_AHEAD = 4096
"""Bytes that are read from the socket at once. Most messages have less than 100."""

LOOKS = 20
"""Looks for an answer before a wait for it. To sleep and wake up takes longer than most answers."""


MAX_ERROR = 4096
"""Error numbers are less than this."""

NO_ERROR = errno.EIO
"""Error number of a refusal that gives none."""


@dataclass(frozen=True)
class Mapped:
    """An area of a region that is mapped: its offset, and the memory."""

    offset: int
    memory: mmap.mmap


class ProtocolError(Exception):
    """An answer that vfio-user does not allow."""


def _await(ready: select.poll, deadline: float) -> None:
    """Wait for an event of a poll object. TimeoutError at the deadline (monotonic seconds)."""
    left = max(deadline - time.monotonic(), 0.0)
    if not ready.poll(ceil(left * 1000)):
        raise TimeoutError


class VfioUser(PciFunction):
    """The function that is served on the UNIX socket `path`.

    `timeout` is in seconds, for each answer. Raises NoDeviceError if the server has no PCI
    function. Other methods raise DriverError when the server has closed the connection.
    """

    owns_configuration = True

    def __init__(self, path: str, timeout: float = ANSWER_TIMEOUT) -> None:
        self.path = path
        self._timeout = timeout
        self._ident = 0
        self._vectors = 0
        self._max_fds = 1
        self._sizes: dict[int, int] = {}
        self._mapped: dict[int, list[Mapped]] = {}
        self._events: list[int] = []
        self._epoll = select.epoll()
        self._received = b""
        self._fds: list[int] = []
        self._link = socket.socket(socket.AF_UNIX)
        self._link.settimeout(timeout)
        self._file = os.memfd_create("vfio-user-dma")
        self._ready, self._room = select.poll(), select.poll()
        self._ready.register(self._link, select.POLLIN)
        self._room.register(self._link, select.POLLOUT)
        try:
            os.truncate(self._file, MEMORY_SIZE)
            mapped = memoryview(mmap.mmap(self._file, MEMORY_SIZE))
            self.memory = DmaMemory([Region(BUS_ADDRESS, mapped)], first=BORDER)
            self._connect()
        except BaseException:
            self._release()
            raise

    def _connect(self) -> None:
        try:
            self._link.connect(self.path)
        except OSError as error:
            raise NoDeviceError(f"nobody serves {self.path}: {error.strerror}") from None
        self._link.setblocking(False)
        try:
            self._agree_on_version()
            info = DEVICE_INFO.pack(DEVICE_INFO.size, 0, 0, 0)
            _, flags, regions, _ = self._unpack(
                DEVICE_INFO, self._ask(Command.DEVICE_GET_INFO, info)
            )
            if not flags & DEVICE_PCI:
                raise NoDeviceError(f"{self.path} serves no PCI function")
            for index in (*range(min(BARS, regions)), CONFIG_REGION):
                self._sizes[index] = self._describe_region(index)
            allowed = DMA_READ_ALLOWED | DMA_WRITE_ALLOWED
            whole = DMA_MAP.pack(DMA_MAP.size, allowed, 0, BUS_ADDRESS, MEMORY_SIZE)
            self._ask(Command.DMA_MAP, whole, [self._file])
            command = int.from_bytes(self.pci_read(COMMAND, 2), "little")
            command |= COMMAND_IO | COMMAND_MEMORY | COMMAND_MASTER
            self.pci_write(COMMAND, command.to_bytes(2, "little"))
            self.enable_msix(0)
        except NoDeviceError:
            raise
        except DriverError as error:
            raise NoDeviceError(error.message) from None

    def _agree_on_version(self) -> None:
        offer = json.dumps({"capabilities": CAPABILITIES}).encode() + b"\0"
        answer = self._ask(Command.VERSION, VERSION.pack(MAJOR, MINOR) + offer)
        major, _ = self._unpack(VERSION, answer)
        if major != MAJOR:
            raise NoDeviceError(f"{self.path} speaks version {major} of vfio-user, not {MAJOR}")
        try:
            answered = json.loads(answer[VERSION.size :].rstrip(b"\0") or b"{}")
            self._max_fds = int(answered.get("capabilities", {}).get("max_msg_fds", 1))
        except (ValueError, TypeError, AttributeError, RecursionError):
            raise NoDeviceError(f"{self.path} sends capabilities that are not JSON") from None

    # --- messages

    def _ask(self, command: Command, body: bytes, fds: Sequence[int] = ()) -> bytes:
        """Send a command and return its answer. DriverError if it is refused or late."""
        return self._exchange([(command, body)], fds)[0]

    def _exchange(
        self, messages: Sequence[tuple[Command, bytes]], fds: Sequence[int] = ()
    ) -> list[bytes]:
        """Send commands together and return their answers.

        Memory accesses that the server requests by message are served during the wait. Raises
        DriverError if a command is refused, after all answers have come, or if an answer is late.
        An exchange that ends early closes the connection: a later one would take the answer for
        its own.
        """
        answers = list[tuple[int, bytes]]()
        try:
            idents = [(self._ident + number) & 0xFFFF for number in range(1, len(messages) + 1)]
            self._ident = idents[-1]
            data = b"".join(
                HEADER.pack(ident, command, HEADER.size + len(body), 0, 0) + body
                for ident, (command, body) in zip(idents, messages, strict=True)
            )
            deadline = time.monotonic() + self._timeout
            self._send(data, fds, deadline)
            for ident in idents:
                answers.append(self._receive_answer(ident, deadline))
        except BaseException as problem:
            self._link.close()
            name = messages[min(len(answers), len(messages) - 1)][0].name
            if isinstance(problem, TimeoutError):
                raise DriverError(
                    f"no answer to {name} from {self.path} within {self._timeout:g} s"
                ) from None
            if isinstance(problem, ProtocolError):
                raise DriverError(f"{self.path} breaks vfio-user at {name}: {problem}") from None
            if isinstance(problem, (OSError, ValueError)):
                raise DriverError(
                    f"the vfio-user server at {self.path} is gone at {name}: {problem}"
                ) from None
            raise
        for (command, _), (error, _) in zip(messages, answers, strict=True):
            if error:
                self._drop_fds()
                words = os.strerror(error) if error < MAX_ERROR else f"error {error}"
                raise DriverError(f"{self.path} refuses {command.name}: {words}")
        return [answer for _, answer in answers]

    def _receive_answer(self, ident: int, deadline: float) -> tuple[int, bytes]:
        """Return the error number, 0 for none, and the content of the answer to a message.

        Descriptors that come with it are in `_fds`. Those of an earlier answer are closed.
        """
        self._drop_fds()
        for _ in range(MAX_DMA_MESSAGES):
            answered, kind, flags, error, body = self._receive_message(deadline)
            if not flags & REPLY:
                self._drop_fds()
                self._serve(answered, kind, body, flags, deadline)
                continue
            if answered != ident:
                raise ProtocolError(f"it answered message {answered}, not {ident}")
            return (error or NO_ERROR if flags & ERROR else 0), body
        raise ProtocolError(f"it sent {MAX_DMA_MESSAGES} messages and no answer")

    def _receive_message(self, deadline: float) -> tuple[int, int, int, int, bytes]:
        self._await_bytes(HEADER.size, deadline)
        ident, kind, size, flags, error = HEADER.unpack_from(self._received)
        if not HEADER.size <= size <= MAX_MESSAGE:
            raise ProtocolError(f"a message of {size} bytes")
        self._await_bytes(size, deadline)
        body, self._received = self._received[HEADER.size : size], self._received[size:]
        return ident, kind, flags, error, body

    def _await_bytes(self, length: int, deadline: float) -> None:
        """Wait until `length` bytes have come. Everything that has come is read at once."""
        while len(self._received) < length:
            for _ in range(LOOKS):
                if self._ready.poll(0):
                    break
                os.sched_yield()
            else:
                _await(self._ready, deadline)
            if time.monotonic() > deadline:
                raise TimeoutError
            with suppress(BlockingIOError):
                piece, fds, _, _ = socket.recv_fds(self._link, READ_AHEAD, MAX_FDS)
                self._fds += fds
                if not piece:
                    raise ConnectionError("it hung up")
                self._received += piece

    def _send(self, data: bytes, fds: Sequence[int], deadline: float) -> None:
        """Send bytes, the descriptors with the first of them."""
        left = memoryview(data)
        while left:
            try:
                sent = socket.send_fds(self._link, [left], fds) if fds else self._link.send(left)
            except BlockingIOError:
                _await(self._room, deadline)
                continue
            left, fds = left[sent:], ()

    def _drop_fds(self) -> None:
        """Close the descriptors that came with answers and that nobody has taken."""
        while self._fds:
            os.close(self._fds.pop())

    def _serve(self, ident: int, command: int, body: bytes, flags: int, deadline: float) -> None:
        """Execute a memory access that the server requests by message."""
        if command not in (Command.DMA_READ, Command.DMA_WRITE) or len(body) < DMA_ACCESS.size:
            raise ProtocolError(f"a message with command {command} that nobody asked for")
        address, count = DMA_ACCESS.unpack_from(body)
        answer, kind = DMA_ACCESS.pack(address, count), REPLY
        try:
            view = self.memory.view(address, count)
            if command == Command.DMA_READ:
                answer += bytes(view)
            else:
                view[:] = body[DMA_ACCESS.size :]
        except (BadArgumentError, ValueError):
            kind |= ERROR
        if not flags & NO_REPLY:
            size = HEADER.size + len(answer)
            self._send(HEADER.pack(ident, command, size, kind, 0) + answer, (), deadline)

    def _unpack(self, layout: struct.Struct, answer: bytes) -> tuple[Any, ...]:
        if len(answer) < layout.size:
            raise DriverError(f"{self.path} answers with {len(answer)} bytes, not {layout.size}")
        return layout.unpack_from(answer)

    # --- regions

    def _describe_region(self, index: int) -> int:
        """Return a region's size in bytes, and map the areas that can be mapped."""
        asked = REGION_INFO.pack(INFO_ROOM, 0, index, 0, 0, 0)
        answer = self._ask(Command.DEVICE_GET_REGION_INFO, asked)
        try:
            _, flags, _, at, size, offset = self._unpack(REGION_INFO, answer)
            if self._fds and flags & REGION_MMAP:
                areas = [(0, size)]
                if flags & REGION_CAPABILITIES:
                    areas = self._sparse_areas(answer, at) or areas
                self._mapped[index] = [
                    Mapped(start, mmap.mmap(self._fds[0], length, offset=offset + start))
                    for start, length in areas
                ]
        except (OSError, ValueError, OverflowError) as error:
            raise DriverError(f"region {index} of {self.path} is not mapped: {error}") from None
        finally:
            self._drop_fds()
        return int(size)

    @staticmethod
    def _sparse_areas(answer: bytes, at: int) -> list[tuple[int, int]]:
        """Return the areas of a region's sparse mmap capability, none without one."""
        seen = set[int]()
        while at and at not in seen and at + REGION_CAPABILITY.size <= len(answer):
            seen.add(at)
            ident, _, following, count = REGION_CAPABILITY.unpack_from(answer, at)
            first = at + REGION_CAPABILITY.size
            last = first + AREA.size * count
            if ident == SPARSE_MMAP and last <= len(answer):
                return list(AREA.iter_unpack(answer[first:last]))
            at = following
        return []

    def _area(self, region: int, offset: int, length: int) -> Mapped | None:
        """Return the mapped area that holds the whole access, None without one."""
        for area in self._mapped.get(region, ()):
            if area.offset <= offset and offset + length <= area.offset + len(area.memory):
                return area
        return None

    def _access(self, region: int, accesses: Sequence[Access]) -> list[bytes]:
        """Do accesses by messages that go together; return the bytes of the reads."""
        if not accesses:
            return []
        messages = [
            (Command.REGION_READ, ACCESS.pack(offset, region, width))
            if value is None
            else (
                Command.REGION_WRITE,
                ACCESS.pack(offset, region, width) + value.to_bytes(width, "little"),
            )
            for offset, width, value in accesses
        ]
        pieces = list[bytes]()
        for (offset, width, value), answer in zip(accesses, self._exchange(messages), strict=True):
            if value is not None:
                continue
            pieces.append(answer[ACCESS.size :])
            if len(pieces[-1]) != width:
                got = len(pieces[-1])
                raise DriverError(f"{self.path} reads {got} bytes at {offset:#x}, not {width}")
        return pieces

    def description(self) -> dict[str, Any]:
        """Return address and identity, for reports."""
        return {
            "bus": "pci through vfio-user",
            "address": self.path,
            **self.identity(),
            "interrupt": f"MSI-X, {self._vectors} vectors" if self._vectors else "INTx",
        }

    def pci_read(self, offset: int, length: int) -> bytes:
        """Return bytes of configuration space; 1, 2 or 4 at an aligned offset are one access."""
        accesses = [(at, width, None) for at, width in aligned_accesses(offset, length)]
        return b"".join(self._access(CONFIG_REGION, accesses))

    def pci_write(self, offset: int, data: bytes) -> None:
        """Write 1, 2 or 4 bytes of configuration space in one access."""
        self._access(CONFIG_REGION, [(offset, len(data), int.from_bytes(data, "little"))])

    def bar_size(self, bar: int) -> int:
        """Return the bytes of a BAR, 0 if it has none."""
        return self._sizes.get(bar, 0) if bar < BARS else 0

    def bar_read(self, bar: int, offset: int, width: int) -> int:
        """Read `width` (1, 2 or 4) bytes of a BAR in one access."""
        if area := self._area(bar, offset, width):
            start = offset - area.offset
            return int.from_bytes(area.memory[start : start + width], "little")
        return int.from_bytes(self._access(bar, [(offset, width, None)])[0], "little")

    def bar_write(self, bar: int, offset: int, width: int, value: int) -> None:
        """Write `width` (1, 2 or 4) bytes of a BAR in one access."""
        if area := self._area(bar, offset, width):
            start = offset - area.offset
            area.memory[start : start + width] = value.to_bytes(width, "little")
        else:
            self._access(bar, [(offset, width, value)])

    def bar_accesses(self, bar: int, accesses: Sequence[Access]) -> list[int]:
        """Do several accesses to a BAR, whose messages go together."""
        if bar in self._mapped:
            return super().bar_accesses(bar, accesses)
        return [int.from_bytes(piece, "little") for piece in self._access(bar, accesses)]

    # --- interrupts

    def enable_msix(self, vectors: int) -> None:
        """Connect every vector to its own eventfd, or with 0 the interrupt line to one."""
        asked = IRQ_INFO.pack(IRQ_INFO.size, 0, MSIX, 0)
        _, _, _, present = self._unpack(IRQ_INFO, self._ask(Command.DEVICE_GET_IRQ_INFO, asked))
        if vectors > present:
            raise DriverError(f"the device has {present} MSI-X vectors, not {vectors}")
        if self._events:
            self._set_irqs(DATA_NONE | ACTION_TRIGGER, MSIX if self._vectors else INTX, 0, 0)
            for event in self._events:
                self._epoll.unregister(event)
                os.close(event)
            self._events.clear()
        index = MSIX if vectors else INTX
        for _ in range(vectors or 1):
            event = os.eventfd(0, os.EFD_NONBLOCK)
            self._events.append(event)
            self._epoll.register(event, select.EPOLLIN)
        step = max(self._max_fds, 1)
        for start in range(0, len(self._events), step):
            some = self._events[start : start + step]
            self._set_irqs(DATA_EVENTFD | ACTION_TRIGGER, index, start, len(some), some)
        self._vectors = vectors
        if present:
            self._enable_table(vectors)

    def _enable_table(self, vectors: int) -> None:
        """Unmask the table entries, as a platform does, and enable or disable MSI-X."""
        table = msix_table(self)
        for vector in range(vectors):
            write_entry(self, table, vector, MESSAGE_ADDRESS, vector)
        set_enabled(self, table, bool(vectors))

    def _set_irqs(
        self, flags: int, index: int, start: int, count: int, fds: Sequence[int] = ()
    ) -> None:
        body = IRQ_SET.pack(IRQ_SET.size, flags, index, start, count)
        self._ask(Command.DEVICE_SET_IRQS, body, fds)

    def fileno(self) -> int | None:
        """Return a descriptor that is readable while an interrupt is pending."""
        return self._epoll.fileno()

    def _take(self, timeout: float) -> Counter[int]:
        taken: Counter[int] = Counter()
        if events(self._epoll, timeout):
            for number, event in enumerate(self._events):
                with suppress(BlockingIOError):
                    taken[number] = os.eventfd_read(event)
        return taken

    def take_interrupts(self, timeout: float) -> int:
        """Return how often an interrupt was raised since the last call; wait up to `timeout` s."""
        return self._take(timeout).total()

    def take_messages(self, timeout: float) -> Counter[int]:
        """Return the messages since the last call, by vector; wait up to `timeout` s for one."""
        return self._take(timeout)

    def unmask_interrupts(self) -> None:
        """Unmask the interrupt line, which the server masked when it was raised."""
        if not self._vectors:
            self._set_irqs(DATA_NONE | ACTION_UNMASK, INTX, 0, 1)

    # --- the end

    def reset(self) -> None:
        """Reset the function, as a reset of its bus does."""
        self._ask(Command.DEVICE_RESET, b"")

    def close(self) -> None:
        """Reset the function and close the connection. A second call does nothing."""
        if self._link.fileno() >= 0:
            with suppress(DriverError):
                self.reset()
        self._release()

    def _release(self) -> None:
        self._link.close()
        self._drop_fds()
        for event in self._events:
            os.close(event)
        self._events.clear()
        if not self._epoll.closed:
            self._epoll.close()
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
