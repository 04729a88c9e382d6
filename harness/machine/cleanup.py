"""Stop everything that is still running when this process ends.

`with Machine(...)` and fixtures stop a machine in the normal way. This module is
for a machine that nobody stopped, and for SIGTERM and SIGHUP, which by default
end Python without executing any `finally`.
"""

from __future__ import annotations

import atexit
import os
import signal
from collections.abc import Callable
from types import FrameType

_pending: dict[Callable[[], None], int] = {}


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP came. It is handled like Ctrl-C, which pytest reports as an abort."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


def install_signal_handlers() -> None:
    """Turn SIGTERM and SIGHUP into `Terminated`. Call it in the main thread.

    A signal that was ignored when the process started (nohup) stays ignored.
    """
    for signum in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, _terminate)


def at_exit(stop: Callable[[], None]) -> None:
    """Call `stop` when this process ends, unless `forget` comes first."""
    _pending[stop] = os.getpid()


def forget(stop: Callable[[], None]) -> None:
    """Do not call `stop` any more when this process ends."""
    _pending.pop(stop, None)


def _terminate(signum: int, _frame: FrameType | None) -> None:
    raise Terminated(signum)


@atexit.register
def _stop_all() -> None:
    for stop, owner in list(_pending.items()):
        if owner == os.getpid():  # a forked child must not end its parent's machines
            stop()
