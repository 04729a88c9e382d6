"""The vfio-user bus, with servers that hang, disconnect, or send invalid answers."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from harness.driver.bus.vfio_user import BORDER, VfioUser
from harness.driver.errors import DriverError, NoDeviceError
from harness.virtio.vfio_user import (
    DEVICE_INFO,
    DEVICE_PCI,
    DMA_ACCESS,
    ERROR,
    HEADER,
    IRQ_INFO,
    REGION_INFO,
    REPLY,
    VERSION,
    Command,
)

TIMEOUT = 30.0
"""Seconds for an answer that comes; a machine under load may need some of them."""

IMPATIENCE = 0.3
"""Seconds for an answer that never comes."""

Answer = Callable[[int, int, bytes], bytes | None]


def reply(ident: int, command: int, body: bytes = b"", flags: int = REPLY, error: int = 0) -> bytes:
    """Return the bytes of an answer on the socket."""
    return HEADER.pack(ident, command, HEADER.size + len(body), flags, error) + body


def by_the_book(ident: int, command: int, body: bytes) -> bytes | None:
    """Answer like a server of an empty PCI function."""
    limits = json.dumps({"capabilities": {"max_msg_fds": 1}}).encode() + b"\0"
    bodies = {
        Command.VERSION: VERSION.pack(0, 1) + limits,
        Command.DEVICE_GET_INFO: DEVICE_INFO.pack(16, DEVICE_PCI, 9, 5),
        Command.DEVICE_GET_REGION_INFO: REGION_INFO.pack(32, 3, 0, 0, 256, 0),
        Command.DEVICE_GET_IRQ_INFO: IRQ_INFO.pack(16, 1, 2, 0),
    }
    if command == Command.REGION_READ:
        return reply(ident, command, body + bytes(int.from_bytes(body[12:16], "little")))
    return reply(ident, command, bodies.get(Command(command), b""))


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[Answer], str]]:
    """Serve one client in a thread; `answer` returns bytes, or None to disconnect."""
    listeners: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def start(answer: Answer) -> str:
        path = str(tmp_path / "s")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen(1)
        listener.settimeout(10)
        listeners.append(listener)
        threads.append(threading.Thread(target=run, args=(listener, answer), daemon=True))
        threads[-1].start()
        return path

    def run(listener: socket.socket, answer: Answer) -> None:
        with suppress(OSError), listener.accept()[0] as link:
            while head := link.recv(HEADER.size):
                ident, command, size, _, _ = HEADER.unpack(head)
                body = link.recv(size - HEADER.size) if size > HEADER.size else b""
                answered = answer(ident, command, body)
                if answered is None:
                    return
                link.sendall(answered)

    yield start
    for listener in listeners:
        listener.close()
    for thread in threads:
        thread.join(10)


def instead(at: Command, answered: Answer) -> Answer:
    """Answer correctly, except for one command."""
    return lambda ident, command, body: (answered if command == at else by_the_book)(
        ident, command, body
    )


def test_a_server_by_the_book_is_reached(serve: Callable[[Answer], str]) -> None:
    bus = VfioUser(serve(by_the_book), TIMEOUT)
    assert bus.bar_size(0) == 256
    bus.close()
    bus.close()


@pytest.mark.parametrize(
    "at", [Command.VERSION, Command.DEVICE_GET_REGION_INFO, Command.DMA_MAP, Command.REGION_READ]
)
@pytest.mark.parametrize(
    ("answered", "words"),
    [
        (lambda ident, command, body: None, "hung up"),
        (lambda ident, command, body: b"", "no answer to {} from .* within 0.3 s"),
        (lambda ident, command, body: b"x" * 64, "a message of"),
        (lambda ident, command, body: reply(ident + 1, command), "answered message"),
        (
            lambda ident, command, body: reply(ident, command, b"", REPLY | ERROR, 22),
            "refuses {}: Invalid argument",
        ),
    ],
    ids=["hangs-up", "silent", "garbage", "wrong-id", "refuses"],
)
def test_trouble_at_each_step_is_one_line(
    serve: Callable[[Answer], str],
    monkeypatch: pytest.MonkeyPatch,
    at: Command,
    answered: Answer,
    words: str,
) -> None:
    path = serve(instead(at, answered))
    exchange = VfioUser._exchange

    def impatient(bus: VfioUser, command: Command, *rest: Any) -> Any:
        if command == at and "within" in words:
            bus._timeout = IMPATIENCE
        return exchange(bus, command, *rest)

    monkeypatch.setattr(VfioUser, "_exchange", impatient)
    with pytest.raises(NoDeviceError, match=words.format(at.name)):
        VfioUser(path, TIMEOUT)


@pytest.mark.parametrize(
    "at", [Command.VERSION, Command.DEVICE_GET_INFO, Command.DEVICE_GET_IRQ_INFO]
)
def test_an_answer_that_is_too_short_is_one_line(
    serve: Callable[[Answer], str], at: Command
) -> None:
    path = serve(instead(at, lambda ident, command, body: reply(ident, command)))
    with pytest.raises(NoDeviceError, match=f"{path}|JSON"):
        VfioUser(path, TIMEOUT)


def test_endless_memory_accesses_have_an_end(
    serve: Callable[[Answer], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.driver.bus.vfio_user.MAX_DMA_MESSAGES", 3)

    def asks(ident: int, command: int, body: bytes) -> bytes:
        return reply(ident, Command.DMA_READ, bytes(16), flags=0x10) * 3

    path = serve(instead(Command.DMA_MAP, asks))
    with pytest.raises(NoDeviceError, match="DMA_MAP: it sent 3 messages and no answer"):
        VfioUser(path, TIMEOUT)


def test_a_bus_whose_exchange_failed_is_not_used_again(serve: Callable[[Answer], str]) -> None:
    silent = False

    def answer(ident: int, command: int, body: bytes) -> bytes | None:
        return b"" if silent else by_the_book(ident, command, body)

    bus = VfioUser(serve(answer), TIMEOUT)
    bus._timeout = IMPATIENCE
    silent = True
    with pytest.raises(DriverError, match="no answer to REGION_READ"):
        bus.bar_read(0, 0, 4)
    silent = False
    with pytest.raises(DriverError, match="is gone at REGION_READ"):
        bus.bar_read(0, 0, 4)
    bus.close()


def test_a_write_is_posted_and_a_refused_one_is_reported_by_the_next_access(
    serve: Callable[[Answer], str],
) -> None:
    def refuses(ident: int, command: int, body: bytes) -> bytes:
        region = int.from_bytes(body[8:12], "little")
        error = 22 if region == 0 else 0
        return reply(ident, command, b"", REPLY | (ERROR if error else 0), error)

    bus = VfioUser(serve(instead(Command.REGION_WRITE, refuses)), TIMEOUT)
    bus.bar_write(0, 16, 4, 1)
    with pytest.raises(DriverError, match="refuses REGION_WRITE"):
        bus.bar_read(0, 16, 4)
    assert bus.bar_read(0, 16, 4) == 0
    bus.close()


def test_a_server_that_reads_memory_by_message_is_served_after_a_write(
    serve: Callable[[Answer], str],
) -> None:
    answers = list[bytes]()

    def reads_memory(ident: int, command: int, body: bytes) -> bytes:
        return reply(7, Command.DMA_READ, DMA_ACCESS.pack(BORDER, 4), 0) + reply(ident, command)

    def answer(ident: int, command: int, body: bytes) -> bytes | None:
        if command == Command.DMA_READ:
            answers.append(body[DMA_ACCESS.size :])
            return b""
        if command == Command.REGION_WRITE and body[8:12] == bytes(4):
            return reads_memory(ident, command, body)
        return by_the_book(ident, command, body)

    bus = VfioUser(serve(answer), TIMEOUT)
    bus.memory.view(BORDER, 4)[:] = b"used"
    bus.bar_write(0, 16, 4, 1)
    assert bus.take_interrupts(0) == 0
    bus.bar_write(0, 16, 4, 1)  # from now on the answer is awaited at once
    assert bus.bar_read(0, 16, 4) == 0
    assert answers == [b"used", b"used"]
    bus.close()
