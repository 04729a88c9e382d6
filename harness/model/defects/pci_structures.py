"""Defects of the PCI function: identity, capabilities, notification structure (virtio 4.1)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from harness.model.defects.registry import LEGACY_TARGET, TRANSITIONAL_TARGET, Original, on_pci
from harness.model.pci.function import (
    COMMON,
    LEGACY_BAR,
    NOTIFY,
    NOTIFY_LENGTH,
    REGISTER_BAR,
    Function,
)
from harness.model.pci.function import DEVICE as DEVICE_CONFIG
from harness.model.pci.interrupts import Interrupts
from harness.model.pci.owner import Owner
from harness.model.pci.registers import Register
from harness.model.pci.space import ConfigSpace
from harness.model.whims.function import one_vector
from harness.virtio.device import DeviceStatus
from harness.virtio.features import Feature
from harness.virtio.pci import (
    CAP,
    CAP_VENDOR,
    DEVICE,
    HEADER_SIZE,
    LEGACY_CONFIG_MSIX,
    NO_VECTOR,
    REVISION,
    SUBSYSTEM,
    VENDOR,
    VENDOR_ID,
    CapType,
)

UNKNOWN_TYPE = 0x7F
"""Type of a structure that virtio does not define."""

OTHER_VENDOR = 0x1AF5

EXPRESS_1_SIZE = 20
"""Length of a PCI Express capability of version 1, in bytes."""

CAP_LEN, TYPE, OFFSET, LENGTH = 2, 3, 8, 12
"""Offsets of fields in a capability, in bytes."""


def capability(function: Function, kind: CapType) -> int:
    """Return the place of the capability of a structure in configuration space."""
    space = function.space
    return next(
        at
        for at in range(HEADER_SIZE, 0x100, 4)
        if space.field(at, 1) == CAP_VENDOR and space.field(at + TYPE, 1) == kind
    )


def define(function: Function, kind: CapType, field: int, value: int, width: int = 4) -> None:
    """Change a field of the capability of a structure."""
    function.space.define(capability(function, kind) + field, value.to_bytes(width, "little"))


def offer_no_notification_data(function: Function) -> None:
    """Take NOTIFICATION_DATA away from the offered features."""
    function.device._transport_features &= ~Feature.NOTIFICATION_DATA.mask


def changed(
    registers: dict[str, Register], name: str, read: Callable[[int], int]
) -> dict[str, Register]:
    """Return the registers; one of them reads what `read` makes of its value."""
    before = registers[name]
    return registers | {name: replace(before, read=lambda: read(before.read()))}


# --- identity (4.1.2.1, 4.1.2.3)


@on_pci(
    Function._define_header, "4.1.2.1-D-01", text="the function has another vendor", unusable=True
)
def vendor_of_another_function(original: Original, function: Function) -> None:
    original(function)
    function.space.define(VENDOR, b"\xf5\x1a")


@on_pci(
    Function._define_header,
    "4.1.2.1-D-02",
    text="the function has the device id of a network device",
    unusable=True,
)
def device_id_of_another_function(original: Original, function: Function) -> None:
    original(function)
    function.space.define(DEVICE, b"\x41\x10")


@on_pci(
    Function._define_header, "4.1.2.1-D-04", text="a modern function has a transitional device id"
)
def device_id_of_a_transitional_function(original: Original, function: Function) -> None:
    original(function)
    function.space.define(DEVICE, b"\x01\x10")


@on_pci(
    Function._define_header,
    "4.1.2.3-L-01",
    text="a transitional function has revision 1",
    target=TRANSITIONAL_TARGET,
)
def revision_of_a_modern_function(original: Original, function: Function) -> None:
    original(function)
    function.space.define(REVISION, b"\1")


@on_pci(
    Function._define_header,
    "4.1.2.3-L-02",
    text="a transitional function has the subsystem id of a console",
    target=TRANSITIONAL_TARGET,
)
def subsystem_of_another_function(original: Original, function: Function) -> None:
    original(function)
    function.space.define(SUBSYSTEM, b"\3\0")


@on_pci(
    Function._define_header,
    "4.1.2.3-L-03",
    text="a transitional function has the device id of a modern one",
    target=TRANSITIONAL_TARGET,
)
def device_id_of_a_modern_function(original: Original, function: Function) -> None:
    original(function)
    function.space.define(DEVICE, b"\x42\x10")


# --- structures (4.1.4); the driver of the legacy interface reads none of them


@on_pci(
    Function._define_capabilities,
    "4.1.4.3.1-D-02",
    text="the function has no common configuration",
    target=LEGACY_TARGET,
)
def no_common_configuration(original: Original, function: Function) -> None:
    original(function)
    define(function, CapType.COMMON_CFG, TYPE, UNKNOWN_TYPE, 1)


@on_pci(
    Function._define_capabilities,
    "4.1.4.4.1-D-01",
    text="the function has no notification structure",
    target=LEGACY_TARGET,
)
def no_notification_structure(original: Original, function: Function) -> None:
    original(function)
    define(function, CapType.NOTIFY_CFG, TYPE, UNKNOWN_TYPE, 1)


@on_pci(
    Function._define_capabilities,
    "4.1.4.5.1-D-01",
    text="the function has no ISR structure",
    target=LEGACY_TARGET,
)
def no_isr_structure(original: Original, function: Function) -> None:
    original(function)
    define(function, CapType.ISR_CFG, TYPE, UNKNOWN_TYPE, 1)


@on_pci(
    Function._define_capabilities,
    "4.1.4.6-T-01",
    text="the function has no device configuration",
    target=LEGACY_TARGET,
)
def no_device_configuration(original: Original, function: Function) -> None:
    original(function)
    define(function, CapType.DEVICE_CFG, TYPE, UNKNOWN_TYPE, 1)


@on_pci(
    Function._define_capabilities,
    "4.1.4.3.1-D-01",
    text="the common configuration is at an odd offset",
    target=LEGACY_TARGET,
)
def common_configuration_at_an_odd_offset(original: Original, function: Function) -> None:
    original(function)
    define(function, CapType.COMMON_CFG, OFFSET, COMMON + 1)


@on_pci(
    Function._define_capabilities,
    "4.1.4.6.1-D-01",
    text="the device configuration is at an odd offset",
    target=LEGACY_TARGET,
)
def device_configuration_at_an_odd_offset(original: Original, function: Function) -> None:
    original(function)
    define(function, CapType.DEVICE_CFG, OFFSET, DEVICE_CONFIG + 1)


@on_pci(
    Function._define_capabilities,
    "4.1.4-P-01",
    text="the notification structure ends behind its BAR",
    target=LEGACY_TARGET,
)
def notification_structure_behind_its_bar(original: Original, function: Function) -> None:
    original(function)
    define(function, CapType.NOTIFY_CFG, LENGTH, 0x10_0000)


@on_pci(
    Function._define_capabilities,
    "4.1.4.2-D-01",
    text="cap_len of the notification structure leaves out its multiplier",
)
def capability_without_its_multiplier(original: Original, function: Function) -> None:
    original(function)
    define(function, CapType.NOTIFY_CFG, CAP_LEN, CAP.size, 1)


# --- the notification structure (4.1.4.4)


@on_pci(
    Function._define_capabilities,
    "4.1.4.4.1-D-02",
    text="without NOTIFICATION_DATA, notifications are at an odd offset",
)
def notifications_at_an_odd_offset(original: Original, function: Function) -> None:
    original(function)
    offer_no_notification_data(function)
    define(function, CapType.NOTIFY_CFG, OFFSET, NOTIFY + 1)
    define(function, CapType.NOTIFY_CFG, LENGTH, NOTIFY_LENGTH - 1)


@on_pci(
    Function._define_capabilities,
    "4.1.4.4.1-D-03",
    text="without NOTIFICATION_DATA, notify_off_multiplier is 12",
)
def notification_multiplier_12(original: Original, function: Function) -> None:
    original(function)
    offer_no_notification_data(function)
    define(function, CapType.NOTIFY_CFG, CAP.size, 12)


@on_pci(
    Function._define_capabilities,
    "4.1.4.4.1-D-04a",
    text="without NOTIFICATION_DATA, there is 1 byte for notifications",
    unusable=True,
)
def notifications_in_1_byte(original: Original, function: Function) -> None:
    original(function)
    offer_no_notification_data(function)
    define(function, CapType.NOTIFY_CFG, LENGTH, 1)


@on_pci(
    Function._define_capabilities,
    "4.1.4.4.1-D-04b",
    "4.1.4.4.1-D-05",
    text="without NOTIFICATION_DATA, there is room for the notifications of one queue",
)
def notifications_of_one_queue(original: Original, function: Function) -> None:
    original(function)
    offer_no_notification_data(function)
    define(function, CapType.NOTIFY_CFG, LENGTH, 2)


@on_pci(
    Function._define_capabilities,
    "4.1.4.4.1-D-06",
    text="with NOTIFICATION_DATA, notify_off_multiplier is 2",
)
def notification_multiplier_2_with_data(original: Original, function: Function) -> None:
    original(function)
    define(function, CapType.NOTIFY_CFG, CAP.size, 2)


@on_pci(
    Function._define_capabilities,
    "4.1.4.4.1-D-07",
    text="with NOTIFICATION_DATA, notifications are at an odd offset",
)
def notifications_with_data_at_an_odd_offset(original: Original, function: Function) -> None:
    original(function)
    define(function, CapType.NOTIFY_CFG, OFFSET, NOTIFY + 1)
    define(function, CapType.NOTIFY_CFG, LENGTH, NOTIFY_LENGTH - 1)


@on_pci(
    Function._define_capabilities,
    "4.1.4.4.1-D-08a",
    text="with NOTIFICATION_DATA, there are 2 bytes for notifications",
    unusable=True,
)
def notifications_with_data_in_2_bytes(original: Original, function: Function) -> None:
    original(function)
    define(function, CapType.NOTIFY_CFG, LENGTH, 2)


@on_pci(
    Function._define_capabilities,
    "4.1.4.4.1-D-08b",
    "4.1.4.4.1-D-09",
    text="with NOTIFICATION_DATA, there is room for the notifications of one queue",
)
def notifications_with_data_of_one_queue(original: Original, function: Function) -> None:
    original(function)
    define(function, CapType.NOTIFY_CFG, LENGTH, 4)


@on_pci(
    Function._common_registers,
    "4.1.4.4.1-D-08b",
    "4.1.4.4.1-D-09",
    text="the notifications of the administration virtqueue are behind the structure",
)
def administration_notifies_behind_the_structure(
    original: Original, function: Function
) -> dict[str, Register]:
    def away(offset: int) -> int:
        return (
            2 * NOTIFY_LENGTH if function._queue_select >= function.device.block.queues else offset
        )

    return changed(original(function), "queue_notify_off", away)


# --- the common configuration (4.1.4.3)


@on_pci(
    Function.write_status,
    "4.1.4.3.1-D-07",
    "2.4.1-D-01",
    text="after the reset of a running device its status keeps ACKNOWLEDGE",
)
def status_kept_by_a_reset(original: Original, function: Function, value: int) -> None:
    running = function.device.status & DeviceStatus.DRIVER_OK
    original(function, value)
    if running and value == 0:
        function.device.status = DeviceStatus.ACKNOWLEDGE


@on_pci(Function._common_registers, "4.1.4.3.1-D-09", text="queue_reset reads 1 after a reset")
def queue_reset_set_by_a_reset(original: Original, function: Function) -> dict[str, Register]:
    return changed(
        original(function), "queue_reset", lambda value: int(not function.device.status) or value
    )


@on_pci(
    Function._common_registers,
    "4.1.4.3.1-D-10",
    text="queue_reset reads 1 while a queue is enabled",
)
def queue_reset_follows_queue_enable(original: Original, function: Function) -> dict[str, Register]:
    registers = dict(original(function))
    return changed(registers, "queue_reset", lambda _: registers["queue_enable"].read())


@on_pci(
    Function._common_registers, "4.1.4.3.1-D-15", text="queue_size is one less than a power of 2"
)
def queue_size_one_less(original: Original, function: Function) -> dict[str, Register]:
    return changed(original(function), "queue_size", lambda size: max(size - 1, 0))


@on_pci(
    Owner._admin_queues,
    "4.1.4.3.1-D-16a",
    text="the administration virtqueue is the last one of the block device",
)
def administration_among_the_others(original: Original, owner: Owner) -> tuple[int, int]:
    first, count = original(owner)
    return first - 1, count


@on_pci(Owner._admin_queues, "4.1.4.3.1-D-16b", text="there are 65535 administration virtqueues")
def administration_beyond_16_bits(original: Original, owner: Owner) -> tuple[int, int]:
    first, _ = original(owner)
    return first + 1, 0xFFFF


@on_pci(
    Function._write_queue_reset,
    "4.1.4.3.1-D-12",
    text="queue_reset reads 0 while the queue still runs",
)
def queue_reset_only_shown(original: Original, function: Function, value: int) -> None:
    if found := function._queue():
        found[0].enabled = False


@on_pci(
    Function._config_bytes, "4.1.3.2-D-01", text="the upper half of capacity, read alone, reads 0"
)
def upper_half_of_capacity_reads_0(
    original: Original, function: Function, offset: int, length: int
) -> bytes:
    return bytes(length) if offset == 4 else bytes(original(function, offset, length))


# --- shared memory and vendor data (4.1.4.7, 4.1.4.8)


def add_region(function: Function, ident: int, offset: int, length: int) -> None:
    """Add the capability of a shared memory region in the BAR of the registers."""
    kind, bar = CapType.SHARED_MEMORY_CFG, REGISTER_BAR
    whole = CAP.pack(CAP_VENDOR, 0, CAP.size + 8, kind, bar, ident, offset, length) + bytes(8)
    function.space.add_capability(CAP_VENDOR, whole[2:])


def add_vendor_data(function: Function, vendor: int, length: int) -> int:
    """Add a vendor data capability of `length` bytes. Return its place."""
    body = bytes([length, CapType.VENDOR_CFG]) + vendor.to_bytes(2, "little")
    return function.space.add_capability(CAP_VENDOR, body.ljust(length - 2, b"\x5a"))


@on_pci(
    Function._define_capabilities,
    "4.1.4.7.1-D-02",
    text="two shared memory regions have the same id",
)
def shared_memory_with_one_id(original: Original, function: Function) -> None:
    original(function)
    add_region(function, 7, NOTIFY + 0x800, 16)
    # There is no room behind it. A PCI Express capability of version 1 ends here.
    express = function._express_control - 8
    function.space.define(express + 2, b"\1")
    function.space._end = express + EXPRESS_1_SIZE
    add_region(function, 7, NOTIFY + 0x900, 16)


@on_pci(
    Function._define_capabilities,
    "4.1.4.7.1-D-01",
    text="a shared memory region ends behind its BAR",
)
def shared_memory_behind_its_bar(original: Original, function: Function) -> None:
    original(function)
    add_region(function, 7, NOTIFY, 0x10_0000)


@on_pci(
    Function._define_capabilities, "4.1.4.8.1-D-01", text="vendor data has the vendor id of virtio"
)
def vendor_data_of_virtio_itself(original: Original, function: Function) -> None:
    original(function)
    add_vendor_data(function, VENDOR_ID, 8)


@on_pci(Function._define_capabilities, "4.1.4.8.1-D-02", text="vendor data has 10 bytes")
def vendor_data_of_10_bytes(original: Original, function: Function) -> None:
    original(function)
    add_vendor_data(function, OTHER_VENDOR, 10)


@on_pci(
    Function._config_read,
    "4.1.4.8-T-01",
    "4.1.4.8.1-D-03",
    text="vendor data counts how often it is read",
)
def vendor_data_counts_reads(
    original: Original, function: Function, offset: int, length: int
) -> bytes:
    space = function.space
    if not any(
        space.field(at, 1) == CAP_VENDOR and space.field(at + TYPE, 1) == CapType.VENDOR_CFG
        for at in range(HEADER_SIZE, 0x100, 4)
    ):
        add_vendor_data(function, OTHER_VENDOR, 8)
    at = capability(function, CapType.VENDOR_CFG) + 6
    if offset <= at < offset + length:
        space.define(at, bytes([space.field(at, 1) + 1 & 0xFF]))
    return bytes(original(function, offset, length))


# --- the legacy interface (4.1.4.10)


@on_pci(
    ConfigSpace.define_bar,
    "4.1.4.10-L-01",
    "4.1.5.1.1.1-L-01",
    text="the legacy registers are in a memory BAR",
    target=LEGACY_TARGET,
)
def legacy_registers_in_memory(
    original: Original, space: ConfigSpace, number: int, size: int, kind: int
) -> None:
    original(space, number, size, 0 if number == LEGACY_BAR else kind)


@on_pci(
    Function._legacy_write,
    "4.1.4.10-L-03b",
    text="a write of two bytes to the device configuration is lost",
    target=LEGACY_TARGET,
)
def legacy_configuration_written_by_bytes_only(
    original: Original, function: Function, offset: int, data: bytes
) -> None:
    if offset < function._legacy_config or len(data) == 1:
        original(function, offset, data)


@on_pci(
    Function._legacy_read,
    "4.1.4.10-L-03b",
    text="a read of four bytes of the device configuration ends after two",
    target=LEGACY_TARGET,
)
def legacy_configuration_read_by_two_bytes(
    original: Original, function: Function, offset: int, length: int
) -> bytes:
    data = bytes(original(function, offset, length))
    return data if offset < function._legacy_config else data[:2].ljust(length, b"\0")


@on_pci(
    Function._legacy_read,
    "4.1.4.10-L-05",
    text="with MSI-X the device configuration stays where it was",
    target=LEGACY_TARGET,
)
def legacy_configuration_stays(
    original: Original, function: Function, offset: int, length: int
) -> bytes:
    moved = function.interrupts.messages_enabled and offset >= LEGACY_CONFIG_MSIX
    return bytes(original(function, offset + 4 if moved else offset, length))


@on_pci(
    Function._write_legacy_features,
    "4.1.4.10-L-06",
    text="a legacy driver gets packed virtqueues",
    target=LEGACY_TARGET,
)
def legacy_driver_gets_packed_virtqueues(
    original: Original, function: Function, value: int
) -> None:
    packed = function.device.offered() & Feature.RING_PACKED.mask
    function._driver_feature = {0: value}
    function.device.choose(value & ~Feature.ANY_LAYOUT.mask | packed, legacy=True)


# --- several notification structures (4.1.4)


@on_pci(
    Function.bar_write,
    "4.1.4-P-02",
    text="of two notification structures the second takes no notification",
)
def second_notification_structure_is_dead(
    original: Original, function: Function, bar: int, offset: int, data: bytes
) -> None:
    if not (function._has_port and bar == REGISTER_BAR and offset >= NOTIFY):
        original(function, bar, offset, data)


# --- MSI-X (4.1.5.1.2)


# It is also a whim, for drivers that have to live with it.
on_pci(Interrupts.__init__, "4.1.5.1.2.1-D-01", text="MSI-X has one vector")(one_vector)


@on_pci(
    Function._vector, "4.1.5.1.2.1-D-02", text="MSI-X reports one vector more than can be mapped"
)
def a_vector_too_many(original: Original, function: Function, value: int) -> int:
    return NO_VECTOR if value == function.interrupts.vectors - 1 else int(original(function, value))


@on_pci(
    Function._write_queue_vector,
    "4.1.5.1.2.1-D-08",
    text="a queue cannot have the vector of configuration changes",
)
def vectors_not_shared(original: Original, function: Function, value: int) -> None:
    original(function, NO_VECTOR if value == function._config_vector else value)
