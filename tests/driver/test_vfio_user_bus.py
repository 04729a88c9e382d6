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
    ACCESS,
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
    """Serve one client in a thread; `answer` returns bytes, or None to disconnect.

    An answer is sent in pieces of `piece` bytes.
    """
    listeners: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def start(answer: Answer, piece: int = 1 << 20) -> str:
        path = str(tmp_path / "s")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen(1)
        listener.settimeout(10)
        listeners.append(listener)
        threads.append(threading.Thread(target=run, args=(listener, answer, piece), daemon=True))
        threads[-1].start()
        return path

    def run(listener: socket.socket, answer: Answer, piece: int) -> None:
        with suppress(OSError), listener.accept()[0] as link:
            while head := link.recv(HEADER.size):
                ident, command, size, _, _ = HEADER.unpack(head)
                body = link.recv(size - HEADER.size) if size > HEADER.size else b""
                answered = answer(ident, command, body)
                if answered is None:
                    return
                for start in range(0, len(answered), piece):
                    link.sendall(answered[start : start + piece])

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

    def impatient(bus: VfioUser, messages: list[tuple[Command, bytes]], *rest: Any) -> Any:
        if messages[0][0] == at and "within" in words:
            bus._timeout = IMPATIENCE
        return exchange(bus, messages, *rest)

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


@pytest.mark.parametrize("missing", [0, 1])
def test_an_answer_may_come_byte_by_byte(serve: Callable[..., str], missing: int) -> None:
    def answer(ident: int, command: int, body: bytes) -> bytes | None:
        answered = by_the_book(ident, command, body)
        return answered[: len(answered) - missing] if answered and bus else answered

    bus: list[VfioUser] = []
    bus.append(VfioUser(serve(answer, piece=1), TIMEOUT))
    if missing:
        bus[0]._timeout = IMPATIENCE
        with pytest.raises(DriverError, match="no answer to REGION_READ"):
            bus[0].pci_read(0, 4)
    else:
        assert bus[0].pci_read(0, 4) == bytes(4)
    bus[0].close()


def test_a_server_that_reads_nothing_is_not_waited_for_without_end(
    serve: Callable[..., str],
) -> None:
    over = threading.Event()

    def answer(ident: int, command: int, body: bytes) -> bytes | None:
        if command == Command.REGION_WRITE and started:
            over.wait(TIMEOUT)
            return None
        return by_the_book(ident, command, body)

    started: list[bool] = []
    bus = VfioUser(serve(answer), TIMEOUT)
    started.append(True)
    bus._timeout = IMPATIENCE
    try:
        with pytest.raises(DriverError, match="no answer to REGION_WRITE"):
            bus.bar_accesses(0, [(0, 4, 1)] * 20_000)
    finally:
        over.set()
    bus.close()


def test_accesses_that_go_together_are_answered_in_their_order(
    serve: Callable[[Answer], str],
) -> None:
    written = dict[int, bytes]()

    def keeps(ident: int, command: int, body: bytes) -> bytes | None:
        offset, region, width = ACCESS.unpack_from(body)
        if command == Command.REGION_WRITE:
            written[offset] = body[ACCESS.size :]
            return reply(ident, command, body[: ACCESS.size])
        if region == 0:
            return reply(ident, command, body + written.get(offset, bytes(width)))
        return by_the_book(ident, command, body)

    def answer(ident: int, command: int, body: bytes) -> bytes | None:
        accessed = command in (Command.REGION_READ, Command.REGION_WRITE)
        return (keeps if accessed else by_the_book)(ident, command, body)

    bus = VfioUser(serve(answer), TIMEOUT)
    accesses = [(8, 2, 0x1234), (8, 2, None), (8, 2, 0xFFFF), (16, 4, None), (8, 2, None)]
    assert bus.bar_accesses(0, accesses) == [0x1234, 0, 0xFFFF]
    assert bus.bar_accesses(0, []) == []
    bus.close()


@pytest.mark.parametrize(
    ("error", "words"), [(22, "Invalid argument"), (0xFFFFFFFF, "error 4294967295"), (0, "error")]
)
def test_the_first_of_several_accesses_that_is_refused_is_named(
    serve: Callable[[Answer], str], error: int, words: str
) -> None:
    def refuses(ident: int, command: int, body: bytes) -> bytes:
        refused = body[8:12] == bytes(4)
        return reply(ident, command, b"", REPLY | ERROR * refused, error * refused)

    bus = VfioUser(serve(instead(Command.REGION_WRITE, refuses)), TIMEOUT)
    with pytest.raises(DriverError, match=f"refuses REGION_WRITE: .*{words}"):
        bus.bar_accesses(0, [(8, 4, None), (16, 4, 1), (8, 4, None)])
    assert bus.bar_read(0, 16, 4) == 0
    bus.close()


def test_a_server_that_reads_memory_by_message_is_served_during_a_write(
    serve: Callable[[Answer], str],
) -> None:
    answers = list[bytes]()

    def answer(ident: int, command: int, body: bytes) -> bytes | None:
        if command == Command.DMA_READ:
            answers.append(body[DMA_ACCESS.size :])
            return b""
        if command == Command.REGION_WRITE and body[8:12] == bytes(4):
            asked = reply(7, Command.DMA_READ, DMA_ACCESS.pack(BORDER, 4), 0)
            return asked + reply(ident, command)
        return by_the_book(ident, command, body)

    bus = VfioUser(serve(answer), TIMEOUT)
    bus.memory.view(BORDER, 4)[:] = b"used"
    bus.bar_write(0, 16, 4, 1)
    assert bus.bar_read(0, 16, 4) == 0
    assert answers == [b"used"]
    bus.close()
