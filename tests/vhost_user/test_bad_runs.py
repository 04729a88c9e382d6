"""Runs on an unusable target: one line says why, and the run ends."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytest_plugins = ["pytester"]

MODULE = """
from harness.report import reads_only

@reads_only
def test_first(plug):
    plug()

@reads_only
def test_second(plug):
    plug()
"""


@pytest.fixture
def other_protocol(short_dir: Path) -> Iterator[Path]:
    """A socket that greets its clients, which a back-end does not do."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(short_dir / "s"))
    server.listen()

    def serve() -> None:
        while True:
            try:
                client, _ = server.accept()
            except OSError:
                return
            with client, suppress(ConnectionError):
                client.sendall(b'{"QMP": {}}\r\n')
                while client.recv(4096):
                    pass  # the driver hangs up once it has read the greeting

    threading.Thread(target=serve, daemon=True).start()
    yield short_dir / "s"
    server.shutdown(socket.SHUT_RDWR)
    server.close()


@pytest.fixture
def interrupted(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Run a suite, assert that it ends after one test, and return the one-line reason."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pytester.makeconftest((ROOT / "conftest.py").read_text())
    pytester.makepyfile(test_it=MODULE)

    def run(target: str) -> str:
        result = pytester.runpytest_subprocess(f"--target={target}", timeout=60)
        assert result.ret == pytest.ExitCode.INTERRUPTED
        result.assert_outcomes(errors=1)
        (line,) = [line for line in result.outlines if "Interrupted" in line]
        return line.strip("! ").removeprefix("Interrupted: ")

    return run


def test_nothing_there(interrupted: Callable[[str], str], short_dir: Path) -> None:
    path = short_dir / "nothing"
    assert interrupted(f"vhost-user:{path}") == (
        f"no vhost-user back-end at '{path}': No such file or directory"
    )


def test_a_socket_that_speaks_something_else(
    interrupted: Callable[[str], str], other_protocol: Path
) -> None:
    why = interrupted(f"vhost-user:{other_protocol}")
    assert why.startswith(f"{other_protocol} does not speak vhost-user: it answered")


def test_a_function_that_is_not_there(interrupted: Callable[[str], str]) -> None:
    assert interrupted("pci:ffff:00:1f.7").startswith(
        "this machine has no PCI function ffff:00:1f.7;"
    )
