"""The model as a daemon with a habit, for the tests of targets that the harness starts."""

from __future__ import annotations

import os
import sys
import time
from itertools import count
from threading import Thread
from typing import Any

habit, *arguments = sys.argv[1:]

# Before the imports, which take a while on a busy machine.
if habit == "never-listens":
    print("my-daemon: warming up", flush=True)
    time.sleep(600)
elif habit == "refuses-to-start":
    print("my-daemon: no such image", flush=True)
    sys.exit(3)

from harness.model import main, vhost  # noqa: E402
from harness.model.block import Block  # noqa: E402

if habit == "dies-at-the-end":

    def die_at_close(self: Any) -> None:
        print("my-daemon: double free", flush=True)
        os._exit(9)

    vhost.Connection.close = die_at_close  # type: ignore[method-assign]
elif habit == "dies-late":

    def die_late(self: Any) -> None:
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            pass  # as on a busy machine: it is runnable, and does not come to its end
        os._exit(9)

    vhost.Connection.close = die_late  # type: ignore[method-assign]
elif habit == "hangs-at-memory":

    def hang(self: Any, payload: bytes, fds: list[int]) -> None:
        time.sleep(600)

    vhost.Connection._set_mem_table = hang  # type: ignore[method-assign]
    vhost.Connection._add_mem_reg = hang  # type: ignore[method-assign]
elif habit == "polls":

    def poll() -> None:
        while True:
            pass

    Thread(target=poll, daemon=True).start()
elif habit == "third-request":
    requests = count(1)
    execute = Block.execute

    def die(self: Block, request: Any) -> Any:
        if next(requests) == 3:
            print("my-daemon: assertion failed", flush=True)
            os._exit(7)
        return execute(self, request)

    Block.execute = die  # type: ignore[method-assign]
main.main(arguments)
