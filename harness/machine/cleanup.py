"""Stop everything that is still running when this process ends.

`with Machine(...)` and fixtures stop a machine in the normal way. This module is for a machine
that nobody stopped.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import traceback
from collections.abc import Callable

from harness import interrupt

_pending: dict[Callable[[], None], int] = {}


def at_exit(stop: Callable[[], None]) -> None:
    """Call `stop` when this process ends, unless `forget` comes first."""
    _pending[stop] = os.getpid()


def forget(stop: Callable[[], None]) -> None:
    """Do not call `stop` any more when this process ends."""
    _pending.pop(stop, None)


@atexit.register
def _stop_all() -> None:
    if interrupt.installed():
        # Python gives its own handlers back to the system before it has ended.
        for signum in interrupt.SIGNALS:
            signal.signal(signum, signal.SIG_IGN)
    for stop, owner in reversed(list(_pending.items())):
        if owner == os.getpid():  # a forked child must not end its parent's machines
            try:
                stop()
            except Exception:  # an error of one must not keep the others running
                traceback.print_exc(file=sys.stderr)
