"""One session of pytest that has collected the suite, and a fork of it for every request.

A session spends seconds on imports and collection before its first test. Here it comes as far as
its run loop once. Each request that comes over a socket is a fork's: a session of its own, on a
device of its own, whose end it does not survive.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NoReturn

import pytest

from harness.pytestplugin.bench import bench_of
from harness.report.collect import Collector, source_of

DEADLINE = 600.0
"""Seconds that the tests of one request may take."""

START_DEADLINE = 60.0
END_DEADLINE = 10.0


class ForkError(Exception):
    """A request came to no result; one line."""


class ForkingSession(ABC):
    """A plugin for the session that forks; in a fork, for its one request."""

    def __init__(self, control: socket.socket) -> None:
        """Serve the requests that come over `control`, a line each."""
        self._control = control
        self._answer = -1

    @property
    def forked(self) -> bool:
        """Return whether this is a fork."""
        return self._answer >= 0

    @abstractmethod
    def become(self, session: pytest.Session, request: str) -> None:
        """In a fork: make the session one about this request."""

    @abstractmethod
    def found(self, code: int) -> dict[str, Any]:
        """In a fork: return what was found; pytest ended with `code`."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> Literal[True] | None:
        """Fork for each request. A fork goes on to pytest's own loop, with its tests."""
        for item in session.items:
            file, line, _ = item.location
            source_of(session.config.rootpath / file, line or 0)  # kept, so no fork has to
        gc.freeze()  # what the collection left is shared with every fork
        with self._control.makefile("r") as requests:
            for request in requests:
                ours, theirs = os.pipe()
                child = os.fork()
                if child == 0:
                    os.close(ours)
                    self._answer = theirs
                    self._session = session
                    self._collector = Collector(session.config.rootpath, ())
                    self.become(session, request.strip())
                    return None
                os.close(theirs)
                answer = self._wait(child, ours)
                self._control.sendall(answer or b'{"error": "the fork died without a word"}\n')
        return True

    def _wait(self, child: int, ours: int) -> bytes:
        """Return what a fork says until its end, or until its time is over or nobody asks."""
        answer, deadline = b"", time.monotonic() + DEADLINE
        while left := max(deadline - time.monotonic(), 0):
            ready, _, _ = select.select([ours, self._control.fileno()], [], [], left)
            if ours in ready:
                piece = os.read(ours, 65536)
                answer += piece
                if not piece:
                    break
            elif ready:  # the other side hung up: it sends nothing before it has its answer
                break
        else:
            answer = json.dumps({"error": f"no end within {DEADLINE:g} s"}).encode() + b"\n"
        os.close(ours)
        _end(child)
        return answer

    def answer(self, code: int) -> NoReturn:
        """At the end of a fork: say what was found, and end without what its parent does."""
        left = memoryview(json.dumps(self.found(code)).encode() + b"\n")
        while left:
            left = left[os.write(self._answer, left) :]
        os._exit(0)


def target_of(item: pytest.Item) -> str:
    """Return the name of the target that a test runs on; empty for a test without a disk."""
    bench = bench_of(item)
    return bench.name if bench else ""


def _end(child: int) -> None:
    """Wait for a fork that should be at its end, and end it if it is not."""
    for number in (0, signal.SIGTERM, signal.SIGKILL):
        os.kill(child, number)
        deadline = time.monotonic() + END_DEADLINE
        while time.monotonic() < deadline:
            if os.waitpid(child, os.WNOHANG)[0]:
                return
            time.sleep(0.005)


def serve(session: ForkingSession, suite: Path, targets: Sequence[str], *words: str) -> int:
    """Collect the suite on these targets and answer requests; `words` are more options."""
    code = pytest.main(
        [
            *(str(suite), "-q", "--tb=no", "-s", "-p", "no:cacheprovider", "-p", "no:xdist"),
            *(word for target in targets for word in ("--vblk-target", target)),
            *words,
        ],
        plugins=[session],
    )
    if session.forked:
        session.answer(code)
    return int(code)


class ForkServer:
    """The process of a `ForkingSession`, from the first request until `close`."""

    def __init__(self, module: str, suite: Path) -> None:
        """Start `python -m MODULE SUITE FD`, which is to serve requests over FD."""
        self._words = tempfile.TemporaryFile()  # noqa: SIM115  (`close` does)
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, str(suite), str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self._words,
                stderr=subprocess.STDOUT,
            )
        self._socket.settimeout(START_DEADLINE + DEADLINE + 3 * END_DEADLINE)
        self._answers = self._socket.makefile("r")

    def ask(self, request: str) -> dict[str, Any]:
        """Return what a fork found. ForkError if it came to no end within `DEADLINE` seconds."""
        try:
            self._socket.sendall(request.encode() + b"\n")
            line = self._answers.readline()
        except OSError as error:
            raise ForkError(f"{request}: no answer: {error}") from None
        if not line:
            self._words.seek(0)
            words = self._words.read().decode(errors="replace").strip().splitlines()
            raise ForkError(f"{request}: {words[-1] if words else 'no word of pytest'}")
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            raise ForkError(f"{request}: {found['error']}")
        return found

    def alive(self) -> bool:
        """Return whether the process runs."""
        return self._process.poll() is None

    def hang_up(self) -> None:
        """Shut the connection: an `ask` of another thread ends, and so does the process."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Hang up, and see the process end. A second call does nothing."""
        self.hang_up()
        self._answers.close()
        self._socket.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(4 * END_DEADLINE)
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._words.close()
