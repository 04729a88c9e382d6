"""Administration virtqueues, and groups with members, for tests (virtio 2.12, 2.13)."""

from __future__ import annotations

from collections.abc import Callable, Set
from typing import TYPE_CHECKING

import pytest

from conformance.pcispace import extended_capabilities
from harness.driver.admin import AdminQueue, Answer
from harness.driver.interface import Driver
from harness.virtio.admin import (
    CAP_DEV_PARTS,
    CAP_HEAD,
    GETS,
    LISTS,
    OBJECT,
    OBJECT_DEV_PARTS,
    OBJECT_HEAD,
    PARTS_LIMITS,
    PARTS_OBJECT,
    SETS,
    AdminStatus,
    Group,
    Opcode,
    Qualifier,
    numbers,
)
from harness.virtio.device import DeviceStatus
from harness.virtio.features import Feature
from harness.virtio.pci import (
    EXT_CAP_SR_IOV,
    SR_IOV_CONTROL,
    SR_IOV_NUM_VFS,
    SR_IOV_TOTAL_VFS,
    SR_IOV_VF_ENABLE,
)

if TYPE_CHECKING:
    from harness.targets import Disk

MEMBERS = {"members": 2}
"""Fields of a disk that a test prefers: a device that owns a group."""

ROOM = 1024
"""Bytes for the result of a command that a test sends."""

RESERVED_GROUP = 0xFFFF
UNKNOWN_OPCODE = 0x7FFE
UNKNOWN_CAPABILITY = 0x7FE
"""Values that no version of the specification up to 1.4 defines."""


def start(disk: Disk, extra: int = 0) -> AdminQueue:
    """Reset a device, and initialise it with its first administration virtqueue.

    Accept the feature bits `extra` in addition. Skip a device that does not offer ADMIN_VQ.
    """
    driver = disk.driver
    offered = driver.offered()
    if not offered & Feature.ADMIN_VQ.mask:
        pytest.skip("the device does not offer ADMIN_VQ")
    wanted = driver.negotiate().accepted
    wanted |= extra | offered & (Feature.ADMIN_VQ.mask | Feature.SR_IOV.mask)
    agreed = driver.negotiate(wanted)
    disk.queues = [driver.queue_setup(0)]
    queue = AdminQueue(driver)
    driver.set_status(agreed.status | DeviceStatus.DRIVER_OK)
    return queue


def owner(plug: Callable[..., Disk], **fields: object) -> tuple[Disk, AdminQueue]:
    """Plug in a device, with a group of members if the target has one, and start it."""
    disk = plug(start=False, needs=[Feature.ADMIN_VQ], prefer=MEMBERS, **fields)
    return disk, start(disk)


def use(queue: AdminQueue, opcodes: Set[int], group: int = Group.SELF) -> None:
    """Make LIST_USE succeed; skip a device that refuses this list, which it may (2.12.1.5-D-09)."""
    answer = queue.use(opcodes, group)
    if answer.status != AdminStatus.OK:
        pytest.skip(f"LIST_USE of {sorted(opcodes)} ended with status {answer.status}")


def use_all(queue: AdminQueue, group: int = Group.SELF) -> set[int]:
    """Use all commands of a group, and return them."""
    supported = queue.supported(group)
    use(queue, supported, group)
    return supported


def others(queue: AdminQueue, group: int = Group.SELF, count: int = 1) -> list[int]:
    """Return commands of a group that a driver may not use after a reset; skip without `count`."""
    found = sorted(queue.supported(group) - LISTS)
    if len(found) < count:
        pytest.skip(f"the device has {len(found)} commands for group {group} in addition to lists")
    return found


def check_refused(answer: Answer, qualifier: Qualifier | None = None) -> None:
    """Assert that a command ended with EINVAL, and with this qualifier."""
    assert answer.status == AdminStatus.EINVAL, shown(answer)
    if qualifier is not None:
        assert answer.qualifier == qualifier, shown(answer)


