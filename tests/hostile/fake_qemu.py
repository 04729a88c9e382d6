"""A QEMU that spoils its QMP session: the real one, behind a process that passes lines on."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

REAL, STEP, BEHAVIOUR, COUNT = os.environ["HOSTILE_QMP"].split("|")
PATIENCE = 30.0


def main() -> int:
    words = sys.argv[1:]
    if "--version" in words:
        os.execv(REAL, [REAL, *words])
    at = next(n for n, word in enumerate(words) if word.startswith("socket,id=qmp,fd="))
    front = socket.socket(fileno=int(words[at].rpartition("=")[2]))
    back, qemus = socket.socketpair()
    words[at] = f"socket,id=qmp,fd={qemus.fileno()}"
    qemus.set_inheritable(True)
    with subprocess.Popen([REAL, *words], close_fds=False) as child:
        qemus.close()
        asked: dict[str, str] = {}
        threading.Thread(target=commands, args=(front, back, asked), daemon=True).start()
        with suppress(OSError):
            answers(front, back, asked)
        return child.wait()


def commands(front: socket.socket, back: socket.socket, asked: dict[str, str]) -> None:
    """Pass commands on, and note their names by their ids."""
    with suppress(OSError):
        for line in front.makefile("rb"):
            command = json.loads(line)
            asked[command.get("id", "")] = command["execute"]
            back.sendall(line)
        back.shutdown(socket.SHUT_RDWR)


def answers(front: socket.socket, back: socket.socket, asked: dict[str, str]) -> None:
    """Pass answers and events on; spoil the answer to STEP."""
    for line in back.makefile("rb"):
        message = json.loads(line)
        name = "greeting" if "QMP" in message else asked.get(message.get("id", "-"), "")
        if name != STEP:
            front.sendall(line)
            continue
        with Path(COUNT).open("a") as file:
            file.write("spoiled\n")
        spoil(front, message, line)


def spoil(front: socket.socket, message: dict[str, object], line: bytes) -> None:
    match BEHAVIOUR:
        case "hang":
            time.sleep(PATIENCE)
        case "close":
            front.shutdown(socket.SHUT_RDWR)
        case "garbage":
            front.sendall(b"\xa5\x1b[2J{]\n")
        case "short":
            front.sendall(line[: len(line) // 2] + b"\n")
        case "long":
            front.sendall(json.dumps({**message, "more": "x" * (8 << 20)}).encode() + b"\n")
        case "endless":
            until = time.monotonic() + PATIENCE
            while time.monotonic() < until:
                front.sendall(b" " * 65536)
        case "events":
            event = b'{"event": "STOP", "timestamp": {"seconds": 1, "microseconds": 1}}\n'
            until = time.monotonic() + PATIENCE
            while time.monotonic() < until:
                front.sendall(event * 512)
        case "slow":
            time.sleep(0.2)
            front.sendall(line)
        case "wrong_id":
            front.sendall(json.dumps({**message, "id": "nobody's"}).encode() + b"\n")
        case "nested":
            front.sendall(b"[" * 100_000 + b"\n")
        case "twice":
            front.sendall(line * 2)


if __name__ == "__main__":
    sys.exit(main())
