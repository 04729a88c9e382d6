"""The agent in a guest: executes calls on drivers, one at a time, from a byte stream.

A call is (handle or None, method, positional arguments, keyword arguments).
Its result is one of ("ok", value), ("driver-error", class, message, state) and
("error", traceback). `harness.guest.wire` describes the frames.
"""

from __future__ import annotations

import fcntl
import os
import select
import struct
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.driver.errors import ERRORS, DriverError
from harness.driver.interface import Driver
from harness.guest import codec
from harness.guest.wire import PROTOCOL, WORTH_PACKING, Frame, Kind, Parser, join, split

if TYPE_CHECKING:
    import socket

STDOUT = 1

RNDADDENTROPY = 0x4008_5203
RNDRESEEDCRNG = 0x5207

FUNCTIONS = Path("/sys/bus/pci/devices")
HUGE_PAGES = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")
FREE_PAGES = "free_hugepages"

KERNEL_LOG = "/dev/kmsg"
RECORD = 8192
"""Bytes that a record of the kernel's log may have."""

LEVEL, WARNING = 7, 4
"""Bits of a record's priority that are its level; this level and those below it are reported."""

SLOW_HOST = ("hrtimer: interrupt took", "CE: ", "clocksource: ", "TSC found unstable", "rcu: ")
"""Beginnings of warnings about time, which a guest on a busy host prints whatever a test does."""

MESSAGES_READ = 2000
"""Most records that are read in a call."""

Attach = Callable[[str, str, float], Driver]


def main(read_fd: int, write_fd: int) -> None:
    """Serve until the stream ends."""
    if write_fd == STDOUT:
        read_fd, write_fd = _claim_standard_streams(read_fd, write_fd)
    Server(read_fd, write_fd, _attach).run()


def _claim_standard_streams(read_fd: int, write_fd: int) -> tuple[int, int]:
    """Move the stream to descriptors of its own, so that no `print` can write into it."""
    private = os.dup(read_fd), os.dup(write_fd)
    quiet = os.open(os.devnull, os.O_RDWR)
    try:
        console = os.open("/dev/console", os.O_WRONLY | os.O_NOCTTY)
    except OSError:
        console = quiet
    for source, target in ((quiet, 0), (console, 1), (console, 2)):
        os.dup2(source, target)
    return private


def _attach(kind: str, address: str, timeout: float) -> Driver:
    # Imported late: hello() must answer even if the driver cannot be imported.
    from harness.driver.attach import attach

    return attach(kind, address, timeout)


def _disks() -> list[tuple[str, str]]:
    from harness.driver.discover import disks

    return disks()


