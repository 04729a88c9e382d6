"""Offered features, and their negotiation (virtio 2.2, 5.2.3, 5.2.5, 6)."""

import pytest

from harness.driver.errors import FeaturesRefusedError
from harness.report import clause, described, on, reads_only
from harness.virtio.blk import CONFIG_FIELD
from harness.virtio.device import DeviceStatus
from harness.virtio.features import REQUIRES, Feature, mask, members, names

DEFINED = mask(*Feature) & ~mask(Feature.BLK_BARRIER, Feature.BLK_SCSI, Feature.UNUSED_30)
"""Bits that mean something for a block device.

NOTIFY_ON_EMPTY and ANY_LAYOUT are included. A device that also serves legacy drivers may offer
them (virtio 6.3); a vhost-user back-end does not know the type of its driver.
"""

PCI_ONLY = mask(Feature.SR_IOV, Feature.ADMIN_VQ, Feature.NOTIF_CONFIG_DATA)
"""Feature bits that only the PCI transport uses (2.2.2, 6, 4.2.5)."""

NEEDED = mask(Feature.VERSION_1, Feature.ACCESS_PLATFORM, Feature.ORDER_PLATFORM)
"""Offered bits without which a device may refuse to work (6.2-D-02, D-04, D-06)."""

EVERY_KIND = [
    pytest.param({}, id="plain"),
    pytest.param({"read_only": True, "config_wce": False, "queues": 4}, id="read-only-multiqueue"),
    pytest.param({"discard": False, "write_zeroes": False, "event_idx": False}, id="frugal"),
    pytest.param({"packed": True}, id="packed"),
]


@clause("6.2-D-01")
@on("modern")
@reads_only
def test_version_1_is_offered(plug):
    disk = plug(start=False)

    assert "VERSION_1" in names(disk.driver.offered())


@pytest.mark.parametrize("kind", EVERY_KIND)
@clause("2.2.2-D-03")
@on("modern")
@reads_only
def test_only_defined_features_are_offered(plug, kind):
    offered = plug(start=False, **kind).driver.offered()

    assert names(offered & ~DEFINED) == []


@clause("2.2.2-D-03")
@on("mmio", "modern")
@reads_only
def test_no_feature_of_another_transport_is_offered(plug):
    offered = plug(start=False).driver.offered()

    assert names(offered & PCI_ONLY) == []


@pytest.mark.parametrize("kind", EVERY_KIND)
@clause("2.2.2-D-01")
@reads_only
def test_no_feature_is_offered_without_what_it_needs(plug, kind):
    offered = plug(start=False, **kind).driver.offered()

    for feature, needed in REQUIRES.items():
        if offered & feature.mask:
            assert names(mask(*needed) & ~offered) == [], f"needed by {feature.name}"


@clause("5.2.5.2-D-01b")
@reads_only
def test_flush_is_offered_with_config_wce(plug):
    disk = plug(start=False, config_wce=True, needs=[Feature.BLK_CONFIG_WCE])

    assert "BLK_FLUSH" in names(disk.driver.offered())


@clause("5.2.5.2-D-01a")
@reads_only
def test_flush_is_offered_without_config_wce(plug):
    disk = plug(start=False, config_wce=False)

    assert "BLK_FLUSH" in names(disk.driver.offered())


@clause("5.2.6.2-D-14")
@reads_only
def test_lifetime_is_not_offered_over_a_plain_file(plug):
    disk = plug(start=False)

    assert "BLK_LIFETIME" not in names(disk.driver.offered())


@clause("5.2.5.2-D-04")
def test_zoned_is_not_offered_over_a_plain_file(plug):
    disk = plug(start=False)

    assert "BLK_ZONED" not in names(disk.driver.offered())


@pytest.mark.parametrize(
    ("feature", "off", "on"),
    [
        pytest.param(Feature.BLK_RO, {}, {"read_only": True}, id="RO"),
        pytest.param(Feature.BLK_DISCARD, {"discard": False}, {"discard": True}, id="DISCARD"),
        pytest.param(
            Feature.BLK_WRITE_ZEROES,
            {"write_zeroes": False},
            {"write_zeroes": True},
            id="WRITE_ZEROES",
        ),
    ],
)
@described("5.2.3", "a feature bit says what the device can do")
@reads_only
def test_a_feature_is_offered_exactly_if_the_device_has_it(plug, feature, off, on):
    without = plug(start=False, **off).driver.offered()
    having = plug(start=False, **on).driver.offered()

    assert not without & feature.mask
    assert having & feature.mask