def shown(answer: Answer) -> str:
    """Return status and qualifier of an answer for a message."""
    return f"status {answer.status}, qualifier {answer.qualifier}, {answer.used} bytes used"


def need(answer: Answer, what: str) -> Answer:
    """Return an answer that is OK; skip the test if it is not. For commands that are tools."""
    if answer.status != AdminStatus.OK:
        pytest.skip(f"{what} failed: {shown(answer)}")
    return answer


class Capability:
    """The SR-IOV capability of a function that is ours."""

    def __init__(self, driver: Driver) -> None:
        """Find it; skip a function without it, or one whose configuration space is a kernel's."""
        if not driver.owns_pci_configuration():
            pytest.skip("the kernel answers for configuration space")
        found = [at for kind, at in extended_capabilities(driver) if kind == EXT_CAP_SR_IOV]
        if not found:
            pytest.skip("the device has no SR-IOV capability")
        self._driver = driver
        self.at = found[0]

    def read(self, offset: int, width: int = 2) -> int:
        """Return a register of the capability."""
        return int.from_bytes(self._driver.pci_read(self.at + offset, width), "little")

    def write(self, offset: int, value: int, width: int = 2) -> None:
        """Write a register of the capability."""
        self._driver.pci_write(self.at + offset, value.to_bytes(width, "little"))

    def enable(self, count: int) -> None:
        """Enable `count` virtual functions; skip a function that has fewer."""
        total = self.read(SR_IOV_TOTAL_VFS)
        if total < count:
            pytest.skip(f"the function can have {total} virtual functions")
        if self.read(SR_IOV_CONTROL) & SR_IOV_VF_ENABLE:
            pytest.skip("virtual functions are enabled already, by somebody else")
        self.write(SR_IOV_NUM_VFS, count)
        self.write(SR_IOV_CONTROL, self.read(SR_IOV_CONTROL) | SR_IOV_VF_ENABLE)
        if not self.read(SR_IOV_CONTROL) & SR_IOV_VF_ENABLE:
            pytest.skip("VF Enable cannot be set")

    def disable(self) -> None:
        """Disable all virtual functions."""
        self.write(SR_IOV_CONTROL, self.read(SR_IOV_CONTROL) & ~SR_IOV_VF_ENABLE)


class Members:
    """The members of a started device: `count` virtual functions, and commands for them."""

    def __init__(self, disk: Disk, queue: AdminQueue, count: int = 1) -> None:
        self.disk = disk
        self.queue = queue
        self.driver = disk.driver
        self.capability = Capability(disk.driver)
        if not disk.driver.accepted() & Feature.SR_IOV.mask:
            pytest.skip("the device does not offer SR_IOV")
        self.capability.enable(count)
        self.count = count

    def command(self, opcode: int, data: bytes = b"", member: int = 1, room: int = ROOM) -> Answer:
        """Send a command for a member."""
        return self.queue.command(opcode, Group.SR_IOV, member, data, room)

    def needs(self, *opcodes: Opcode) -> None:
        """Use all commands of the group. Skip a device without these."""
        supported = use_all(self.queue, Group.SR_IOV)
        if missing := [opcode.name for opcode in opcodes if opcode not in supported]:
            pytest.skip(f"the device has no {', '.join(missing)} for the group of SR-IOV")

    def restart(self) -> None:
        """Reset and start the owner. The members stay enabled."""
        self.queue = start(self.disk)