class Server:
    """Reads calls from `read_fd`, writes answers to `write_fd`; `attach` creates the drivers."""

    def __init__(self, read_fd: int, write_fd: int, attach: Attach) -> None:
        self._read_fd = read_fd
        self._write_fd = write_fd
        self._listener: socket.socket | None = None
        self._connection: socket.socket | None = None
        self._attach_driver = attach
        self._parser = Parser()
        self._drivers: dict[int, Driver] = {}
        self._failures: dict[int, str] = {}
        self._next_handle = 1
        self._call: list[bytes] = []
        self._result: list[bytes] = []
        self._answer = Frame(Kind.NAK, 0)
        self._kernel_log = -1
        self._methods: dict[str, Callable[..., object]] = {
            "hello": self._hello,
            "attach": self._attach,
            "detach": self._detach,
            "disks": _disks,
            "memory": _memory,
            "remains": self._remains,
            "renew": _renew,
            "ping": lambda: None,
            "listen": self._listen,
        }

    def run(self) -> None:
        """Serve until the stream ends.

        A connection (see `_listen`) is served in place of the stream until it ends. At the end of
        both every driver is detached.
        """
        while True:
            try:
                while data := self._wait_for_input():
                    self._take(data)
            except OSError as error:
                # A reset or a hangup also ends the stream. (Errors of drivers do not get here.)
                print(f"vblk agent: the stream failed: {error}", file=sys.stderr)
            finally:
                self._detach_all()
            if self._connection is None:
                break
            self._connection.close()
            self._connection = None
            self._parser = Parser()
        if self._listener:
            self._listener.close()

    def _detach_all(self) -> None:
        for handle in list(self._drivers):
            try:
                self._detach(handle)
            except Exception:
                traceback.print_exc()

    def _listen(self, port: int) -> None:
        """Accept connections at `port` of 127.0.0.1, one at a time."""
        # Imported late: only a guest with an SSH server needs it.
        import socket

        self._listener = socket.create_server(("127.0.0.1", port), backlog=1)

    def _accept(self, listener: socket.socket) -> None:
        """Serve a connection from now on. Its messages have nothing to do with earlier ones."""
        self._connection, _ = listener.accept()
        self._parser = Parser()

    def _wait_for_input(self) -> bytes:
        """Return bytes from the host, b"" at the end of the stream.

        There is no deadline: an agent waits as long as the host keeps the stream open.
        Interrupts are serviced during the wait, so that callbacks run in time.
        """
        while True:
            watched = self._interrupt_descriptors()
            stream = self._connection.fileno() if self._connection else self._read_fd
            listener = None if self._connection else self._listener
            waiting = [listener.fileno()] if listener else []
            ready, _, _ = select.select([stream, *watched, *waiting], [], [])
            for descriptor in ready:
                if descriptor in watched:
                    self._service(watched[descriptor])
            if listener and listener.fileno() in ready:
                self._accept(listener)
            elif stream in ready:
                return os.read(stream, 65536)

    def _interrupt_descriptors(self) -> dict[int, int]:
        """Return descriptors that become readable on an interrupt -> handle of the driver."""
        found: dict[int, int] = {}
        for handle, driver in self._drivers.items():
            fileno = getattr(driver, "fileno", None)
            descriptor = fileno() if fileno and handle not in self._failures else None
            if descriptor is not None:
                found[descriptor] = handle
        return found

    def _service(self, handle: int) -> None:
        try:
            self._drivers[handle].service()  # type: ignore[attr-defined]
        except Exception:
            # No call is in progress; the next call on this driver reports it.
            self._failures[handle] = traceback.format_exc()

    def _take(self, data: bytes) -> None:
        damaged = self._parser.damaged
        frames = self._parser.feed(data)
        for frame in frames:
            if frame.sequence == self._answer.sequence:
                self._send(self._answer)
            elif frame.kind is Kind.PROBE:
                self._send(Frame(Kind.NAK, frame.sequence))
            else:
                self._answer = self._answer_to(frame)
                self._send(self._answer)
        if not frames and self._parser.damaged > damaged:
            self._send(Frame(Kind.NAK, 0))

    def _send(self, frame: Frame) -> None:
        data = frame.encode()
        stream = self._connection.fileno() if self._connection else self._write_fd
        while data:
            data = data[os.write(stream, data) :]

    def _answer_to(self, frame: Frame) -> Frame:
        if frame.kind is Kind.PART:
            self._call.append(frame.payload)
            return Frame(Kind.ACK, frame.sequence)
        if frame.kind is Kind.CALL:
            call, self._call = [*self._call, frame.payload], []
            self._result = split(self._execute(call), WORTH_PACKING)
        part = self._result.pop(0) if self._result else b""
        kind = Kind.RESULT_PART if self._result else Kind.RESULT
        return Frame(kind, frame.sequence, part)

    def _execute(self, call: list[bytes]) -> bytes:
        try:
            handle, method, arguments, keywords = codec.decode(join(call))
            value = self._method(handle, method)(*arguments, **keywords)
            return codec.encode(("ok", value))
        except DriverError as error:
            return _encode_driver_error(error)
        except Exception:
            return codec.encode(("error", traceback.format_exc()))

    def _method(self, handle: int | None, name: str) -> Callable[..., object]:
        if handle is None:
            return self._methods[name]
        if handle not in self._drivers:
            raise DriverError("this driver is closed")
        if handle in self._failures:
            raise RuntimeError(f"servicing an interrupt failed\n{self._failures[handle]}")
        if name not in Driver.__abstractmethods__:
            raise AttributeError(f"a driver has no method {name}")
        method: Callable[..., object] = getattr(self._drivers[handle], name)
        return method

    def _hello(self) -> dict[str, Any]:
        return {
            "protocol": PROTOCOL,
            "python": sys.version.split()[0],
            "kernel": os.uname().release,
            "cpu": _cpu(),
            "memory": _memory(),
        }

    def _remains(self) -> dict[str, Any]:
        """Return what tests may leave behind: equal values before and after mean that none did.

        These are the attached drivers, the PCI functions, the huge pages that drivers have taken
        and not released, the memory that vfio has locked, the processes that were started here,
        and the kernel's warnings and errors since the last call (none in the first one).
        """
        # Imported late, as the driver is.
        from harness.driver.bus.linux_pci import HugePage

        total, free = (
            int((HUGE_PAGES / name).read_text()) for name in ("nr_hugepages", FREE_PAGES)
        )
        return {
            "drivers": len(self._drivers),
            "functions": sorted(function.name for function in FUNCTIONS.iterdir()),
            "pages": total - free - len(HugePage.idle),
            "locked": _first_value(Path("/proc/self/status").read_text().splitlines(), "VmLck"),
            "processes": _has_children(),
            "messages": self._kernel_messages(),
        }

    def _kernel_messages(self) -> list[str]:
        if self._kernel_log < 0:
            self._kernel_log = os.open(KERNEL_LOG, os.O_RDONLY | os.O_NONBLOCK)
            os.lseek(self._kernel_log, 0, os.SEEK_END)
        found: list[str] = []
        for _ in range(MESSAGES_READ):
            try:
                record = os.read(self._kernel_log, RECORD).decode("utf-8", "replace")
            except BlockingIOError:
                return found
            except BrokenPipeError:  # the kernel has overwritten what was not read
                found.append("messages were lost")
                continue
            head, _, text = record.partition(";")
            bad = int(head.partition(",")[0]) & LEVEL <= WARNING
            if bad and not text.startswith(SLOW_HOST):
                found.append(text.partition("\n")[0])
        return [*found, "more messages than were read"]

    def _attach(self, kind: str, address: str, timeout: float) -> int:
        driver = self._attach_driver(kind, address, timeout)
        handle = self._next_handle
        self._next_handle += 1
        self._drivers[handle] = driver
        return handle

    def _detach(self, handle: int) -> None:
        self._failures.pop(handle, None)
        driver = self._drivers.pop(handle, None)
        if driver is not None:
            driver.close()


