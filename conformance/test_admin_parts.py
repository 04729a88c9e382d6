"""Device parts of members, and members that are stopped (virtio 2.12.1.4, 2.14)."""

import pytest

from conformance import pcispace
from conformance.administration import Objects, need, shown
from conformance.legacymember import LegacyMember
from conformance.waiting import eventually, let_pass
from harness.report import clause, on
from harness.targets import LacksError
from harness.virtio.admin import (
    DEVICE_PARTS,
    GETS,
    METADATA,
    METADATA_LIST,
    MODE,
    MODE_STOPPED,
    OBJECT_DEV_PARTS,
    OBJECT_HEAD,
    PART,
    PART_INDEX,
    PART_OFFSET,
    PARTS_ALL,
    PARTS_QUESTION,
    SETS,
    VQ_CFG,
    AdminStatus,
    Group,
    Opcode,
    Part,
    part,
    parts_in,
)
from harness.virtio.blk import STATUS_UNWRITTEN, Status
from harness.virtio.device import DeviceStatus
from harness.virtio.pci import (
    COMMAND,
    COMMAND_MASTER,
    COMMON_REGISTERS,
    ISR_CONFIG,
    ISR_QUEUE,
    REVISION,
)

pytestmark = on("pci", "modern")

GET_OBJECT, SET_OBJECT = 0, 1
"""Ids of the objects that a test has for getting, and for setting parts."""


class Parts:
    """The device parts of the first member, with an object for getting and one for setting."""

    def __init__(self, members):
        self.members = members
        members.needs(*(Opcode(opcode) for opcode in sorted(DEVICE_PARTS)))
        self._objects = Objects(members)
        self._objects.needs(GET_OBJECT + 1, GETS)
        self._objects.needs(SET_OBJECT + 1, SETS)
        need(self._objects.create(GET_OBJECT, GETS), "RESOURCE_OBJ_CREATE")
        need(self._objects.create(SET_OBJECT, SETS), "RESOURCE_OBJ_CREATE")

    def ask(self):
        """Return the answer to DEV_PARTS_GET for all parts."""
        data = PARTS_QUESTION.pack(OBJECT_DEV_PARTS, GET_OBJECT, PARTS_ALL)
        return self.members.command(Opcode.DEV_PARTS_GET, data, room=4096)

    def all(self):
        """Return all parts; skip the test if they cannot be read."""
        return parts_in(need(self.ask(), "DEV_PARTS_GET").result)

    def heads(self):
        """Return the types of all parts from their metadata; skip if they cannot be read."""
        data = PARTS_QUESTION.pack(OBJECT_DEV_PARTS, GET_OBJECT, METADATA_LIST)
        answer = self.members.command(Opcode.DEV_PARTS_METADATA_GET, data, room=4096)
        result = need(answer, "DEV_PARTS_METADATA_GET").result
        (count,) = METADATA.unpack_from(result)
        heads = result[METADATA.size :][: count * PART.size]
        return [kind for kind, *_ in PART.iter_unpack(heads)]

    def value(self, kind, selector=bytes(8)):
        """Return flags and value of a part; skip a device that does not have it."""
        for found, flags, where, value in self.all():
            if found == kind and where == selector:
                return flags, value
        return pytest.skip(f"the device has no part {kind.name}")

    def set(self, *parts):
        """Send DEV_PARTS_SET with these parts."""
        data = OBJECT_HEAD.pack(OBJECT_DEV_PARTS, SET_OBJECT) + b"".join(parts)
        return self.members.command(Opcode.DEV_PARTS_SET, data)

    def set_mode(self, flags):
        """Send DEV_MODE_SET."""
        return self.members.command(Opcode.DEV_MODE_SET, MODE.pack(flags).ljust(8, b"\0"))

    def stop(self):
        """Stop the member; skip the test if that fails."""
        need(self.set_mode(MODE_STOPPED), "DEV_MODE_SET")

    def resume(self):
        """Resume the member; skip the test if that fails."""
        need(self.set_mode(0), "DEV_MODE_SET")


