"""Offered features, and their negotiation (virtio 2.2, 5.2.3, 5.2.5, 6)."""

import pytest

from conformance.negotiation import NEEDED, insisted_on
from conformance.rings import both_rings, plug_ring
from harness.driver.errors import FeaturesRefusedError
from harness.report import clause, described, on, reads_only
from harness.virtio.blk import CONFIG_FIELD, LIFETIME, RequestType, Status, segment
from harness.virtio.device import DeviceStatus
from harness.virtio.features import DRAFT, REQUIRES, Feature, mask, members, names

DEFINED = mask(*Feature) & ~mask(*DRAFT, Feature.BLK_BARRIER, Feature.BLK_SCSI, Feature.UNUSED_30)
"""Bits that mean something for a block device.

NOTIFY_ON_EMPTY and ANY_LAYOUT are included. A device that also serves legacy drivers may offer
them (virtio 6.3); a vhost-user back-end does not know the type of its driver.
"""

UNKNOWN = sum(1 << bit for bit in (*range(24), 41, 42, *range(50, 128))) & ~(
    mask(*Feature) & ~mask(*DRAFT)
)
"""Bits of the device type (2.2) that virtio 1.4 does not describe.

A device written to a later version may offer them, and such versions exist as drafts.
"""

PCI_ONLY = mask(Feature.SR_IOV, Feature.ADMIN_VQ, Feature.NOTIF_CONFIG_DATA)
"""Feature bits that only the PCI transport uses (2.2.2, 6, 4.2.5)."""

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

    assert names(offered & ~DEFINED & ~UNKNOWN) == []
    if offered & UNKNOWN:
        pytest.skip(f"virtio 1.4 does not describe {', '.join(names(offered & UNKNOWN))}")


@both_rings
@described("6.2-P-01")
def test_order_platform_is_accepted_where_it_is_offered(plug, packed):
    disk = plug_ring(plug, packed, start=False, needs=[Feature.ORDER_PLATFORM])
    features = insisted_on(disk.driver) | Feature.ORDER_PLATFORM.mask
    features |= Feature.RING_PACKED.mask if packed else 0

    agreed = disk.start(features)
    completions = [disk.read(0) for _ in range(8)]

    assert agreed.status & DeviceStatus.FEATURES_OK
    assert {completion.status for completion in completions} == {Status.OK}


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
    disk.needs_known_storage()

    assert "BLK_LIFETIME" not in names(disk.driver.offered())


@clause("5.2.5.2-D-04")
def test_zoned_is_not_offered_over_a_plain_file(plug):
    disk = plug(start=False)
    disk.needs_known_storage()

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
@described("5.2.3-P-02")
@reads_only
def test_a_feature_is_offered_exactly_if_the_device_has_it(plug, feature, off, on):
    without = plug(start=False, **off).driver.offered()
    having = plug(start=False, **on).driver.offered()

    assert not without & feature.mask
    assert having & feature.mask


@described("5.2.3-P-01")
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
    for select in (0, 1, 4, 0x20, 0x80000000, 0xFFFFFFFF):
        driver.register_write("device_feature_select", select)
        seen[select] = driver.register_read("device_feature")

    expected = dict.fromkeys(seen, 0) | {0: offered & 0xFFFFFFFF, 1: offered >> 32}
    assert seen == expected


@pytest.mark.parametrize("select", [2, 3])
@clause("4.1.4.3.1-D-03")
@on("pci", "modern")
def test_device_feature_is_zero_where_no_bit_is_described(plug, select):
    driver = plug(start=False).driver
    offered = driver.offered()

    driver.register_write("device_feature_select", select)
    features = driver.register_read("device_feature")

    # The bits there are the device type's: a later version may describe them, but VERSION_1 is 32.
    assert not offered >> 32 or features != offered >> 32, f"select {select} shows bits 32 to 63"
    if features:
        pytest.skip(f"virtio 1.4 describes no bit of {features:#x} at select {select}")


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