def _encode_driver_error(error: DriverError) -> bytes:
    name = next(kind.__name__ for kind in type(error).__mro__ if kind.__name__ in ERRORS)
    try:
        return codec.encode(("driver-error", name, error.message, error.state))
    except codec.CodecError:
        state = {str(key): repr(value) for key, value in error.state.items()}
        return codec.encode(("driver-error", name, error.message, state))


def _renew(now: float, entropy: bytes) -> None:
    """Set the clock, and seed the kernel's random numbers with new entropy.

    Otherwise all guests that are cloned from the same memory have the same random numbers.
    """
    time.clock_settime(time.CLOCK_REALTIME, now)
    device = os.open("/dev/urandom", os.O_WRONLY)
    try:
        # struct rand_pool_info: bits of entropy, bytes, and the bytes themselves.
        head = struct.pack("ii", 8 * len(entropy), len(entropy))
        fcntl.ioctl(device, RNDADDENTROPY, head + entropy)
        # This makes the generators of all CPUs use the new entropy.
        fcntl.ioctl(device, RNDRESEEDCRNG)
    finally:
        os.close(device)


def _has_children() -> bool:
    """Return True if a process that was started here has not ended, or was not waited for."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _cpu() -> str:
    """Return the model name of the processor, which shows emulation ("" if unknown)."""
    return _first_value(Path("/proc/cpuinfo").read_text().splitlines(), "model name")


def _first_value(lines: Sequence[str], name: str) -> str:
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""


def _memory() -> dict[str, int]:
    """Return /proc/meminfo in bytes; values in pages, such as HugePages_Free, stay in pages."""
    amounts: dict[str, int] = {}
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, amount, *unit = line.split()
        amounts[name.rstrip(":")] = int(amount) * (1024 if unit == ["kB"] else 1)
    return amounts