@pytest.fixture
def parts(members):
    """The device parts of a member."""
    return Parts(members)


@pytest.fixture
def running(parts):
    """A member that runs, with its first request used, and its parts."""
    member = LegacyMember(parts.members)
    member.start()
    member.publish([0])
    member.notify()
    if not member.wait_used(1):
        pytest.skip("the member does not use a request")
    return member, parts


@clause("2.12.1.4.4.1-D-01")
def test_the_commands_for_device_parts_come_together(members):
    for group in Group:
        found = members.queue.supported(group) & DEVICE_PARTS
        # Commands for resource objects alone may be for those of another type.
        handled = found & {opcode for opcode in DEVICE_PARTS if opcode >= 0x0E}
        assert not handled or found == DEVICE_PARTS, f"group {group}: {sorted(found)}"


@clause("2.12.1.4.4.1-D-02")
def test_device_parts_are_read_more_than_once(parts):
    first = parts.all()

    for _ in range(3):
        answer = parts.ask()
        assert answer.status == AdminStatus.OK, shown(answer)
        assert [found[0] for found in parts_in(answer.result)] == [found[0] for found in first]


@clause("2.12.1.4.4.1-D-03")
def test_device_parts_come_in_order(parts):
    kinds = [kind for kind, *_ in parts.all() if kind in list(Part)]

    assert kinds == sorted(kinds)


def check_before(kinds, earlier, later):
    """Assert that no part of type `later` comes without one of type `earlier` before it."""
    if later not in kinds:
        pytest.skip(f"the device has no part {later.name}")
    before = kinds[: kinds.index(later)]
    assert earlier in before, f"{later.name} comes without {earlier.name} before it"


@pytest.fixture(params=["parts", "metadata"])
def kinds(parts, request):
    """The types of all parts, from the parts or from their metadata."""
    return [kind for kind, *_ in parts.all()] if request.param == "parts" else parts.heads()


@clause("2.12.1.4.4.1-D-24")
def test_driver_features_come_after_device_features(kinds):
    check_before(kinds, Part.DEV_FEATURES, Part.DRV_FEATURES)


@clause("2.12.1.4.4.1-D-25")
def test_the_common_configuration_comes_after_device_features(kinds):
    check_before(kinds, Part.DEV_FEATURES, Part.PCI_COMMON_CFG)


@clause("2.12.1.4.4.1-D-26")
def test_the_common_configuration_comes_after_driver_features(kinds):
    check_before(kinds, Part.DRV_FEATURES, Part.PCI_COMMON_CFG)


# --- setting parts


def driver_part(parts):
    """Return the part with the driver's features as it is."""
    flags, value = parts.value(Part.DRV_FEATURES)
    return part(Part.DRV_FEATURES, flags, bytes(8), value)


def queue_part(parts):
    """Return the part with the configuration of virtqueue 0 as it is."""
    selector = PART_INDEX.pack(0)
    flags, value = parts.value(Part.VQ_CFG, selector)
    return part(Part.VQ_CFG, flags, selector, value)


@clause("2.12.1.4.4.1-D-04")
def test_parts_of_a_member_that_runs_cannot_be_set(parts):
    assert parts.set(driver_part(parts)).status != AdminStatus.OK


@clause("2.12.1.4.4.1-D-05")
def test_parts_can_be_set_more_than_once(parts):
    parts.stop()
    features, queue = driver_part(parts), queue_part(parts)

    for chosen in ([features], [features], [queue], [features, queue], [queue]):
        answer = parts.set(*chosen)
        assert answer.status == AdminStatus.OK, shown(answer)


