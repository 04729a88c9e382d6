"""Shared memory regions; a block device needs none (virtio 2.10, 4.1.4.7)."""

import pytest

from conformance.pcispace import bars
from harness.report import clause, on, reads_only
from harness.virtio.pci import CAP, CapType

pytestmark = on("pci")


def extent(driver, structure):
    """Return the BAR, start and end of a structure; 64 bits wide for shared memory."""
    offset, length = structure.offset, structure.length
    if structure.type == CapType.SHARED_MEMORY_CFG:
        upper = driver.pci_read(structure.at + CAP.size, 8)
        offset |= int.from_bytes(upper[:4], "little") << 32
        length |= int.from_bytes(upper[4:], "little") << 32
    return structure.bar, offset, offset + length


def regions(driver):
    """Return the capabilities of shared memory regions; skip a device without any."""
    found = [
        structure
        for structure in driver.capabilities()
        if structure.type == CapType.SHARED_MEMORY_CFG
    ]
    if not found:
        pytest.skip("the device has no shared memory region")
    return found


@clause("4.1.4.7.1-D-02")
@reads_only
def test_ids_of_shared_memory_regions_are_unique(plug):
    ids = [structure.id for structure in regions(plug(start=False).driver)]

    assert sorted(set(ids)) == sorted(ids)


@clause("4.1.4.7.1-D-01")
@reads_only
def test_shared_memory_regions_lie_within_their_bars(plug):
    driver = plug(start=False).driver
    found = regions(driver)
    sizes = {number: bar.size for number, bar in bars(driver).items()}

    for region in found:
        bar, _, end = extent(driver, region)
        assert bar in sizes, region
        assert end <= sizes[bar], region


@clause("2.10.2-D-01")
@reads_only
def test_shared_memory_regions_hold_no_structure_of_the_device(plug):
    driver = plug(start=False).driver
    control = {CapType.COMMON_CFG, CapType.NOTIFY_CFG, CapType.ISR_CFG, CapType.DEVICE_CFG}
    structures = [structure for structure in driver.capabilities() if structure.type in control]

    for region in regions(driver):
        bar, begin, end = extent(driver, region)
        for structure in structures:
            its_bar, its_begin, its_end = extent(driver, structure)
            assert bar != its_bar or end <= its_begin or its_end <= begin, (region, structure)
