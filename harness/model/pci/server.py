"""One vfio-user client's connection to a function: messages, memory, eventfds."""

from __future__ import annotations

import errno
import json
import mmap
import os
import socket
import struct
import sys
from collections.abc import Callable
from contextlib import suppress

from harness.model.block import Block
from harness.model.loop import Loop
from harness.model.memory import BrokenError, Memory, Region
from harness.model.observer import Observer
from harness.model.pci.function import Function, Layout
from harness.model.pci.member import Member
from harness.model.pci.owner import Owner
from harness.virtio.vfio_user import (
    ACCESS,
    ACTION_MASK,
    ACTION_TRIGGER,
    ACTION_UNMASK,
    CONFIG_REGION,
    DATA_BOOL,
    DATA_EVENTFD,
    DEVICE_INFO,
    DEVICE_PCI,
    DEVICE_RESET,
    DMA_MAP,
    DMA_UNMAP,
    DMA_WRITE_ALLOWED,
    ERROR,
    HEADER,
    INTX,
    IRQ_AUTOMASKED,
    IRQ_EVENTFD,
    IRQ_INFO,
    IRQ_MASKABLE,
    IRQ_NO_RESIZE,
    IRQ_SET,
    IRQS,
    MAJOR,
    MAX_FDS,
    MAX_MESSAGE,
    MINOR,
    MSIX,
    NO_REPLY,
    REGION_INFO,
    REGION_READ,
    REGION_WRITE,
    REGIONS,
    REPLY,
    UNMAP_ALL,
    VERSION,
    Command,
)

PATIENCE = 2.0
"""Seconds within which the rest of a message that has begun must arrive."""

MAX_REGIONS = 65536
"""Mapped regions of a client, at most."""

MAX_TRANSFER = 1 << 20

LOOKS = 60
"""Looks for the next message before a wait for it: to sleep and wake up would take longer."""

READ_AHEAD = 4096
"""Bytes that are received at once."""

Handler = Callable[[bytes, list[int]], bytes]

Carried = Callable[[Callable[[int], None], Callable[[], None]], Function]
"""Maker of a function, or a way to take one over: with the sender of messages and of the line."""


class RefusedError(Exception):
    """A message that the server answers with an error number."""

    def __init__(self, text: str, number: int = errno.EINVAL) -> None:
        super().__init__(text)
        self.number = number


class HungUpError(Exception):
    """The client is gone."""


