"""Hostile vhost-user back-ends: each step of the protocol, spoiled in each way.

Every test ends, by an error that is not an accusation of the device.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from inner import HASTE, Run
from proxy import BEHAVIOURS, STEPS, Proxy

from harness.diskspec import DiskSpec
from harness.targets.model import ModelProcess
from harness.virtio.vhost_user import FrontEndRequest as Ask

SHARE = [
    ("hang", Ask.GET_CONFIG),
    ("close", Ask.SET_MEM_TABLE),
    ("close", Ask.GET_VRING_BASE),
    ("garbage", Ask.GET_FEATURES),
    ("garbage", Ask.SET_STATUS),
    ("short", Ask.GET_STATUS),
    ("long", Ask.GET_CONFIG),
    ("endless", Ask.GET_QUEUE_NUM),
    ("endless", Ask.SET_VRING_ADDR),
    ("slow", Ask.SET_STATUS),
    ("wrong_id", Ask.SET_VRING_KICK),
    ("twice", Ask.SET_FEATURES),
]
"""The cases that run without VBLK_HOSTILE=all."""

ALL = [(behaviour, step) for behaviour in BEHAVIOURS for step in STEPS]
CASES = ALL if os.environ.get("VBLK_HOSTILE") == "all" else SHARE


@contextmanager
def spoiled(directory: Path, step: Ask, behaviour: str) -> Iterator[Proxy]:
    """Serve a disk of a model at a socket, with one step spoiled."""
    model = ModelProcess()
    proxy: Proxy | None = None
    try:
        _, real, _ = model.add(DiskSpec(capacity=2048))
        proxy = Proxy(directory / "s", real, step, behaviour)
        yield proxy
    finally:
        if proxy:
            proxy.end()
        model.stop()


@pytest.mark.parametrize(
    ("behaviour", "step"), CASES, ids=[f"{behaviour}-{step.name}" for behaviour, step in CASES]
)
def test_a_spoiled_step_is_an_error(
    suite: Callable[..., Run], short_dir: Path, behaviour: str, step: Ask
) -> None:
    # A back-end that answers in the end, or hangs up, is never waited for in vain.
    haste = "" if behaviour in ("slow", "close") else HASTE
    with spoiled(short_dir, step, behaviour) as proxy:
        run = suite("--destructive", f"--target=vhost-user:{proxy.path}", more=haste)

    (counts,) = run.verdicts.values()
    if (behaviour, step) == ("close", Ask.GET_VRING_BASE):
        # The driver resets the device so, and connects again: the device worked until then.
        assert counts == {"kept": 2}, run.output
        assert "closed the connection at GET_VRING_BASE, in a reset" in run.output
    elif behaviour == "slow" or not proxy.spoiled:
        assert counts == {"kept": 2}, run.output
    elif step is Ask.GET_VRING_BASE:
        # A driver sends it when the test is over: what the test saw before stands.
        assert counts.keys() <= {"error", "kept"}, run.output
    else:
        assert counts.keys() == {"error"}, run.output
        assert run.status != 0
    assert run.outcomes["failure"] == 0, run.output
