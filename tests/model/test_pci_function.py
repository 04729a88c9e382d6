"""The model as a PCI function: registers, interrupts and resets, over vfio-user."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from harness.diskspec import DiskSpec
from harness.driver.block import BlockDriver
from harness.driver.bus.msix import msix_table
from harness.driver.bus.vfio_user import VfioUser
from harness.driver.interface import Request
from harness.driver.transport.pci import PciModern
from harness.targets.model import ModelProcess
from harness.virtio.blk import RequestType, Status
from harness.virtio.device import DeviceStatus
from harness.virtio.pci import (
    CAP_EXPRESS,
    CAP_POWER,
    CAPABILITIES,
    COMMAND,
    COMMAND_INTX_DISABLE,
    COMMAND_MASTER,
    EXPRESS_RESET,
    MSIX_ENABLE,
    MSIX_ENTRY,
    MSIX_FUNCTION_MASK,
    NO_VECTOR,
    STATUS,
    STATUS_INTERRUPT,
)
from harness.virtio.vfio_user import ACCESS, Command

READ = Request(RequestType.IN, 0, receive=512)
Attach = Callable[..., tuple[VfioUser, BlockDriver]]


@pytest.fixture
def attach(model: ModelProcess) -> Iterator[Attach]:
    """Make a disk of the model and attach a driver to its function."""
    drivers: list[BlockDriver] = []

    def make(**fields: object) -> tuple[VfioUser, BlockDriver]:
        _, path, _ = model.add(DiskSpec(capacity=64, **fields), "pci")  # type: ignore[arg-type]
        bus = VfioUser(str(path))
        drivers.append(BlockDriver(PciModern(bus)))
        return bus, drivers[-1]

    yield make
    for driver in drivers:
        driver.close()


def capability(bus: VfioUser, ident: int) -> int:
    """Return the offset of a capability."""
    at = bus.pci_read(CAPABILITIES, 1)[0]
    while at:
        kind, following = bus.pci_read(at, 2)
        if kind == ident:
            return at
        at = following
    raise AssertionError(f"no capability {ident:#x}")


def interrupt_status(bus: VfioUser) -> bool:
    """Return the Interrupt Status bit of configuration space."""
    return bool(bus.pci_read(STATUS, 1)[0] & STATUS_INTERRUPT)


def start_with_messages(attach: Attach) -> tuple[VfioUser, BlockDriver]:
    """Attach a driver that uses two MSI-X vectors."""
    bus, driver = attach()
    driver.use_msix(2)
    driver.start()
    return bus, driver


def test_a_masked_vector_is_pending_until_it_is_unmasked(attach: Attach) -> None:
    bus, driver = start_with_messages(attach)
    table = msix_table(bus)
    control = table.offset + MSIX_ENTRY.size + 12
    bus.bar_write(table.bar, control, 4, 1)

    assert driver.request(READ).status == Status.OK
    while_masked = bus.take_messages(0.05)
    pending = bus.bar_read(table.bar, 0x800, 4)
    bus.bar_write(table.bar, control, 4, 0)

    assert while_masked.total() == 0
    assert pending == 0b10
    assert bus.take_messages(60.0)[1] == 1
    assert bus.bar_read(table.bar, 0x800, 4) == 0


def test_the_function_mask_masks_every_vector(attach: Attach) -> None:
    bus, driver = start_with_messages(attach)
    control = msix_table(bus).control
    masked = MSIX_ENABLE | MSIX_FUNCTION_MASK
    bus.pci_write(control, masked.to_bytes(2, "little"))

    assert driver.request(READ).status == Status.OK
    while_masked = bus.take_messages(0.05)
    bus.pci_write(control, MSIX_ENABLE.to_bytes(2, "little"))

    assert while_masked.total() == 0
    assert bus.take_messages(60.0).total() == 1


def test_without_bus_mastering_there_is_no_message_and_no_memory_access(attach: Attach) -> None:
    bus, driver = start_with_messages(attach)
    command = int.from_bytes(bus.pci_read(COMMAND, 2), "little")
    bus.pci_write(COMMAND, (command & ~COMMAND_MASTER).to_bytes(2, "little"))
    (token,) = driver.submit([READ])

    assert driver.completed() == []
    bus.pci_write(COMMAND, command.to_bytes(2, "little"))

    (completion,) = driver.complete([token])
    assert completion.status == Status.OK


def test_interrupt_status_is_shown_until_isr_is_read(attach: Attach) -> None:
    bus, driver = attach()
    driver.start()
    driver.service_interrupts(False)

    before = interrupt_status(bus)
    assert driver.request(READ).status == Status.OK
    during = interrupt_status(bus)
    assert driver.isr() == 1

    assert (before, during, interrupt_status(bus)) == (False, True, False)


def test_a_disabled_line_shows_its_status_and_interrupts_when_enabled(attach: Attach) -> None:
    bus, driver = attach()
    driver.start()
    driver.service_interrupts(False)
    command = int.from_bytes(bus.pci_read(COMMAND, 2), "little")
    bus.pci_write(COMMAND, (command | COMMAND_INTX_DISABLE).to_bytes(2, "little"))
    assert driver.request(READ).status == Status.OK

    while_disabled = bus.take_interrupts(0.05)
    shown = interrupt_status(bus)
    bus.pci_write(COMMAND, command.to_bytes(2, "little"))

    assert (while_disabled, shown) == (0, True)
    assert bus.take_interrupts(60.0) == 1


def test_a_function_level_reset_forgets_everything(attach: Attach) -> None:
    bus, driver = start_with_messages(attach)
    at = capability(bus, CAP_EXPRESS) + 8
    bus.pci_write(at, EXPRESS_RESET.to_bytes(2, "little"))

    assert driver.status() == 0
    assert bus.pci_read(COMMAND, 2) == bytes(2)
    assert driver.register_read("config_msix_vector") == NO_VECTOR
    assert driver.register_read("queue_enable") == 0
    assert bus.pci_read(msix_table(bus).control, 2) == (1).to_bytes(2, "little")


def test_a_function_in_d3_is_silent_and_goes_on_in_d0(attach: Attach) -> None:
    bus, driver = attach()
    driver.start()
    at = capability(bus, CAP_POWER) + 4
    bus.pci_write(at, b"\x03\x00")

    assert driver.register_read("device_status") == 0xFF
    bus.pci_write(at, b"\x00\x00")

    assert driver.status() & DeviceStatus.DRIVER_OK
    assert driver.request(READ).status == Status.OK


@pytest.mark.parametrize("width", [1, 2, 3, 4, 6, 8])
def test_registers_are_read_with_any_width(attach: Attach, width: int) -> None:
    bus, driver = attach()
    whole = bus._access(4, [(0x10, 16, None)])[0]

    pieces = [
        bus._access(4, [(0x10 + at, min(width, 16 - at), None)])[0] for at in range(0, 16, width)
    ]

    assert b"".join(pieces) == whole
    assert driver.register_read("num_queues") == 1


def test_a_register_that_is_written_in_part_keeps_the_rest(attach: Attach) -> None:
    bus, driver = attach()
    driver.register_write("queue_desc", 0x1122334455667788)

    bus._ask(Command.REGION_WRITE, ACCESS.pack(0x21, 4, 3) + b"\xaa\xbb\xcc")

    assert driver.register_read("queue_desc") == 0x11223344CCBBAA88


def test_a_reset_by_the_client_is_one_of_the_bus(attach: Attach) -> None:
    bus, driver = attach()
    driver.start()

    bus.reset()

    assert driver.status() == 0
    assert bus.pci_read(COMMAND, 2) == bytes(2)


def test_notifications_for_other_data_are_ignored(attach: Attach) -> None:
    bus, driver = attach()
    driver.start()
    notify = next(cap for cap in driver.capabilities() if cap.type == 2)

    bus.bar_write(notify.bar, notify.offset, 4, 0xFFFFFFFF)

    assert driver.request(READ).status == Status.OK