class Objects:
    """Device parts objects of the first member; the driver has set all that the device allows."""

    def __init__(self, members: Members, set_limits: bool = True) -> None:
        self.members = members
        self._purposes: dict[int, int] = {}
        members.needs(
            Opcode.RESOURCE_OBJ_CREATE,
            Opcode.RESOURCE_OBJ_QUERY,
            Opcode.RESOURCE_OBJ_MODIFY,
            Opcode.RESOURCE_OBJ_DESTROY,
        )
        self.gets, self.sets = limits(members.queue)
        if set_limits:
            self.set_limits(self.gets, self.sets)
        self.query_opcode = self.modify_opcode = 0

    def set_limits(self, gets: int, sets: int) -> None:
        """Set the driver's capability; skip a device that refuses it."""
        need(set_limits(self.members.queue, gets, sets), "DRIVER_CAP_SET")

    def number(self) -> None:
        """Find the numbers of QUERY and MODIFY, which the specification exchanges in one place.

        The table in 2.12.1 and the paragraphs of 2.12.1.3 differ.
        """
        self.needs(1, SETS)
        need(self.create(0, SETS), "RESOURCE_OBJ_CREATE")
        same = OBJECT.pack(OBJECT_DEV_PARTS, 0, 0) + PARTS_OBJECT.pack(SETS)
        answer = self.members.command(Opcode.RESOURCE_OBJ_QUERY, same)
        numbered = Opcode.RESOURCE_OBJ_QUERY, Opcode.RESOURCE_OBJ_MODIFY
        as_listed = answer.status == AdminStatus.OK and len(answer.result) > 0
        self.query_opcode, self.modify_opcode = numbered if as_listed else reversed(numbered)
        need(self.destroy(0), "RESOURCE_OBJ_DESTROY")

    def needs(self, count: int, purpose: int = GETS) -> None:
        """Skip a device that allows fewer objects of this purpose."""
        most = self.gets if purpose == GETS else self.sets
        if most < count:
            pytest.skip(f"the device allows {most} objects of purpose {purpose}")

    def create(self, ident: int, purpose: int = GETS) -> Answer:
        """Create an object."""
        data = OBJECT.pack(OBJECT_DEV_PARTS, ident, 0) + PARTS_OBJECT.pack(purpose)
        return self.members.command(Opcode.RESOURCE_OBJ_CREATE, data)

    def query(self, ident: int) -> Answer:
        """Query an object."""
        data = OBJECT.pack(OBJECT_DEV_PARTS, ident, 0)
        return self.members.command(self.query_opcode, data)

    def modify(self, ident: int, purpose: int) -> Answer:
        """Modify an object."""
        data = OBJECT.pack(OBJECT_DEV_PARTS, ident, 0) + PARTS_OBJECT.pack(purpose)
        return self.members.command(self.modify_opcode, data)

    def destroy(self, ident: int) -> Answer:
        """Destroy an object."""
        data = OBJECT_HEAD.pack(OBJECT_DEV_PARTS, ident)
        return self.members.command(Opcode.RESOURCE_OBJ_DESTROY, data)


def limits(queue: AdminQueue) -> tuple[int, int]:
    """Return how many objects for getting and for setting parts the device allows.

    Use all commands of the self group. Skip a device without the capability.
    """
    known = use_all(queue)
    if Opcode.CAP_ID_LIST_QUERY not in known:
        pytest.skip("the device has no capabilities")
    listed = need(queue.command(Opcode.CAP_ID_LIST_QUERY, room=ROOM), "CAP_ID_LIST_QUERY")
    if CAP_DEV_PARTS not in numbers(listed.result):
        pytest.skip("the device has no capability for device parts")
    answer = queue.command(Opcode.DEVICE_CAP_GET, data=CAP_HEAD.pack(CAP_DEV_PARTS))
    result = need(answer, "DEVICE_CAP_GET").result
    gets, sets = PARTS_LIMITS.unpack(result[: PARTS_LIMITS.size].ljust(PARTS_LIMITS.size, b"\0"))
    return gets, sets


def set_limits(queue: AdminQueue, gets: int, sets: int) -> Answer:
    """Set the driver's capability for device parts objects."""
    data = CAP_HEAD.pack(CAP_DEV_PARTS) + PARTS_LIMITS.pack(gets, sets).ljust(8, b"\0")
    return queue.command(Opcode.DRIVER_CAP_SET, data=data)
