"""Signals and alarms as exceptions: put off while something is half done, never lost."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from harness import interrupt
from harness.interrupt import OverdueError, Terminated, alarm, paused, shielded


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Handlers as in a run, and those of this run again afterwards."""
    before, interrupt._state = interrupt._state, interrupt._State()
    numbers = (*interrupt.SIGNALS, signal.SIGALRM)
    found = {number: signal.getsignal(number) for number in numbers}
    timer = signal.setitimer(signal.ITIMER_REAL, 0)
    interrupt.install()
    yield
    interrupt.uninstall()
    interrupt._state = before
    for number, handler in found.items():
        signal.signal(number, handler)
    signal.setitimer(signal.ITIMER_REAL, *timer)


def send(signum: int) -> None:
    os.kill(os.getpid(), signum)


def wait() -> None:
    """Wait for an exception, without being the one to raise it."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        time.sleep(0.01)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_unwinds_like_ctrl_c(signum: int) -> None:
    with pytest.raises(Terminated) as caught:
        send(signum)
    assert isinstance(caught.value, KeyboardInterrupt) and caught.value.signum == signum
    assert interrupt.received() == signum


def test_a_signal_within_a_shield_comes_at_its_end() -> None:
    reached = []
    with pytest.raises(KeyboardInterrupt), shielded(), shielded():
        send(signal.SIGINT)
        reached.append("inner")
    assert reached == ["inner"]


def test_an_error_within_a_shield_gives_way_to_the_signal() -> None:
    with pytest.raises(KeyboardInterrupt) as caught, shielded():
        send(signal.SIGINT)
        raise OSError("its consequence")
    assert isinstance(caught.value.__context__, OSError)


def test_a_signal_in_a_callback_of_the_garbage_collector_is_not_lost() -> None:
    def collect(phase: str, info: object) -> None:
        if phase == "start":
            gc.callbacks.remove(collect)
            send(signal.SIGINT)
            time.sleep(0.01)  # the handler runs in here

    with pytest.raises(KeyboardInterrupt):
        gc.callbacks.append(collect)
        gc.collect()
        wait()


def test_a_signal_in_a_destructor_is_not_lost() -> None:
    class Odd:
        def __del__(self) -> None:
            send(signal.SIGTERM)
            time.sleep(0.01)

    with pytest.raises(Terminated):
        last = Odd()
        del last
        wait()


def test_a_signal_in_a_destructor_is_not_lost_when_an_alarm_is_set() -> None:
    class Odd:
        def __del__(self) -> None:
            send(signal.SIGTERM)

    with pytest.raises(Terminated):
        last = Odd()
        del last
        with alarm(3600, "the test"):
            wait()


def test_a_second_signal_does_not_interrupt_the_clean_up_after_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(interrupt, "UNWINDS", 60.0)
    reached = []
    with pytest.raises(KeyboardInterrupt) as caught:
        try:
            send(signal.SIGINT)
        finally:
            send(signal.SIGTERM)
            reached.append("clean")
    assert reached == ["clean"]
    assert not isinstance(caught.value, Terminated)


def test_an_alarm_does_not_take_the_place_of_an_interruption(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(interrupt, "UNWINDS", 60.0)
    with pytest.raises(KeyboardInterrupt):
        try:
            send(signal.SIGINT)
        finally:
            with alarm(0.02, "the test"):
                time.sleep(0.1)


def test_a_shield_in_the_clean_up_does_not_let_the_next_interruption_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(interrupt, "UNWINDS", 60.0)
    reached = []
    with pytest.raises(KeyboardInterrupt) as caught:
        try:
            send(signal.SIGINT)
        finally:
            with alarm(0.02, "the test"), shielded():
                send(signal.SIGTERM)
                time.sleep(0.1)
            reached.append("clean")
    assert reached == ["clean"]
    assert not isinstance(caught.value, Terminated)


def test_the_clean_up_after_a_shield_is_done_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupt, "UNWINDS", 60.0)
    reached = []
    with pytest.raises(KeyboardInterrupt) as caught:
        try:
            with shielded():
                send(signal.SIGINT)
        finally:
            send(signal.SIGTERM)
            reached.append("clean")
    assert reached == ["clean"]
    assert not isinstance(caught.value, Terminated)


def test_an_alarm_comes_when_an_interruption_has_unwound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupt, "UNWINDS", 0.2)
    monkeypatch.setattr(interrupt, "AGAIN", 3600.0)
    with suppress(KeyboardInterrupt):
        send(signal.SIGINT)
    with pytest.raises(OverdueError), alarm(0.01, "the test"):
        wait()


def test_a_second_signal_comes_if_the_first_was_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupt, "UNWINDS", 0.05)
    with suppress(KeyboardInterrupt):
        send(signal.SIGINT)
    with pytest.raises(Terminated):
        send(signal.SIGTERM)
        wait()


def test_one_that_was_swallowed_comes_at_the_next_check() -> None:
    with suppress(BaseException):
        send(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        interrupt.check()


def test_signals_are_only_noted_once_the_run_finishes() -> None:
    interrupt.finish()
    send(signal.SIGINT)
    send(signal.SIGTERM)
    assert interrupt.received() == signal.SIGINT
    interrupt.check()


def test_no_alarm_is_left_for_an_interpreter_that_ends() -> None:
    class Odd:
        def __del__(self) -> None:
            raise KeyboardInterrupt

    def drop() -> tuple[float, float]:
        last = Odd()
        del last
        return signal.getitimer(signal.ITIMER_REAL)

    with pytest.raises(KeyboardInterrupt), shielded():
        assert drop() != (0, 0)
        interrupt.finish()
        assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
        raise KeyboardInterrupt
    assert drop() == (0, 0)


def test_an_alarm_names_what_is_overdue() -> None:
    with pytest.raises(OverdueError, match="the test"), alarm(0.02, "the test"):
        wait()
    assert not [alarm for alarm in interrupt._state.alarms if alarm.message == "the test"]


def test_the_first_of_two_alarms_goes_off() -> None:
    with pytest.raises(OverdueError, match="the run"), alarm(60, "the test"):  # noqa: SIM117
        with alarm(0.02, "the run"):
            wait()


def test_an_alarm_that_goes_off_while_it_is_set_is_not_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = interrupt._set_timer
    # The process is stalled once the timer runs.
    monkeypatch.setattr(interrupt, "_set_timer", lambda: (real(), time.sleep(0.05)))

    with pytest.raises(OverdueError), alarm(0.001, "the test"):
        wait()
    assert not [alarm for alarm in interrupt._state.alarms if alarm.message == "the test"]


def test_an_alarm_within_a_shield_comes_at_its_end() -> None:
    reached = []
    with pytest.raises(OverdueError), shielded(), alarm(0.02, "the test"):
        time.sleep(0.1)
        reached.append("inner")
    assert reached == ["inner"]


def test_time_in_a_pause_does_not_count() -> None:
    def left() -> float:
        (found,) = (alarm for alarm in interrupt._state.alarms if alarm.message == "the test")
        return found.when - time.monotonic()

    begun = time.monotonic()
    with alarm(3600, "the test", pausable=True):
        with paused():
            entered = time.monotonic()
            assert left() == float("inf")
            time.sleep(0.1)
            pause = time.monotonic() - entered
        assert left() > 3600 + pause - 0.01 - (time.monotonic() - begun)
    with pytest.raises(OverdueError), alarm(0.02, "the run"), paused():
        wait()


def test_a_thread_has_no_alarms_and_no_shields() -> None:
    seen = []

    def work() -> None:
        with alarm(0.01, "nothing"), shielded():
            time.sleep(0.05)
            seen.append("done")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(5)
    assert seen == ["done"]
