"""Interruptions and deadlines: exceptions of the main thread that come at most when they may.

SIGINT, SIGTERM and SIGHUP raise `KeyboardInterrupt` or `Terminated`, an `alarm` raises
`OverdueError`. Four rules make that safe at any moment:

- Within `shielded` nothing is raised. What came meanwhile is raised at the end. Code that starts
  or ends something runs shielded, and each of its waits has a bound.
- Python drops an exception that is raised in a callback of the garbage collector or in `__del__`.
  Such an exception is raised again, a moment later.
- While an interruption unwinds, another is put off, so that the first one's clean-up is done.
- Once the run is `finishing`, signals are only noted: the end is on its way.

`received` says which signal came first. Loops that run for long look at it.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

AGAIN = 5.0
"""Seconds after which an alarm that somebody swallowed is raised once more."""

SOON = 0.01
"""Seconds after which an exception that was raised where Python drops it is raised again."""


UNWINDS = 2.0
"""Seconds after an interruption in which no other is raised, as code that cleans up may run."""


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP came. It unwinds like Ctrl-C, which pytest reports and ends on."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class OverdueError(BaseException):
    """An `alarm` has gone off; the message says what took too long.

    No `Exception`, so that code which goes on after an error does not go on after this one.
    """


@dataclass(eq=False)
class _Alarm:
    when: float  # of time.monotonic()
    message: str
    pausable: bool


@dataclass
class _State:
    received: int | None = None
    finishing: bool = False
    shields: int = 0
    owed: BaseException | None = None
    dropped: BaseException | None = None
    quiet_until: float = 0.0  # of time.monotonic()
    alarms: list[_Alarm] = field(default_factory=list)
    before: dict[int, Any] = field(default_factory=dict)
    hook: Callable[[Any], object] | None = None


_state = _State()


def install() -> None:
    """Turn signals into exceptions, from now on. A second call does nothing.

    It does nothing outside the main thread either. A signal that the process was started with
    ignored (nohup) stays ignored.
    """
    if _state.before or threading.current_thread() is not threading.main_thread():
        return
    for signum in SIGNALS:
        if signal.getsignal(signum) is not signal.SIG_IGN:
            _state.before[signum] = signal.signal(signum, _on_signal)
    _state.before[signal.SIGALRM] = signal.signal(signal.SIGALRM, _on_alarm)
    _state.hook = sys.unraisablehook
    sys.unraisablehook = _on_unraisable


def uninstall() -> None:
    """Give signals back to what had them before `install`, and forget what came."""
    global _state
    for signum, handler in _state.before.items():
        if signum == signal.SIGALRM:
            signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signum, handler)
    if sys.unraisablehook is _on_unraisable and _state.hook:
        sys.unraisablehook = _state.hook
    _state = _State()


def installed() -> bool:
    """Return whether signals and alarms are exceptions now."""
    return bool(_state.before)


def received() -> int | None:
    """Return the number of the signal that came first, None if none has come."""
    return _state.received


def check() -> None:
    """Raise the interruption that came, if one has come and the run is not finishing."""
    if _state.received is not None and not _state.finishing:
        _state.quiet_until = time.monotonic() + UNWINDS
        raise _interruption(_state.received)


def finish() -> None:
    """Note signals only, from now on: the run ends anyway.

    No alarm is set any more either: one that goes off when Python has given its signals back
    kills the process.
    """
    _state.finishing = True
    _state.owed = _state.dropped = None
    _set_timer()


class shielded:  # noqa: N801 (it is used like a function)
    """Put off interruptions and alarms until the end of a `with` block."""

    def __enter__(self) -> None:
        self._counts = threading.current_thread() is threading.main_thread()
        if self._counts:
            _state.shields += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._counts:
            return
        _state.shields -= 1
        if _state.shields or _state.owed is None:
            return
        owed, _state.owed = _state.owed, None
        if error is None or isinstance(owed, KeyboardInterrupt):
            _raise(owed)


@contextmanager
def alarm(seconds: float, message: str, pausable: bool = False) -> Iterator[None]:
    """Raise `OverdueError` with this message if the block takes longer than `seconds`.

    Nothing is limited before `install`. Time within `paused` does not count for what is pausable.
    """
    if not _state.before or threading.current_thread() is not threading.main_thread():
        yield
        return
    alarm = _Alarm(time.monotonic() + seconds, message, pausable)
    alarms = _state.alarms
    try:
        alarms.append(alarm)
        _set_timer()  # a short alarm may go off in here
        yield
    finally:
        if alarm in alarms:
            alarms.remove(alarm)
        _set_timer()


@contextmanager
def paused() -> Iterator[None]:
    """Stop the clock of alarms that are pausable, for work that the whole run has use of."""
    waiting = [alarm for alarm in _state.alarms if alarm.pausable]
    left = [alarm.when - time.monotonic() for alarm in waiting]
    for alarm in waiting:
        alarm.when = float("inf")
    _set_timer()
    try:
        yield
    finally:
        for alarm, seconds in zip(waiting, left, strict=True):
            alarm.when = time.monotonic() + seconds
        _set_timer()


def _set_timer() -> None:
    if signal.SIGALRM not in _state.before:
        return
    first = min((alarm.when for alarm in _state.alarms), default=float("inf"))
    if _state.dropped is not None:
        pause = _state.quiet_until - time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, max(pause, SOON), AGAIN)
    elif _state.finishing or first == float("inf"):
        signal.setitimer(signal.ITIMER_REAL, 0)
    else:
        pause = max(first, _state.quiet_until) - time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, max(pause, 0.001), AGAIN)


def _interruption(signum: int) -> KeyboardInterrupt:
    return KeyboardInterrupt() if signum == signal.SIGINT else Terminated(signum)


def _raise(error: BaseException) -> None:
    interruption = isinstance(error, KeyboardInterrupt)
    if _state.shields:
        if _state.owed is None or interruption:
            _state.owed = error
        return
    now = time.monotonic()
    if now < _state.quiet_until:
        if interruption:
            _state.dropped = error
        _set_timer()
        return
    if interruption:
        _state.quiet_until = now + UNWINDS
    raise error


def _on_signal(signum: int, _frame: FrameType | None) -> None:
    if _state.received is None:
        _state.received = signum
    if not _state.finishing:
        _raise(_interruption(signum))


def _on_alarm(_signum: int, _frame: FrameType | None) -> None:
    dropped, _state.dropped = _state.dropped, None
    if dropped is not None:
        _set_timer()
        _raise(dropped)
        return
    now = time.monotonic()
    for alarm in _state.alarms:
        if alarm.when <= now and not _state.finishing:
            _raise(OverdueError(alarm.message))
            return
    _set_timer()


def _on_unraisable(unraisable: Any) -> None:
    """Take an interruption that Python is about to drop, and have it raised again."""
    error = unraisable.exc_value
    ours = isinstance(error, (KeyboardInterrupt, OverdueError))
    if ours and threading.current_thread() is threading.main_thread():
        if _state.finishing:
            return
        _state.dropped = error
        _state.quiet_until = 0.0
        _set_timer()
    elif _state.hook:
        _state.hook(unraisable)
