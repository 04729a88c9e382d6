"""Bad sockets and bad back-ends: each gets one clear line, in time."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from scripted import ScriptedBackEnd

from harness.driver.errors import NoDeviceError
from harness.driver.transport.vhost_user import VhostUser
from harness.virtio.vhost_user import HEADER, REPLY, U64, VERSION, ProtocolFeature
from harness.virtio.vhost_user import FrontEndRequest as Ask

PATIENCE = 30.0
"""Seconds for an answer that comes; a machine under load may need some of them."""

IMPATIENCE = 0.3
"""Seconds for an answer that never comes."""

DRIPPED = 100
"""Bytes of a payload that comes too slowly: it needs many times IMPATIENCE."""


def complaint(path: Path, timeout: float = PATIENCE) -> str:
    """Try to attach, assert that it fails with one line, and return that line."""
    with pytest.raises(NoDeviceError) as caught:
        VhostUser(str(path), timeout=timeout)
    line = str(caught.value)
    assert "\n" not in line and str(path) in line
    return line


@pytest.fixture
def listener(short_dir: Path) -> Iterator[Callable[[Callable[[socket.socket], None]], Path]]:
    """Factory of listening sockets whose first client is given to a function."""
    listeners: list[tuple[socket.socket, threading.Thread]] = []

    def make(treat: Callable[[socket.socket], None]) -> Path:
        server = socket.socket(socket.AF_UNIX)
        server.bind(str(short_dir / "s"))
        server.listen()

        def serve() -> None:
            try:
                client, _ = server.accept()
            except OSError:
                return
            with client, suppress(ConnectionError):
                treat(client)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        listeners.append((server, thread))
        return short_dir / "s"

    yield make
    for server, thread in listeners:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join(5)


def test_no_such_path(tmp_path: Path) -> None:
    assert "No such file" in complaint(tmp_path / "nothing")


def test_a_file_and_a_directory_are_no_sockets(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "is not a socket" in complaint(tmp_path / "file")
    assert "is not a socket" in complaint(tmp_path)


def test_a_socket_without_a_listener(short_dir: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(short_dir / "s"))
    assert "no process listens" in complaint(short_dir / "s")


def test_a_socket_of_another_kind(short_dir: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(short_dir / "s"))
        assert "wrong type" in complaint(short_dir / "s")


def test_a_full_backlog(short_dir: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as other:
        server.bind(str(short_dir / "s"))
        server.listen(0)
        other.connect(str(short_dir / "s"))
        assert "takes no connection within 0.3 s" in complaint(short_dir / "s", IMPATIENCE)


def test_one_that_says_hello_in_another_protocol(
    listener: Callable[[Callable[[socket.socket], None]], Path],
) -> None:
    def greet(client: socket.socket) -> None:
        client.sendall(b'{"QMP": {"version": {}}}')
        while client.recv(4096):
            pass

    assert "does not speak vhost-user: it answered" in complaint(listener(greet))


def test_one_that_never_answers(
    listener: Callable[[Callable[[socket.socket], None]], Path],
) -> None:
    def read_on(client: socket.socket) -> None:
        while client.recv(4096):
            pass

    path = listener(read_on)
    assert "did not answer GET_FEATURES within 0.3 s" in complaint(path, IMPATIENCE)


def test_one_that_answers_a_byte_at_a_time(
    listener: Callable[[Callable[[socket.socket], None]], Path],
) -> None:
    # The header is a good one: however late the driver reads, it finds a part of an answer.
    answer = HEADER.pack(Ask.GET_FEATURES, VERSION | REPLY, DRIPPED) + bytes(DRIPPED)

    def drip(client: socket.socket) -> None:
        with suppress(OSError):
            for byte in answer:
                client.sendall(bytes([byte]))
                time.sleep(0.1)

    assert "did not answer GET_FEATURES within 0.3 s" in complaint(listener(drip), IMPATIENCE)


@pytest.mark.parametrize(
    "request_",
    [
        Ask.GET_FEATURES,
        Ask.GET_PROTOCOL_FEATURES,
        Ask.SET_PROTOCOL_FEATURES,
        Ask.GET_QUEUE_NUM,
        Ask.SET_BACKEND_REQ_FD,
        Ask.GET_CONFIG,
    ],
)
def test_one_that_hangs_up_half_way(
    back_end: ScriptedBackEnd, short_dir: Path, request_: Ask
) -> None:
    back_end.at[request_] = lambda connection: back_end.hang_up()
    assert "closed the connection at" in complaint(short_dir / "s")
    assert request_ in back_end.seen()


def test_one_that_closes_in_the_middle_of_an_answer(
    back_end: ScriptedBackEnd, short_dir: Path
) -> None:
    back_end.at[Ask.GET_FEATURES] = lambda connection: (
        connection.sendall(b"\x01\0\0\0\x05\0\0"),
        back_end.hang_up(),
    )
    assert "closed the connection at GET_FEATURES" in complaint(short_dir / "s")


def test_one_that_announces_an_absurd_answer(back_end: ScriptedBackEnd, short_dir: Path) -> None:
    back_end.at[Ask.GET_FEATURES] = lambda connection: connection.sendall(
        b"\x01\0\0\0\x05\0\0\0\xff\xff\xff\x7f"
    )
    assert "does not speak vhost-user: it answered" in complaint(short_dir / "s")


@pytest.mark.parametrize("flags", [1, 4, 6])
def test_one_whose_answer_is_no_reply_of_this_version(
    back_end: ScriptedBackEnd, short_dir: Path, flags: int
) -> None:
    back_end.at[Ask.GET_FEATURES] = lambda connection: connection.sendall(
        HEADER.pack(Ask.GET_FEATURES, flags, U64.size) + U64.pack(back_end.features)
    )
    assert "does not speak vhost-user: it answered" in complaint(short_dir / "s")


def test_one_whose_features_are_not_64_bits(back_end: ScriptedBackEnd, short_dir: Path) -> None:
    back_end.at[Ask.GET_FEATURES] = lambda connection: connection.sendall(
        b"\x01\0\0\0\x05\0\0\0\x04\0\0\0abcd"
    )
    assert "answered GET_FEATURES with 4 bytes" in complaint(short_dir / "s")


def test_one_without_a_configuration_space(
    new_back_end: Callable[..., ScriptedBackEnd], short_dir: Path
) -> None:
    new_back_end(protocol=(ProtocolFeature.REPLY_ACK,))
    assert "offers no configuration space" in complaint(short_dir / "s")


def test_one_with_too_small_a_configuration_space(
    new_back_end: Callable[..., ScriptedBackEnd], short_dir: Path
) -> None:
    new_back_end(config_limit=12)
    assert "no configuration of a block device" in complaint(short_dir / "s")


@pytest.mark.parametrize("length", [0, 4, 16])
def test_an_acknowledgment_that_is_not_64_bits(
    back_end: ScriptedBackEnd, short_dir: Path, length: int
) -> None:
    back_end.at[Ask.SET_BACKEND_REQ_FD] = lambda connection: connection.sendall(
        HEADER.pack(Ask.SET_BACKEND_REQ_FD, 5, length) + bytes(length)
    )
    assert f"acknowledged SET_BACKEND_REQ_FD with {length} bytes" in complaint(short_dir / "s")
