"""Chains of descriptors that no driver may build, in split rings (virtio 2.7.5)."""

import pytest

from harness.report import hardening
from harness.virtio.ring import DESC_F_NEXT


@pytest.fixture
def kind():
    return "split"


@hardening("2.7.5.3", "a chain of descriptors that leads back to its head")
def test_a_chain_that_loops(victim):
    disk = victim()
    buffers = disk.read()
    disk.lay(*buffers)
    disk.ring.put(2, buffers[2], DESC_F_NEXT, 0)

    with disk.watched():
        disk.go()