@clause("2.12.1.4.4.1-D-06")
def test_a_part_of_another_length_cannot_be_set(parts):
    parts.stop()
    status_flags, status = parts.value(Part.DEVICE_STATUS)
    selector = PART_INDEX.pack(0)
    queue_flags, queue = parts.value(Part.VQ_CFG, selector)

    for wrong in (
        part(Part.DEVICE_STATUS, status_flags, bytes(8), status + b"\0"),
        part(Part.VQ_CFG, queue_flags, selector, queue[:-8]),
        part(Part.VQ_CFG, queue_flags, selector, queue + bytes(8)),
    ):
        assert parts.set(wrong).status != AdminStatus.OK


def altered(value):
    """Return a value whose lowest bit is another."""
    return bytes([value[0] ^ 1]) + value[1:]


@clause("2.12.1.4.4.1-D-07")
def test_device_features_are_not_set(parts):
    parts.stop()
    flags, value = parts.value(Part.DEV_FEATURES)

    parts.set(part(Part.DEV_FEATURES, flags, bytes(8), altered(value)))

    assert parts.value(Part.DEV_FEATURES)[1] == value


def common_part(parts):
    """Return selector, flags and value of the part that is the register num_queues.

    No driver can write it, so another value can't be a correct one.
    """
    wanted = PART_OFFSET.pack(COMMON_REGISTERS["num_queues"][0])
    for kind, flags, selector, value in parts.all():
        if kind == Part.PCI_COMMON_CFG and selector == wanted:
            return selector, flags, value
    return pytest.skip("the device has no part that is the register num_queues")


@clause("2.12.1.4.4.1-D-28a")
def test_another_common_configuration_is_not_accepted(parts):
    parts.stop()
    selector, flags, value = common_part(parts)

    answer = parts.set(part(Part.PCI_COMMON_CFG, flags, selector, altered(value)))

    assert answer.status != AdminStatus.OK


@clause("2.12.1.4.4.1-D-28b")
def test_the_common_configuration_is_not_set(parts):
    parts.stop()
    selector, flags, value = common_part(parts)

    parts.set(part(Part.PCI_COMMON_CFG, flags, selector, altered(value)))

    assert common_part(parts)[2] == value


@clause("2.12.1.4.4.1-D-22")
def test_a_reset_gives_parts_their_default_values(running):
    member, parts = running
    member.write("device_status", 0)
    if not eventually(lambda: member.read("device_status") == 0):
        pytest.skip("the reset of the member does not end, which other tests judge")

    assert parts.value(Part.DEVICE_STATUS)[1] == b"\0"
    assert not any(parts.value(Part.DRV_FEATURES)[1])
    queue = parts.value(Part.VQ_CFG, PART_INDEX.pack(0))[1]
    _, _, enabled, *addresses = VQ_CFG.unpack(queue)
    assert enabled == 0
    assert addresses == [0, 0, 0]


# --- stop and resume


@clause("2.12.1.4.4.1-D-20")
def test_a_member_that_is_stopped_can_be_stopped(parts):
    parts.stop()

    answer = parts.set_mode(MODE_STOPPED)

    assert answer.status == AdminStatus.OK, shown(answer)


@clause("2.12.1.4.4.1-D-21")
def test_a_member_that_runs_can_be_resumed(parts):
    answer = parts.set_mode(0)

    assert answer.status == AdminStatus.OK, shown(answer)


def stopped_with_a_request(running):
    """Stop a member, send it a request, and return the member and the request."""
    member, parts = running
    parts.stop()
    places = member.publish([1])
    before = member.memory(places)
    member.notify()
    let_pass()
    return member, parts, places, before


@clause("2.12.1.4.4.1-D-15", "2.12.1.4.4.1-D-08")
def test_a_stopped_member_touches_no_memory(running):
    member, _, places, before = stopped_with_a_request(running)

    assert member.memory(places) == before


@clause("2.12.1.4.4.1-D-11a")
def test_a_notification_to_a_stopped_member_has_its_effect_later(running):
    member, parts, (place,), _ = stopped_with_a_request(running)

    parts.resume()

    assert member.wait_used(2), "the request was not used after the member was resumed"
    assert member.status(place) == Status.OK


