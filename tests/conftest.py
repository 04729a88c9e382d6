"""Runs of the plugin on a fake target, without QEMU and guest."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from harness.machine.rundir import RunDir

ROOT = Path(__file__).parent.parent

FAKE_TARGET = """
from types import SimpleNamespace

from harness.targets.registry import register
from harness.targets import DeviceIdentity, LacksError, Plugged, Target, TargetError


class FakeDisk(Plugged):
    def __init__(self, spec):
        self.spec = spec
        self.driver = SimpleNamespace(
            offered=lambda: 1 << 32, state=lambda: {"status": "0x0f", "queues": ["queue 0"]}
        )

    @property
    def backing(self):
        raise TargetError("none")

    def resize(self, capacity):
        raise TargetError("no")

    def unplug(self):
        if self.spec.serial == "stuck":
            raise TargetError("it does not come out")


class FakeTarget(Target):
    name = "guest-pci"
    description = "nothing"
    traits = frozenset({"pci"})

    def __init__(self, *arguments, **options):
        print("TARGET MADE")

    def plug(self, spec, writes=True):
        if spec.serial == "impossible":
            raise TargetError("there is no QEMU")
        return FakeDisk(spec)

    def distrust(self):
        print("TARGET DISTRUSTED")

    def close(self):
        print("TARGET CLOSED")

    def identities(self):
        return (DeviceIdentity("fake", (2, 1), frozenset({"front"})),)

    def facts(self):
        return {"qemu": "a fake", "guest-kernel": "none"}

    def evidence(self):
        return {"guest console, last lines": "\\x1b[6nvblk# \\x07panic", "QEMU, last words": ""}

    def check(self):
        pass


class OtherTarget(FakeTarget):
    name = "other"
    traits = frozenset({"mmio"})

    def plug(self, spec, writes=True):
        if writes:
            raise LacksError("it is somebody's")
        return super().plug(spec)


register("guest-pci", "nothing", lambda settings: FakeTarget(), replace=True)
register("other", "another", lambda settings: OtherTarget())
"""

HEAD = """
import pytest
from harness.report import clause, described, on, reads_only
from harness.targets import TargetError
from harness.virtio.features import Feature
"""


def pytest_configure() -> None:
    """Restore the default action for Ctrl-C, which a shell sets to "ignore" in the background."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    _set_up_hypothesis()


def _set_up_hypothesis() -> None:
    """Remove hypothesis' limits of time: a busy machine exceeds 200 ms for any example.

    All runs draw the same examples, so that a run does not depend on its luck.
    """
    with suppress(ImportError):
        from hypothesis import HealthCheck, settings

        settings.register_profile(
            settings.get_current_profile_name(),
            deadline=None,
            derandomize=True,
            suppress_health_check=[HealthCheck.too_slow],
        )


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A directory with a path short enough for the name of a UNIX socket."""
    directory = RunDir()
    yield directory.path
    directory.remove()


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch):
    """Function that runs a test module on the fake target, in its own process."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pytester.makeconftest((ROOT / "conftest.py").read_text() + FAKE_TARGET)

    def run(source: str, *options: str, deviations: str = "") -> pytest.RunResult:
        pytester.makepyfile(test_it=HEAD + source)
        if deviations:
            (pytester.path / "deviations").mkdir(exist_ok=True)
            (pytester.path / "deviations" / "fake.toml").write_text(deviations)
        return pytester.runpytest_subprocess("-ra", "-s", *options)

    return run
