"""Control channels whose other end writes without end: QMP, and the model's own."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from endless import bounded

from harness.diskspec import DiskSpec
from harness.machine.errors import MachineError
from harness.machine.monitor import EVENTS_KEPT, LoopThread, Monitor
from harness.targets import model
from harness.targets.model import ModelProcess

PEER = """
import socket, sys

peer = socket.socket(fileno=int(sys.argv[1]))
if sys.argv[2] != "greeting":
    peer.sendall(b'{"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7},'
                 b' "package": ""}, "capabilities": []}}\\n')
    peer.recv(4096)
    peer.sendall(b'{"return": {}, "id": "__qmp#00000"}\\n')
stamp = b'"timestamp": {"seconds": 1, "microseconds": 2}'
data = {
    "greeting": b"x" * 65536,
    "line": b"x" * 65536,
    "events": b'{"event": "RESET", "data": {}, %s}\\n' % stamp * 100,
    "answers": b'{"return": {}, "id": "no command has this"}\\n' * 100,
    "large events": b'{"event": "RESET", "data": {"a": "%s"}, %s}\\n' % (b"y" * 500000, stamp),
    "nested": b"[" * 60000 + b"\\n",
}[sys.argv[2]]
while True:
    try:
        peer.sendall(data)
    except OSError:
        break
"""

LATE = 40.0
"""Seconds after which a wait has no bound, on a busy machine."""

MEMORY = 64 << 20
"""Bytes that a peer can make us hold."""


@contextmanager
def peer(words: str) -> Iterator[socket.socket]:
    """A process at the other end of a socket, which writes without end."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-c", PEER, str(theirs.fileno()), words], pass_fds=[theirs.fileno()]
        )
    try:
        yield ours
    finally:
        ours.close()
        process.kill()
        process.wait(60)


@pytest.fixture
def loop() -> Iterator[LoopThread]:
    thread = LoopThread("endless")
    yield thread
    thread.close()


def test_a_greeting_without_end(loop: LoopThread) -> None:
    with (
        peer("greeting") as connection,
        bounded(LATE, MEMORY),
        pytest.raises(MachineError, match=r"no QMP (greeting|session)"),
    ):
        Monitor(loop, connection, "QEMU", 2.0)


@pytest.mark.parametrize("words", ["line", "events", "answers", "large events", "nested"])
def test_a_qmp_session_without_end(loop: LoopThread, words: str) -> None:
    with peer(words) as connection, bounded(LATE, MEMORY):
        try:
            monitor = Monitor(loop, connection, "QEMU", 30.0)
        except MachineError:  # the nonsense came before the session was complete
            assert words in ("line", "nested")
            return
        with pytest.raises(MachineError):
            monitor.execute("query-status", {}, 0.5)
        with pytest.raises(MachineError) as caught:
            monitor.wait_event("SHUTDOWN", None, 0.5)
        assert len(monitor._events) <= EVENTS_KEPT
        assert len(str(caught.value)) < 200
        monitor.close()


MODEL = """#!{python}
import socket, sys

peer = socket.socket(fileno=int(sys.argv[sys.argv.index("--control") + 1]))
peer.recv(1)
while True:
    try:
        peer.sendall({answer})
    except OSError:
        break
"""


@pytest.mark.parametrize(
    "answer", [b"x" * 65536, b'{"error": "no"}\n' * 1000, b"[" * 60000 + b"\n", b"7\n"], ids=len
)
def test_a_model_that_answers_without_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, answer: bytes
) -> None:
    fake = tmp_path / "python"
    fake.write_text(MODEL.format(python=sys.executable, answer=answer))
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    monkeypatch.setattr(model, "ANSWER_DEADLINE", 2.0)
    process = ModelProcess()
    try:
        with bounded(LATE, MEMORY), pytest.raises(MachineError):
            process.add(DiskSpec(capacity=2048))
    finally:
        process.stop()
    assert not process.alive()