@described("5.2.3", "MQ says that the device can have several queues")
@reads_only
def test_a_device_with_several_queues_offers_mq(plug):
    disk = plug(start=False, queues=2)

    assert "BLK_MQ" in names(disk.driver.offered())


@clause("4.1.4.3.1-D-03")
@on("pci", "modern")
def test_device_feature_is_zero_beyond_the_defined_bits(plug):
    driver = plug(start=False).driver
    offered = driver.offered()

    seen = {}
    for select in (0, 1, 2, 3, 4, 0x20, 0x80000000, 0xFFFFFFFF):
        driver.register_write("device_feature_select", select)
        seen[select] = driver.register_read("device_feature")

    expected = dict.fromkeys(seen, 0) | {0: offered & 0xFFFFFFFF, 1: offered >> 32}
    assert seen == expected


@clause("4.1.4.3.1-D-04")
@on("pci", "modern")
@reads_only
def test_driver_feature_reads_back_what_was_accepted(plug):
    driver = plug(start=False).driver
    offered = driver.offered()
    driver.reset()
    driver.set_status(DeviceStatus.ACKNOWLEDGE | DeviceStatus.DRIVER)

    for accepted in (offered, Feature.VERSION_1.mask):
        driver.accept(accepted)
        assert driver.accepted() == accepted


@clause("2.2.2-D-02a")
@on("modern")
@reads_only
def test_each_feature_alone_is_accepted(plug):
    driver = plug(start=False, queues=2).driver
    offered = driver.offered()

    refused = []
    for feature in members(offered):
        try:
            driver.negotiate(1 << feature | offered & NEEDED)
        except FeaturesRefusedError:
            refused.append(feature)

    assert refused == []


@clause("2.2.2-D-02a")
@reads_only
def test_every_set_with_one_feature_left_out_is_accepted(plug):
    driver = plug(start=False, queues=2).driver
    offered = driver.offered()

    refused = []
    for feature in members(offered & ~NEEDED & ~Feature.BLK_FLUSH.mask):
        try:
            driver.negotiate(offered & ~(1 << feature))
        except FeaturesRefusedError:
            refused.append(feature)

    assert refused == []


def unoffered(offered):
    """Return the masks of four features that are not offered: two defined, bit 44, bit 63."""
    candidates = [*members(DEFINED & ~offered), 44, 63]
    return [1 << bit for bit in (candidates[0], candidates[-3], 44, 63)]


@clause("2.2.2-D-02b")
@on("pci", "modern")
@reads_only
def test_a_feature_that_is_not_offered_is_dropped_or_refused(plug):
    driver = plug(start=False).driver
    offered = driver.offered()

    for bit in unoffered(offered):
        driver.reset()
        driver.set_status(DeviceStatus.ACKNOWLEDGE | DeviceStatus.DRIVER)
        driver.accept(offered & NEEDED | bit)
        driver.set_status(driver.status() | DeviceStatus.FEATURES_OK)
        taken = driver.status() & DeviceStatus.FEATURES_OK and driver.accepted() & bit
        assert not taken, f"FEATURES_OK is set, though {names(bit)} was accepted and not offered"


@clause("6.2-D-03")
@on("pci", "modern")
@reads_only
def test_access_platform_is_offered_where_addresses_are_translated(plug):
    driver = plug(start=False).driver
    if not driver.description()["translated"]:
        pytest.skip("no IOMMU translates the addresses of this device's memory accesses")

    assert "ACCESS_PLATFORM" in names(driver.offered())


@clause("2.2.2-D-04")
@on("modern")
@reads_only
def test_a_set_of_features_is_accepted_again_after_a_reset(plug):
    disk = plug()
    accepted = disk.driver.accepted()

    for _ in range(3):
        again = disk.driver.negotiate(accepted)
        assert again.status & DeviceStatus.FEATURES_OK


@clause("5.2.5.2-D-02")
@on("modern")
def test_writeback_is_off_if_config_wce_is_accepted_without_flush(plug):
    disk = plug(
        start=False,
        write_cache=True,
        config_wce=True,
        needs=[Feature.BLK_CONFIG_WCE, Feature.BLK_FLUSH],
    )
    disk.start(disk.driver.offered() & NEEDED | Feature.BLK_CONFIG_WCE.mask)

    writeback = disk.driver.config_read(CONFIG_FIELD["writeback"].offset, 1)

    assert writeback == b"\0"
