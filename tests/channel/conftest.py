"""Servers and bootstraps that end with the test."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from fake_guest import DEADLINE, Bootstrap

Handler = Callable[[socket.socket], None]


@pytest.fixture
def bootstrap(tmp_path: Path) -> Iterator[Bootstrap]:
    process = Bootstrap(tmp_path)
    yield process
    process.close()


@pytest.fixture
def serve() -> Iterator[Callable[..., None]]:
    """Factory of listening sockets whose n-th connection goes to the n-th handler."""
    with ExitStack() as stack:

        def start(listener: socket.socket, *handlers: Handler) -> None:
            listener.listen()
            listener.settimeout(DEADLINE)

            def run() -> None:
                for handler in handlers:
                    try:
                        connection, _ = listener.accept()
                    except OSError:  # closed: the test is over
                        return
                    with connection:
                        connection.settimeout(DEADLINE)
                        handler(connection)

            thread = threading.Thread(target=run)
            thread.start()
            stack.callback(thread.join, DEADLINE)
            stack.callback(listener.close)
            stack.callback(_stop_accepting, listener)

        yield start


def _stop_accepting(listener: socket.socket) -> None:
    try:
        listener.shutdown(socket.SHUT_RDWR)
    except OSError:
        return
