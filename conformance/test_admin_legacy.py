"""Access of a group's owner to the legacy interface of its members (virtio 2.12.1.1)."""

import pytest

from conformance.administration import need, shown
from conformance.data import sectors
from conformance.legacymember import LegacyMember
from conformance.pcispace import bars
from conformance.waiting import eventually
from harness.report import clause, on
from harness.virtio.admin import (
    LEGACY_ACCESS,
    NOTIFY_END,
    NOTIFY_ENTRIES,
    NOTIFY_INFO,
    NOTIFY_MEMBER,
    NOTIFY_OWNER,
    AdminStatus,
    Group,
    Opcode,
)
from harness.virtio.blk import CONFIG_FIELD, Status
from harness.virtio.device import DeviceStatus
from harness.virtio.features import Feature
from harness.virtio.pci import (
    DEVICE,
    LEGACY_CONFIG,
    LEGACY_REGISTERS,
    MODERN_DEVICE_ID,
    REVISION,
    SR_IOV_BAR_0,
    SUBSYSTEM,
)

pytestmark = on("pci", "modern")

BARS = 6


@pytest.fixture
def member(members):
    """The first member, reached through the legacy commands of its owner."""
    return LegacyMember(members)


@clause("2.12.1.1.6-D-01")
def test_the_commands_for_the_legacy_configuration_come_together(members):
    supported = members.queue.supported(Group.SR_IOV)

    assert supported & LEGACY_ACCESS in (set(), LEGACY_ACCESS)


@clause("2.12.1.1.6-D-12")
def test_addresses_for_notifications_come_with_the_other_legacy_commands(members):
    supported = members.queue.supported(Group.SR_IOV)
    if Opcode.LEGACY_NOTIFY_INFO not in supported:
        pytest.skip("the device has no LEGACY_NOTIFY_INFO")

    assert supported >= LEGACY_ACCESS


@clause("2.12.1.1.6-D-02", "2.12.1.1.6-D-08")
def test_the_legacy_configuration_of_a_member_is_read(member):
    capacity = member.members.disk.driver.config().capacity

    answer = member.config_read(CONFIG_FIELD["capacity"].offset, 8)

    assert answer.status == AdminStatus.OK, shown(answer)
    if not member.members.disk.spec.members:
        pytest.skip("the members are not of the harness: their capacity is not known")
    assert int.from_bytes(answer.result, "little") == capacity


@clause("2.12.1.1.6-D-02", "2.12.1.1.6-D-05", "2.12.1.1.6-D-06")
def test_registers_of_the_legacy_header_are_written_and_read(member):
    member.write("queue_select", 0x0102)
    assert member.read("queue_select") == 0x0102
    assert member.read("queue_size") == 0
    member.write("queue_select", 0)
    assert member.read("queue_size") > 0

    member.write("device_status", DeviceStatus.ACKNOWLEDGE)
    assert member.read("device_status") == DeviceStatus.ACKNOWLEDGE
    member.write("device_status", 0)
    assert eventually(lambda: member.read("device_status") == 0)


def need_dma(member, used):
    """Skip where a member that the harness did not make used nothing: it may lack bus mastering."""
    if not used and not member.members.disk.spec.members:
        pytest.skip("the member used nothing; nobody has set Bus Master Enable of it")


@clause("2.12.1.1.6-D-05")
def test_a_member_is_driven_through_its_legacy_header(member):
    disk = member.members.disk
    disk.backing.write(0, sectors(4))
    member.start()
    (place,) = member.publish([2])

    member.notify()

    need_dma(member, member.wait_used(1))
    assert member.wait_used(1), "the request was not used"
    assert member.status(place) == Status.OK
    if disk.spec.members:
        assert member.data(place) == sectors(4)[2 * 512 : 3 * 512]


@clause("2.12.1.1.6-D-07")
def test_the_legacy_configuration_of_a_member_is_written(member):
    writeback = CONFIG_FIELD["writeback"]
    features = member.read("device_features")
    wanted = writeback.feature.mask | Feature.BLK_FLUSH.mask
    if features & wanted != wanted:
        pytest.skip("the member does not offer CONFIG_WCE and FLUSH")
    member.start(wanted)
    before = need(member.config_read(writeback.offset, 1), "LEGACY_DEV_CFG_READ").result[0]

    for value in (1 - before, before):
        answer = member.config_write(writeback.offset, bytes([value]))
        assert answer.status == AdminStatus.OK, shown(answer)
        assert member.config_read(writeback.offset, 1).result[0] == value


SPANNING = [
    pytest.param(LEGACY_REGISTERS["queue_size"][0], 4, id="two-fields"),
    pytest.param(LEGACY_REGISTERS["device_status"][0], 2, id="status-and-isr"),
    pytest.param(LEGACY_CONFIG - 1, 4, id="over-the-end"),
    pytest.param(0xF0, 2, id="far-behind"),
]


@clause("2.12.1.1.6-D-03")
@pytest.mark.parametrize(("offset", "length"), SPANNING)
def test_a_read_that_is_not_in_one_field_of_the_header_fails(member, offset, length):
    assert member.read_at(offset, length).status != AdminStatus.OK


