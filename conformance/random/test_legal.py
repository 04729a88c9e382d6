"""Legal operations in random order (virtio 5.2.6, and the sections it depends on)."""

import pytest

from harness.report import described

pytest.importorskip(
    "hypothesis", reason="hypothesis is not installed; pip install 'virtio-blk-conformance[random]'"
)


@described("5.2.6-P-12")
def test_legal_operations_in_random_order(random_run):
    found = random_run()

    assert not found, found
