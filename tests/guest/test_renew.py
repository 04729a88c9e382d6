"""Messages to a cloned guest, without a kernel that receives them.

Different random numbers in two clones would prove little: under TCG the CPU has a random number
instruction, and the kernel uses it to reseed. So these tests check the calls to the kernel.
"""

from __future__ import annotations

import struct
import time

import pytest

from harness.guest import agent


def test_the_clock_is_set_and_the_generator_reseeded_from_new_entropy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[tuple[object, ...]] = []
    monkeypatch.setattr(agent.time, "clock_settime", lambda *words: calls.append(words))
    monkeypatch.setattr(agent.fcntl, "ioctl", lambda _, *words: calls.append(words))
    entropy = bytes(range(64))

    agent._renew(1234.5, entropy)

    assert calls == [
        (time.CLOCK_REALTIME, 1234.5),
        (agent.RNDADDENTROPY, struct.pack("ii", 512, 64) + entropy),
        (agent.RNDRESEEDCRNG,),
    ]