@clause("2.12.1.1.6-D-03")
@pytest.mark.parametrize(("offset", "length"), SPANNING)
def test_a_write_that_is_not_in_one_field_of_the_header_fails(member, offset, length):
    assert member.write_at(offset, bytes(length)).status != AdminStatus.OK


CONFIG_SPANNING = [
    pytest.param(CONFIG_FIELD["capacity"].offset + 4, 8, id="two-fields"),
    pytest.param(0xF8, 4, id="far-behind"),
]


@clause("2.12.1.1.6-D-04")
@pytest.mark.parametrize(("offset", "length"), CONFIG_SPANNING)
def test_a_read_that_is_not_in_one_field_of_the_configuration_fails(member, offset, length):
    assert member.config_read(offset, length).status != AdminStatus.OK


@clause("2.12.1.1.6-D-04")
@pytest.mark.parametrize(("offset", "length"), CONFIG_SPANNING)
def test_a_write_that_is_not_in_one_field_of_the_configuration_fails(member, offset, length):
    assert member.config_write(offset, bytes(length)).status != AdminStatus.OK


# --- addresses for notifications


def notify_entries(member):
    """Return all entries of LEGACY_NOTIFY_INFO; skip a device without it."""
    member.members.needs(Opcode.LEGACY_NOTIFY_INFO)
    answer = need(member.members.command(Opcode.LEGACY_NOTIFY_INFO), "LEGACY_NOTIFY_INFO")
    whole = NOTIFY_ENTRIES * NOTIFY_INFO.size
    return list(NOTIFY_INFO.iter_unpack(answer.result[:whole].ljust(whole, b"\0")))


def valid_entries(member):
    """Return the entries before the end of the list; skip a device that names none."""
    found = []
    for entry in notify_entries(member):
        if entry[0] == NOTIFY_END:
            break
        found.append(entry)
    return found or pytest.skip("the device names no address for notifications")


@clause("2.12.1.1.6-D-13")
def test_the_last_address_for_notifications_is_none(member):
    *_, (flags, _, _) = notify_entries(member)

    assert flags == NOTIFY_END


@clause("2.12.1.1.6-D-14")
def test_addresses_for_notifications_are_in_bars_that_exist(member):
    entries = valid_entries(member)
    own = bars(member.driver)
    capability = member.members.capability

    for flags, bar, _ in entries:
        assert flags in (NOTIFY_OWNER, NOTIFY_MEMBER)
        assert 1 <= bar < BARS
        if flags == NOTIFY_OWNER:
            assert bar in own, f"the owner has no BAR {bar}"
        else:
            at = SR_IOV_BAR_0 + 4 * bar
            before = capability.read(at, 4)
            capability.write(at, 0xFFFF_FFFF, 4)
            size_bits = capability.read(at, 4)
            capability.write(at, before, 4)
            assert size_bits, f"the members have no BAR {bar}"


@clause("2.12.1.1.6-D-15")
def test_addresses_for_notifications_are_even(member):
    for _, _, offset in valid_entries(member):
        assert offset % 2 == 0


@clause("2.12.1.1.6-D-11")
def test_a_notification_at_each_address_is_one(member):
    own = [entry for entry in valid_entries(member) if entry[0] == NOTIFY_OWNER]
    if not own:
        pytest.skip("all addresses for notifications are in BARs of the members")
    member.start()

    for count, (_, bar, offset) in enumerate(own, 1):
        member.publish([0])
        member.driver.bar_write(bar, offset, 2, 0)
        need_dma(member, member.wait_used(count))
        assert member.wait_used(count), f"nothing was used after a write to BAR {bar}, {offset:#x}"


@clause("2.12.1.1.6-D-17")
def test_virtual_functions_have_no_bar_0(member):
    member.members.needs(Opcode.LEGACY_NOTIFY_INFO)
    capability = member.members.capability
    capability.disable()

    capability.write(SR_IOV_BAR_0, 0xFFFF_FFFF, 4)

    assert capability.read(SR_IOV_BAR_0, 4) == 0


def owner_of_legacy_members(members):
    """Skip an owner that has not all legacy commands for its members."""
    members.needs(*(Opcode(opcode) for opcode in sorted(LEGACY_ACCESS)), Opcode.LEGACY_NOTIFY_INFO)
    return members.driver


@clause("2.12.1.1.6-D-09")
def test_the_owner_of_legacy_members_has_no_transitional_ids(members):
    driver = owner_of_legacy_members(members)

    assert driver.pci_read(REVISION, 1)[0] >= 1
    assert int.from_bytes(driver.pci_read(SUBSYSTEM, 2), "little") >= 0x40


@clause("2.12.1.1.6-D-10")
def test_the_owner_of_legacy_members_has_the_device_id_of_a_modern_device(members):
    driver = owner_of_legacy_members(members)

    assert int.from_bytes(driver.pci_read(DEVICE, 2), "little") == MODERN_DEVICE_ID
