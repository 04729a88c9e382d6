"""The device as a PCI function, and rare capabilities (virtio 4.1.1, 4.1.4, 6.2, 7.4)."""

import pytest

from conformance.pcispace import bars, capabilities, extended_capabilities, pointers
from conformance.waiting import let_pass
from harness.report import clause, described, on, reads_only
from harness.virtio.blk import Status
from harness.virtio.device import BLOCK_DEVICE
from harness.virtio.features import Feature
from harness.virtio.pci import (
    BAR_64,
    BARS,
    CAP_VENDOR,
    CAPABILITIES,
    DEVICE,
    EXT_CAP_SR_IOV,
    HEADER_SIZE,
    HEADER_TYPE,
    INTERRUPT_PIN,
    REVISION,
    STATUS,
    STATUS_CAPABILITIES,
    STATUS_INTERRUPT,
    SUBSYSTEM,
    VENDOR,
    VENDOR_ID,
    CapType,
)

pytestmark = on("pci")

REACHED = {CapType.COMMON_CFG, CapType.NOTIFY_CFG, CapType.ISR_CFG, CapType.DEVICE_CFG}
"""The structures in a BAR whose offset and length are not 64 bits wide."""


@clause("4.1.1-D-01")
@reads_only
def test_the_header_is_that_of_a_pci_function(plug):
    driver = plug(start=False).driver

    assert int.from_bytes(driver.pci_read(VENDOR, 2), "little") != 0xFFFF
    assert driver.pci_read(HEADER_TYPE, 1)[0] & 0x7F == 0
    assert driver.pci_read(INTERRUPT_PIN, 1)[0] <= 4
    assert driver.pci_read(STATUS, 1)[0] & STATUS_CAPABILITIES


@clause("4.1.1-D-01")
@reads_only
def test_the_list_of_capabilities_is_aligned_and_ends(plug):
    driver = plug(start=False).driver
    assert driver.pci_read(CAPABILITIES, 1)[0] >= HEADER_SIZE

    *places, end = pointers(driver)

    assert end == 0, f"the capability list does not end: the pointer after the last is {end:#x}"
    assert [place for place in places if place % 4] == []


@clause("4.1.1-D-01")
@reads_only
def test_bars_have_sizes_that_are_powers_of_two(plug):
    driver = plug(start=False).driver
    before = driver.pci_read(0, HEADER_SIZE)

    found = bars(driver)

    assert found, "the function has no BAR"
    for number, bar in found.items():
        assert bar.size & (bar.size - 1) == 0, f"BAR {number}: {bar}"
        if bar.ports:
            assert 4 <= bar.size <= 256, f"BAR {number}: {bar}"
        else:
            assert bar.size >= 16, f"BAR {number}: {bar}"
            assert bar.type in (0, BAR_64), f"BAR {number}: {bar}"
            assert bar.type == 0 or number < BARS - 1, f"BAR {number} has no upper half"
    assert driver.pci_read(0, HEADER_SIZE) == before


@described("4.1.4-P-01")
@reads_only
def test_structures_lie_within_their_bars(plug):
    driver = plug(start=False).driver
    sizes = {number: bar.size for number, bar in bars(driver).items()}

    for structure in driver.capabilities():
        if structure.type in REACHED and not structure.reserved:
            assert structure.bar in sizes, structure
            assert structure.offset + structure.length <= sizes[structure.bar], structure


@clause("7.4-T-01")
@reads_only
def test_a_device_that_looks_transitional_has_both_interfaces(plug):
    driver = plug(start=False).driver
    device = int.from_bytes(driver.pci_read(DEVICE, 2), "little")
    looks = (
        0x1000 <= device <= 0x103F
        and driver.pci_read(REVISION, 1) == b"\0"
        and int.from_bytes(driver.pci_read(SUBSYSTEM, 2), "little") == BLOCK_DEVICE
    )
    modern = {structure.type for structure in driver.capabilities()} >= REACHED
    has_bar_0 = bars(driver).get(0)

    assert modern, "only a legacy interface, or none"
    if looks:
        assert has_bar_0, "the ids are those of a transitional device, but there is no BAR 0"
        assert has_bar_0.ports, "the ids are those of a transitional device, but BAR 0 is memory"


@clause("6.2-D-09b")
@on("modern")
@reads_only
def test_sr_iov_is_not_offered_without_the_capability(plug):
    driver = plug(start=False).driver
    found = [ident for ident, _ in extended_capabilities(driver)]

    offered = bool(driver.offered() & Feature.SR_IOV.mask)

    assert not offered or EXT_CAP_SR_IOV in found


@clause("6.2-D-09a")
@on("modern")
@reads_only
def test_sr_iov_is_offered_with_the_capability(plug):
    driver = plug(start=False).driver
    if EXT_CAP_SR_IOV not in [ident for ident, _ in extended_capabilities(driver)]:
        pytest.skip("the device has no SR-IOV capability")

    assert driver.offered() & Feature.SR_IOV.mask


def vendor_data(driver):
    """Return the offset and length of each vendor data capability; skip a device without any."""
    found = [
        (at, driver.pci_read(at + 2, 1)[0])
        for ident, at in capabilities(driver)
        if ident == CAP_VENDOR and driver.pci_read(at + 3, 1)[0] == CapType.VENDOR_CFG
    ]
    return found or pytest.skip("the device has no vendor data capability")


@clause("4.1.4.8.1-D-01")
@reads_only
def test_vendor_data_does_not_have_the_vendor_id_of_virtio(plug):
    driver = plug(start=False).driver

    for at, _ in vendor_data(driver):
        assert int.from_bytes(driver.pci_read(at + 4, 2), "little") != VENDOR_ID


@clause("4.1.4.8.1-D-02")
@reads_only
def test_vendor_data_is_a_multiple_of_4_bytes_long(plug):
    for _, length in vendor_data(plug(start=False).driver):
        assert length % 4 == 0
        assert length >= 8  # vendor_id ends at byte 6


def can_read_the_same_twice(driver, at, length):
    """Return True when two reads in a row can be equal: the data does not change by itself."""
    return any(driver.pci_read(at, length) == driver.pci_read(at, length) for _ in range(5))


def observe(driver):
    """Return the state of a device that reading vendor data must not change, by name."""
    return {
        "status": driver.status(),
        "accepted features": driver.accepted(),
        "config generation": driver.config_generation(),
        "queue 0": driver.queue_state(0),
        "interrupt status": driver.pci_read(STATUS, 1)[0] & STATUS_INTERRUPT,
        "interrupts": driver.interrupts().raised,
        "capabilities": [driver.pci_read(at, 3) for _, at in capabilities(driver)],
    }


def read_with_every_width(driver, at, length):
    """Read vendor data in accesses of 1, 2 and 4 bytes."""
    for width in (1, 2, 4):
        for offset in range(0, length - length % 4, width):
            driver.pci_read(at + offset, width)


@clause("4.1.4.8-T-01", "4.1.4.8.1-D-03")
@on("modern")
@reads_only
def test_reading_vendor_data_changes_nothing(plug):
    disk = plug()
    driver = disk.driver
    places = vendor_data(driver)
    driver.service_interrupts(False)
    assert disk.read(0).status is Status.OK  # leaves an interrupt pending
    before = observe(driver)

    for at, length in places:
        same = can_read_the_same_twice(driver, at, length)
        assert same, f"vendor data at {at:#x} changes with each read"
    for at, length in places:
        read_with_every_width(driver, at, length)
    let_pass(disk=disk)

    assert observe(driver) == before
    assert driver.isr() & 1
    assert disk.read(1).status is Status.OK
