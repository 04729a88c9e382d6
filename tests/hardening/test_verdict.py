"""Judgement of a device's process, on test processes."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from harness.robustness.device_process import DeviceProcess
from harness.robustness.fate import Fate
from harness.robustness.process_watch import GROWTH, Judgement, ProcessWatch, worst

SLEEPS = "import time; time.sleep(60)"
POLLS = "print('ready', flush=True)\nwhile True: pass"
SPINS = f"input()\n{POLLS}"
SPINS_BESIDE = """
import threading, time
def spin():
    while True: pass
input()
threading.Thread(target=spin, daemon=True).start()
print('ready', flush=True)
time.sleep(60)
"""
GROWS = f"""
print('ready', flush=True)
input()
kept = b'x' * {GROWTH + (8 << 20)}
print('done', flush=True)
input()
"""
SHORT = "print('ready', flush=True)\nfor n in range(6 * 10**6): pass\nimport time; time.sleep(60)"


class Subject:
    """A Python process that follows commands, in place of a device's process."""

    def __init__(self, source: str, answers: bool) -> None:
        self.child = subprocess.Popen(
            [sys.executable, "-c", source],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.process = DeviceProcess(
            "subject",
            self.child.pid,
            lambda: self.child.poll() is None,
            lambda: f"ended with {self.child.poll()}\nlast words",
            lambda: answers,
        )

    def say(self) -> None:
        assert self.child.stdin
        self.child.stdin.write("\n")
        self.child.stdin.flush()

    def hear(self) -> str:
        assert self.child.stdout
        return self.child.stdout.readline()


@pytest.fixture
def subject() -> Iterator[list[Subject]]:
    subjects: list[Subject] = []
    yield subjects
    for child in subjects:
        child.child.kill()
        child.child.communicate()


def start(subjects: list[Subject], source: str, answers: bool = True) -> Subject:
    subjects.append(Subject(source, answers))
    return subjects[-1]


def test_a_process_that_sleeps_is_not_judged(subject: list[Subject]) -> None:
    vitals = ProcessWatch([start(subject, SLEEPS).process])

    assert (vitals.crash(), vitals.growth()) == (None, None)


def test_a_process_that_spins_is_seen_however_busy_the_host(subject: list[Subject]) -> None:
    spinners = [start(subject, SPINS) for _ in range(3)]  # more than this process has CPUs
    vitals = ProcessWatch([spinners[0].process])
    for child in spinners:
        child.say()
        child.hear()

    judgement = vitals.spin()

    assert judgement and judgement.fate is Fate.SPINS
    assert re.match(r"subject used \d+\.\d s of CPU in \d+\.\d s", judgement.evidence)


@pytest.mark.parametrize(
    ("program", "answers"),
    [(SPINS, True), (SPINS_BESIDE, False)],
    ids=["first-thread", "another-thread"],
)
def test_a_process_that_spins_while_somebody_waits_for_it_is_ended(
    subject: list[Subject], program: str, answers: bool
) -> None:
    spinner = start(subject, program, answers=answers)
    vitals = ProcessWatch([spinner.process])
    spinner.say()
    spinner.hear()

    with vitals.guarded():
        ended = spinner.child.wait(30)

    judgement = vitals.spin()
    assert ended == -signal.SIGKILL
    assert judgement and judgement.fate is Fate.SPINS
    assert vitals.crash() is None


def test_a_process_that_polled_before_does_not_spin(subject: list[Subject]) -> None:
    poller = start(subject, POLLS)
    poller.hear()
    vitals = ProcessWatch([poller.process])

    with vitals.guarded(), pytest.raises(subprocess.TimeoutExpired):
        poller.child.wait(4)

    assert vitals.spin() is None


def test_a_process_that_sleeps_is_let_be(subject: list[Subject]) -> None:
    sleeper = start(subject, SLEEPS)
    vitals = ProcessWatch([sleeper.process])

    with vitals.guarded(), pytest.raises(subprocess.TimeoutExpired):
        sleeper.child.wait(3)

    assert vitals.spin() is None


def test_a_process_that_hangs_while_somebody_waits_for_it_is_ended(
    subject: list[Subject],
) -> None:
    sleeper = start(subject, SLEEPS, answers=False)
    vitals = ProcessWatch([sleeper.process])

    with vitals.guarded():
        ended = sleeper.child.wait(30)

    judgement = vitals.spin()
    assert ended == -signal.SIGKILL
    assert judgement and judgement.fate is Fate.WEDGED


def test_a_process_that_works_for_a_moment_does_not_spin(subject: list[Subject]) -> None:
    worker = start(subject, SHORT)
    worker.hear()

    assert ProcessWatch([worker.process]).spin() is None


def test_a_process_that_ends_has_crashed_and_has_last_words(subject: list[Subject]) -> None:
    child = start(subject, SLEEPS)
    vitals = ProcessWatch([child.process])

    child.process.kill()

    judgement = vitals.crash(within=5.0)
    assert judgement == Judgement(Fate.CRASHED, f"ended with {-signal.SIGKILL} / last words")


def test_a_process_that_does_not_answer_gets_time_to_end(subject: list[Subject]) -> None:
    child = start(subject, "import time; time.sleep(0.5); raise SystemExit(3)", answers=False)

    judgement = ProcessWatch([child.process]).crash(within=20.0)

    assert judgement == Judgement(Fate.CRASHED, "ended with 3 / last words")


def test_one_that_answers_is_not_waited_for(
    subject: list[Subject], monkeypatch: pytest.MonkeyPatch
) -> None:
    vitals = ProcessWatch([start(subject, SLEEPS).process])
    monkeypatch.setattr(
        "harness.robustness.process_watch.time.sleep", lambda seconds: pytest.fail("waits")
    )

    assert vitals.crash(within=20.0) is None


def test_a_stopped_process_is_killed_too(subject: list[Subject]) -> None:
    child = start(subject, SLEEPS)
    child.child.send_signal(signal.SIGSTOP)

    child.process.kill()

    assert child.child.wait(5) == -signal.SIGKILL


def test_a_process_that_takes_much_memory_has_grown(subject: list[Subject]) -> None:
    child = start(subject, GROWS)
    child.hear()
    vitals = ProcessWatch([child.process])
    before = vitals.growth()

    child.say()
    child.hear()

    judgement = vitals.growth()
    assert before is None
    assert judgement and judgement.fate is Fate.GREW


def test_a_process_that_does_not_answer_is_wedged(subject: list[Subject]) -> None:
    judgement = ProcessWatch([start(subject, SLEEPS, answers=False).process]).hung()

    assert judgement and judgement.fate is Fate.WEDGED


def test_a_device_of_the_user_has_no_watched_process() -> None:
    vitals = ProcessWatch(())

    assert [vitals.crash(), vitals.spin(), vitals.growth(), vitals.hung()] == [None] * 4


def test_the_worst_judgement_counts() -> None:
    some = [Judgement(verdict, "") for verdict in (Fate.SERVED, Fate.WEDGED, Fate.REJECTED)]

    assert worst(some).fate is Fate.WEDGED


def test_what_a_device_may_do_comes_before_what_it_must_not() -> None:
    tolerable = [verdict for verdict in tuple(Fate) if verdict.tolerable]

    assert tolerable == list(tuple(Fate)[: len(tolerable)])
    assert tuple(Fate)[len(tolerable)] is Fate.WROTE_OUTSIDE
