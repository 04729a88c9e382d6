"""Legal operations in random order (virtio 5.2.6, and the sections it depends on)."""

from importlib.util import find_spec

import pytest

from harness.report import described

# Its import takes a tenth of the time of a collection, and most runs leave this test out.
if find_spec("hypothesis") is None:
    pytest.skip(
        "hypothesis is not installed; pip install 'virtio-blk-conformance[random]'",
        allow_module_level=True,
    )


@described("5.2.6-P-12")
def test_legal_operations_in_random_order(random_run):
    found = random_run()

    assert not found, found