@clause("2.12.1.4.4.1-D-16")
def test_a_stopped_member_announces_no_used_buffer(running):
    member, _ = running
    if not member.read("isr_status") & ISR_QUEUE:
        pytest.skip("the member has no ISR status without MSI-X")

    stopped_with_a_request(running)

    assert not member.read("isr_status")


@clause("2.12.1.4.4.1-D-16")
def test_a_stopped_member_announces_no_change_of_its_configuration(running):
    member, parts = running
    disk = member.members.disk
    member.read("isr_status")
    capacity = disk.driver.config().capacity
    disk.resize(capacity + 8)
    if not eventually(lambda: bool(member.read("isr_status") & ISR_CONFIG)):
        pytest.skip("the member does not announce a change")
    parts.stop()

    disk.resize(capacity + 16)
    let_pass(disk=disk)

    assert not member.read("isr_status") & ISR_CONFIG


def stopped_under_load(members):
    """Stop a member with slow requests, and return it with these."""
    parts = Parts(members)
    member = LegacyMember(members)
    member.start()
    places = member.publish([0, 1, 2, 3])
    member.notify()
    parts.stop()
    return member, places


SLOW = pytest.mark.parametrize("owner_fields", [{"iops": 10}], ids=["slow"])


@SLOW
@clause("2.12.1.4.4.1-D-09")
def test_a_member_has_finished_when_it_is_stopped(members):
    member, places = stopped_under_load(members)
    before = member.memory(places)

    let_pass(0.5, disk=members.disk)

    assert member.memory(places) == before


@SLOW
@clause("2.12.1.4.4.1-D-10")
def test_what_a_stopped_member_has_executed_is_used(members):
    member, places = stopped_under_load(members)

    executed = [place for place in places if member.status(place) != STATUS_UNWRITTEN]

    assert member.used_index() == len(executed)


# --- the bus of a stopped member


@pytest.fixture
def on_bus(parts):
    """The driver of the first member on a bus of its own, started, and the member's parts."""
    try:
        driver = parts.members.disk.member(1)
    except LacksError as error:  # pytest would report it as an error of the fixture
        pytest.skip(str(error))
    driver.start()
    return driver, parts


def identity(driver):
    """Return what reads show of a function and its driver does not change."""
    return {
        "ids": driver.pci_read(0, 4),
        "class": driver.pci_read(REVISION, 4),
        "capabilities": [*pcispace.capabilities(driver)],
        "num_queues": driver.register_read("num_queues"),
        "capacity": driver.config_read(0, 8),
    }


@clause("2.12.1.4.4.1-D-12")
def test_a_stopped_member_shows_the_same_as_one_that_runs(on_bus):
    driver, parts = on_bus
    running = identity(driver)
    parts.stop()

    stopped = identity(driver)

    assert stopped == running


@clause("2.12.1.4.4.1-D-13")
def test_configuration_space_of_a_stopped_member_can_be_written(on_bus):
    driver, parts = on_bus
    parts.stop()
    command = int.from_bytes(driver.pci_read(COMMAND, 2), "little")

    shown = []
    for value in (command ^ COMMAND_MASTER, command):
        driver.pci_write(COMMAND, value.to_bytes(2, "little"))
        shown.append(int.from_bytes(driver.pci_read(COMMAND, 2), "little"))

    assert shown == [command ^ COMMAND_MASTER, command]


@clause("2.12.1.4.4.1-D-13")
def test_a_stopped_member_can_be_reset_by_its_function(on_bus):
    driver, parts = on_bus
    assert driver.status() & DeviceStatus.DRIVER_OK
    parts.stop()

    pcispace.reset_function(driver)
    let_pass(pcispace.RESET_SETTLES)

    assert driver.status() == 0
    assert not driver.pci_read(COMMAND, 1)[0] & COMMAND_MASTER