@clause("4.1.4.3.1-D-04")
@on("pci", "modern")
@reads_only
def test_driver_feature_shows_nothing_where_the_driver_wrote_nothing(plug):
    driver = plug(start=False).driver
    offered = driver.offered()
    driver.reset()
    driver.set_status(DeviceStatus.ACKNOWLEDGE | DeviceStatus.DRIVER)
    driver.accept(offered)

    seen = {}
    for select in (1, 2, 3, 4, 0x20, 0x80000000, 0xFFFFFFFF, 0):
        driver.register_write("driver_feature_select", select)
        seen[select] = driver.register_read("driver_feature")

    assert seen == dict.fromkeys(seen, 0) | {0: offered & 0xFFFFFFFF, 1: offered >> 32}


ONE_QUEUE_OR_MORE = pytest.mark.parametrize("fields", [{}, {"queues": 2}], ids=["plain", "MQ"])


@ONE_QUEUE_OR_MORE
@clause("2.2.2-D-02a")
@on("modern")
@reads_only
def test_each_feature_alone_is_accepted(plug, fields):
    driver = plug(start=False, **fields).driver
    offered, needed = driver.offered(), insisted_on(driver)

    refused = []
    for feature in members(offered):
        try:
            driver.negotiate(1 << feature | needed)
        except FeaturesRefusedError:
            refused.append(feature)

    assert refused == []


@ONE_QUEUE_OR_MORE
@clause("2.2.2-D-02a")
@reads_only
def test_every_set_with_one_feature_left_out_is_accepted(plug, fields):
    driver = plug(start=False, **fields).driver
    offered, needed = driver.offered(), insisted_on(driver)

    refused = []
    for feature in members(offered & ~needed & ~Feature.BLK_FLUSH.mask):
        try:
            driver.negotiate(offered & ~(1 << feature))
        except FeaturesRefusedError:
            refused.append(feature)

    assert refused == []


@pytest.mark.parametrize("bit", [44, 63])
@clause("2.2.2-D-02b")
@on("modern")
@reads_only
def test_a_bit_that_is_not_offered_is_refused_or_changes_nothing(plug, bit):
    disk = plug(start=False)
    offered = disk.driver.offered()
    if offered >> bit & 1:
        pytest.skip(f"the device offers bit {bit}")

    try:
        disk.start(insisted_on(disk.driver) | 1 << bit)
    except FeaturesRefusedError:
        return

    assert disk.read(0).status is Status.OK, f"FEATURES_OK with bit {bit}, and no read succeeds"


@pytest.mark.parametrize(
    ("feature", "fields", "kind", "data", "receive"),
    [
        pytest.param(
            Feature.BLK_DISCARD,
            {"discard": False},
            RequestType.DISCARD,
            segment(0, 8),
            0,
            id="DISCARD",
        ),
        pytest.param(
            Feature.BLK_WRITE_ZEROES,
            {"write_zeroes": False},
            RequestType.WRITE_ZEROES,
            segment(0, 8),
            0,
            id="WRITE_ZEROES",
        ),
        pytest.param(
            Feature.BLK_SECURE_ERASE,
            {},
            RequestType.SECURE_ERASE,
            segment(0, 8),
            0,
            id="SECURE_ERASE",
        ),
        pytest.param(
            Feature.BLK_LIFETIME, {}, RequestType.GET_LIFETIME, b"", LIFETIME.size, id="LIFETIME"
        ),
    ],
)
@clause("2.2.2-D-02b")
@on("modern")
def test_a_feature_that_is_not_offered_is_refused_or_changes_nothing(
    plug, feature, fields, kind, data, receive
):
    disk = plug(start=False, **fields)
    if disk.driver.offered() & feature.mask:
        pytest.skip(f"the device offers {feature.name}")
    disk.needs_sectors(8)

    # driver_feature may show such a bit or not: the effect on the device counts.
    needed = insisted_on(disk.driver)
    disk.start(needed)
    without = disk.request(kind, 0, data, receive).status
    try:
        disk.start(needed | feature.mask)
    except FeaturesRefusedError:
        return
    accepted = disk.request(kind, 0, data, receive).status

    assert accepted is without, f"FEATURES_OK with {feature.name} changes what its request gets"


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


@clause("2.2.2-D-04")
@on("modern")
@reads_only
def test_a_set_of_features_is_accepted_again_after_a_system_reset(plug):
    disk = plug()
    accepted = disk.driver.accepted()

    for _ in range(2):
        disk.system_reset()
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