class Connection:
    """A client that is connected. `closed` is called once it is gone."""

    def __init__(
        self, link: socket.socket, loop: Loop, closed: Callable[[], None], carried: Carried
    ) -> None:
        self._link = link
        self._loop = loop
        self._closed = closed
        self._received = b""
        self._fds: list[int] = []
        self._regions: dict[int, Region | None] = {}
        self._events: dict[int, dict[int, int]] = {INTX: {}, MSIX: {}}
        self.function = carried(
            lambda vector: self._signal(MSIX, vector), lambda: self._signal(INTX, 0)
        )
        self.device = self.function.device
        self._handlers: dict[int, Handler] = {
            Command.VERSION: self._version,
            Command.DMA_MAP: self._dma_map,
            Command.DMA_UNMAP: self._dma_unmap,
            Command.DEVICE_GET_INFO: self._get_info,
            Command.DEVICE_GET_REGION_INFO: self._get_region_info,
            Command.DEVICE_GET_IRQ_INFO: self._get_irq_info,
            Command.DEVICE_SET_IRQS: self._set_irqs,
            Command.REGION_READ: self._region_read,
            Command.REGION_WRITE: self._region_write,
            Command.DEVICE_RESET: self._device_reset,
        }
        link.settimeout(PATIENCE)
        loop.looks = LOOKS
        loop.watch(link.fileno(), self._readable)

    # --- messages

    def _readable(self) -> None:
        try:
            self._receive(READ_AHEAD)
            while self._received:
                self._take_message()
        except (HungUpError, OSError):
            self.close()
        except RefusedError as error:
            print(f"hanging up: {error}", file=sys.stderr, flush=True)
            self.close()

    def _take_message(self) -> None:
        while len(self._received) < HEADER.size:
            self._receive(HEADER.size - len(self._received))
        ident, command, size, flags, _ = HEADER.unpack_from(self._received)
        if not HEADER.size <= size <= MAX_MESSAGE or flags & REPLY:
            head = self._received[: HEADER.size]
            raise RefusedError(f"a message of another protocol: {head.hex(' ')}")
        while len(self._received) < size:
            self._receive(size - len(self._received))
        body, self._received = self._received[HEADER.size : size], self._received[size:]
        # The kernel ends a read after data that came with descriptors, and the rest of a message is
        # read by its length: so they belong to the last message that has come.
        fds = [] if self._received else self._fds
        answer, number = b"", 0
        try:
            answer = self._handle(command, body, fds)
        except RefusedError as error:
            print(f"refused command {command}: {error}", file=sys.stderr, flush=True)
            number = error.number
        except (struct.error, ValueError, BrokenError) as error:
            print(f"refused command {command}: {error}", file=sys.stderr, flush=True)
            number = errno.EINVAL
        except OSError as error:
            number = error.errno or errno.EIO
        finally:
            while fds:  # those that no handler has taken
                os.close(fds.pop())
        if not flags & NO_REPLY:
            kind = REPLY | (ERROR if number else 0)
            size = HEADER.size + len(answer)
            self._link.sendall(HEADER.pack(ident, command, size, kind, number) + answer)

    def _receive(self, most: int) -> None:
        """Receive up to `most` bytes; wait for the first.

        A client may send several messages at once. Descriptors come with the last of these only.
        """
        piece, fds, _, _ = socket.recv_fds(self._link, most, MAX_FDS)
        self._fds += fds
        if not piece:
            raise HungUpError
        self._received += piece

    def _handle(self, command: int, body: bytes, fds: list[int]) -> bytes:
        if command not in self._handlers:
            raise RefusedError("unknown", errno.ENOTSUP)
        return self._handlers[command](body, fds)

    def _version(self, body: bytes, fds: list[int]) -> bytes:
        major, minor = VERSION.unpack_from(body)
        if major != MAJOR:
            raise RefusedError(f"version {major}", errno.ENOTSUP)
        limits = {"max_msg_fds": MAX_FDS, "max_data_xfer_size": MAX_TRANSFER, "pgsizes": 4096}
        agreed = VERSION.pack(MAJOR, min(minor, MINOR))
        return agreed + json.dumps({"capabilities": limits}).encode() + b"\0"

    # --- the device

    def _get_info(self, body: bytes, fds: list[int]) -> bytes:
        return DEVICE_INFO.pack(DEVICE_INFO.size, DEVICE_RESET | DEVICE_PCI, REGIONS, IRQS)

    def _size(self, region: int) -> int:
        if region == CONFIG_REGION:
            return self.function.space.size
        return self.function.bars.get(region, 0)

    def _get_region_info(self, body: bytes, fds: list[int]) -> bytes:
        _, _, index, _, _, _ = REGION_INFO.unpack_from(body)
        if index >= REGIONS:
            raise RefusedError(f"no region {index}")
        size = self._size(index)
        flags = REGION_READ | REGION_WRITE if size else 0
        return REGION_INFO.pack(REGION_INFO.size, flags, index, 0, size, 0)

    def _get_irq_info(self, body: bytes, fds: list[int]) -> bytes:
        _, _, index, _ = IRQ_INFO.unpack_from(body)
        if index >= IRQS:
            raise RefusedError(f"no interrupt type {index}")
        kinds = {
            INTX: (IRQ_EVENTFD | IRQ_MASKABLE | IRQ_AUTOMASKED, 1),
            MSIX: (IRQ_EVENTFD | IRQ_NO_RESIZE, self.function.interrupts.vectors),
        }
        flags, count = kinds.get(index, (0, 0))
        return IRQ_INFO.pack(IRQ_INFO.size, flags, index, count)

    def _set_irqs(self, body: bytes, fds: list[int]) -> bytes:
        _, flags, index, start, count = IRQ_SET.unpack_from(body)
        events = self._events.get(index)
        limit = 1 if index == INTX else self.function.interrupts.vectors
        if events is None or start + count > limit:
            raise RefusedError(f"interrupts {start} to {start + count} of type {index}")
        vectors = range(start, start + count)
        if flags & ACTION_TRIGGER and (flags & DATA_EVENTFD or not count):
            self._set_events(events, vectors if count else range(limit), fds)
            self.function.interrupts.update_line()
            self.function.interrupts.send_pending()
        elif flags & ACTION_TRIGGER:
            chosen = body[IRQ_SET.size :] if flags & DATA_BOOL else b"\1" * count
            for vector, wanted in zip(vectors, chosen, strict=False):
                if wanted:
                    self._signal(index, vector)
        elif flags & (ACTION_MASK | ACTION_UNMASK) and index == INTX:
            self.function.interrupts.set_line_masked(bool(flags & ACTION_MASK))
        return b""

    @staticmethod
    def _set_events(events: dict[int, int], vectors: range, fds: list[int]) -> None:
        """Take a descriptor for each vector; a vector without one is off."""
        for vector in vectors:
            if vector in events:
                os.close(events.pop(vector))
            if fds:
                events[vector] = fds.pop(0)

    def _signal(self, index: int, vector: int) -> None:
        event = self._events[index].get(vector)
        if event is not None:
            with suppress(OSError):
                os.eventfd_write(event, 1)

    def _region_read(self, body: bytes, fds: list[int]) -> bytes:
        offset, region, count = ACCESS.unpack_from(body)
        self._check_access(offset, region, count)
        if region == CONFIG_REGION:
            data = self.function.config_read(offset, count)
        else:
            data = self.function.bar_read(region, offset, count)
        return ACCESS.pack(offset, region, count) + data

    def _region_write(self, body: bytes, fds: list[int]) -> bytes:
        offset, region, count = ACCESS.unpack_from(body)
        self._check_access(offset, region, count)
        data = body[ACCESS.size :]
        if len(data) != count:
            raise RefusedError(f"{len(data)} bytes in a write of {count}")
        if region == CONFIG_REGION:
            self.function.config_write(offset, data)
        else:
            self.function.bar_write(region, offset, data)
        return ACCESS.pack(offset, region, count)

    def _check_access(self, offset: int, region: int, count: int) -> None:
        if not 0 < count <= MAX_TRANSFER or offset + count > self._size(region):
            raise RefusedError(f"{count} bytes at {offset:#x} of region {region}")

    def _device_reset(self, body: bytes, fds: list[int]) -> bytes:
        self.function.reset()
        return b""

    # --- memory

    def _dma_map(self, body: bytes, fds: list[int]) -> bytes:
        _, flags, offset, address, size = DMA_MAP.unpack_from(body)
        if len(self._regions) >= MAX_REGIONS:
            raise RefusedError(f"more than {MAX_REGIONS} regions", errno.ENOSPC)
        if any(
            address < known + length and known < address + size
            for known, length in self._lengths().items()
        ):
            raise RefusedError(f"{address:#x} is mapped already", errno.EEXIST)
        if fds:
            write = mmap.PROT_WRITE if flags & DMA_WRITE_ALLOWED else 0
            whole = mmap.mmap(fds[0], offset + size, prot=mmap.PROT_READ | write)
            self._regions[address] = Region(address, address, memoryview(whole)[offset:])
            self._remap()
        return b""

    def _lengths(self) -> dict[int, int]:
        return {address: len(region.view) for address, region in self._regions.items() if region}

    def _dma_unmap(self, body: bytes, fds: list[int]) -> bytes:
        _, flags, address, size = DMA_UNMAP.unpack_from(body)
        if flags & UNMAP_ALL:
            self._regions.clear()
        else:
            inside = [at for at in self._regions if address <= at < address + size]
            for at in inside:
                del self._regions[at]
        self._remap()
        return body[: DMA_UNMAP.size]

    def _remap(self) -> None:
        self.function.set_memory(Memory(region for region in self._regions.values() if region))

    def close(self) -> None:
        """Hang up; the function is reset."""
        self.function.reset()
        for events in self._events.values():
            for event in events.values():
                os.close(event)
            events.clear()
        while self._fds:
            os.close(self._fds.pop())
        self._loop.looks = 0
        self._regions.clear()
        self._loop.forget(self._link.fileno())
        self._link.close()
        self._closed()


class OwnerConnection(Connection):
    """A client of a new function, which is its own."""

    function: Owner

    def __init__(
        self,
        link: socket.socket,
        block: Block,
        loop: Loop,
        closed: Callable[[], None],
        layout: Layout,
        observer: Observer | None = None,
    ) -> None:
        super().__init__(
            link,
            loop,
            closed,
            lambda message, line: Owner(block, loop, layout, message, line, observer),
        )


class MemberConnection(Connection):
    """A client of a member function, which stays when the client is gone."""

    function: Member

    def __init__(
        self, link: socket.socket, member: Member, loop: Loop, closed: Callable[[], None]
    ) -> None:
        def attached(message: Callable[[int], None], line: Callable[[], None]) -> Member:
            member.attach(message, line, self.close)
            return member

        super().__init__(link, loop, closed, attached)

    def close(self) -> None:
        """Hang up; the member is reset."""
        self.function.detach()
        super().close()
