"""Hostile vhost-user back-ends behind QEMU: what QEMU makes of them is an error, in time."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from inner import Run

from harness.virtio.vhost_user import FrontEndRequest as Ask

WHOLE = os.environ.get("VBLK_HOSTILE") == "all"

BETWEEN = """
import sys
from pathlib import Path

import harness.machine.machine
from harness.machine.machine import Machine
from harness.virtio.vhost_user import FrontEndRequest

sys.path.insert(0, {here!r})
from proxy import Proxy

set_default(Machine.qmp, "timeout", 4.0)
real = Machine.add_vhost_user
made = []

def add_vhost_user(self, path, spec):
    proxy = Proxy(Path(f"{{path}}-{{len(made)}}"), path, FrontEndRequest[{step!r}], {behaviour!r})
    made.append(proxy)
    return real(self, proxy.path, spec)

Machine.add_vhost_user = add_vhost_user

def pytest_unconfigure():
    Path({count!r}).write_text(str(sum(proxy.spoiled for proxy in made)))
"""

STEPS = (
    *(Ask.GET_FEATURES, Ask.GET_PROTOCOL_FEATURES, Ask.GET_QUEUE_NUM, Ask.GET_CONFIG),
    *(Ask.SET_MEM_TABLE, Ask.SET_VRING_KICK, Ask.GET_VRING_BASE),
)
BEHAVIOURS = ("hang", "close", "garbage", "short", "endless", "slow", "wrong_id")
SHARE = [
    ("qtest-vhost-user", Ask.GET_FEATURES, "garbage"),
    ("qtest-vhost-user", Ask.GET_CONFIG, "close"),
]
ALL = [
    *(("qtest-vhost-user", step, behaviour) for step in STEPS for behaviour in BEHAVIOURS),
    *(
        ("guest-vhost-user", step, behaviour)
        for step in (Ask.GET_CONFIG, Ask.SET_MEM_TABLE)
        for behaviour in ("hang", "close", "garbage")
    ),
]


@pytest.mark.parametrize(("target", "step", "behaviour"), ALL if WHOLE else SHARE)
def test_a_spoiled_step_is_an_error(
    suite: Callable[..., Run], tmp_path: Path, target: str, step: Ask, behaviour: str
) -> None:
    count = tmp_path / "count"
    here = str(Path(__file__).parent)
    more = BETWEEN.format(here=here, step=step.name, behaviour=behaviour, count=str(count))

    run = suite(f"--target={target}", more=more)

    # QEMU asks some steps again, or needs no answer to them: then the device may well serve.
    assert run.outcomes["failure"] == 0, run.output
    for counts in run.verdicts.values():
        assert counts.keys() <= {"error", "kept"}, run.output
    if behaviour in ("hang", "close", "garbage") and step in (Ask.GET_FEATURES, Ask.GET_CONFIG):
        assert int(count.read_text()), run.output
        assert "error" in run.outcomes, run.output
