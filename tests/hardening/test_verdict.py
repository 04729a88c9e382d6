"""What a process does is seen, and judged: on processes made for the purpose."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from harness.report.hardened import ORDER, Verdict
from harness.target.process import DeviceProcess
from harness.target.vitals import GROWTH, Judgement, Vitals, worst

SLEEPS = "import time; time.sleep(60)"
SPINS = "print('ready', flush=True)\nwhile True: pass"
GROWS = f"""
print('ready', flush=True)
input()
kept = b'x' * {GROWTH + (8 << 20)}
print('done', flush=True)
input()
"""
SHORT = "print('ready', flush=True)\nfor n in range(6 * 10**6): pass\nimport time; time.sleep(60)"


class Subject:
    """A Python process that does what it is told, as a device's process."""

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
    made: list[Subject] = []
    yield made
    for one in made:
        one.child.kill()
        one.child.communicate()


def start(made: list[Subject], source: str, answers: bool = True) -> Subject:
    made.append(Subject(source, answers))
    return made[-1]


def test_a_process_that_sleeps_is_well(subject: list[Subject]) -> None:
    vitals = Vitals([start(subject, SLEEPS).process])

    assert (vitals.crash(), vitals.growth()) == (None, None)


def test_a_process_that_spins_is_seen_however_busy_the_host(subject: list[Subject]) -> None:
    spinners = [start(subject, SPINS) for _ in range(3)]  # more than it may have processors
    for one in spinners:
        one.hear()

    judgement = Vitals([spinners[0].process]).spin()

    assert judgement and judgement.verdict is Verdict.SPINS
    assert judgement.evidence.startswith("subject used 0.")


def test_a_process_that_spins_while_somebody_waits_for_it_is_ended(
    subject: list[Subject],
) -> None:
    spinner = start(subject, SPINS)
    spinner.hear()
    vitals = Vitals([spinner.process])

    with vitals.guarded():
        ended = spinner.child.wait(30)

    judgement = vitals.spin()
    assert ended == -signal.SIGKILL
    assert judgement and judgement.verdict is Verdict.SPINS
    assert vitals.crash() is None


def test_a_process_that_sleeps_is_let_be(subject: list[Subject]) -> None:
    sleeper = start(subject, SLEEPS)
    vitals = Vitals([sleeper.process])

    with vitals.guarded(), pytest.raises(subprocess.TimeoutExpired):
        sleeper.child.wait(3)

    assert vitals.spin() is None


def test_a_process_that_hangs_while_somebody_waits_for_it_is_ended(
    subject: list[Subject],
) -> None:
    sleeper = start(subject, SLEEPS, answers=False)
    vitals = Vitals([sleeper.process])

    with vitals.guarded():
        ended = sleeper.child.wait(30)

    judgement = vitals.spin()
    assert ended == -signal.SIGKILL
    assert judgement and judgement.verdict is Verdict.WEDGED


def test_a_process_that_works_for_a_moment_does_not_spin(subject: list[Subject]) -> None:
    worker = start(subject, SHORT)
    worker.hear()

    assert Vitals([worker.process]).spin() is None


def test_a_process_that_ends_has_crashed_and_has_last_words(subject: list[Subject]) -> None:
    one = start(subject, SLEEPS)
    vitals = Vitals([one.process])

    one.process.kill()

    judgement = vitals.crash(within=5.0)
    assert judgement == Judgement(Verdict.CRASHED, f"ended with {-signal.SIGKILL} / last words")


def test_one_that_answers_nobody_is_given_the_time_to_end(subject: list[Subject]) -> None:
    one = start(subject, "import time; time.sleep(0.5); raise SystemExit(3)", answers=False)

    judgement = Vitals([one.process]).crash(within=20.0)

    assert judgement == Judgement(Verdict.CRASHED, "ended with 3 / last words")


def test_one_that_answers_is_not_waited_for(
    subject: list[Subject], monkeypatch: pytest.MonkeyPatch
) -> None:
    vitals = Vitals([start(subject, SLEEPS).process])
    monkeypatch.setattr("harness.target.vitals.time.sleep", lambda seconds: pytest.fail("waits"))

    assert vitals.crash(within=20.0) is None


def test_a_stopped_process_is_killed_too(subject: list[Subject]) -> None:
    one = start(subject, SLEEPS)
    one.child.send_signal(signal.SIGSTOP)

    one.process.kill()

    assert one.child.wait(5) == -signal.SIGKILL


def test_a_process_that_takes_much_memory_has_grown(subject: list[Subject]) -> None:
    one = start(subject, GROWS)
    one.hear()
    vitals = Vitals([one.process])
    before = vitals.growth()

    one.say()
    one.hear()

    judgement = vitals.growth()
    assert before is None
    assert judgement and judgement.verdict is Verdict.GREW


def test_a_process_that_does_not_answer_is_wedged(subject: list[Subject]) -> None:
    judgement = Vitals([start(subject, SLEEPS, answers=False).process]).hung()

    assert judgement and judgement.verdict is Verdict.WEDGED


def test_somebody_elses_device_has_no_vitals() -> None:
    vitals = Vitals(())

    assert [vitals.crash(), vitals.spin(), vitals.growth(), vitals.hung()] == [None] * 4


def test_the_worst_judgement_counts() -> None:
    some = [
        Judgement(verdict, "") for verdict in (Verdict.SERVED, Verdict.WEDGED, Verdict.REJECTED)
    ]

    assert worst(some).verdict is Verdict.WEDGED


def test_what_a_device_may_do_comes_before_what_it_must_not() -> None:
    tolerable = [verdict for verdict in ORDER if verdict.tolerable]

    assert tolerable == list(ORDER[: len(tolerable)])
    assert ORDER[len(tolerable)] is Verdict.WROTE_OUTSIDE
