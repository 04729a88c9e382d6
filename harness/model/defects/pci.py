"""Defects of the PCI function: identity, registers, window, interrupts, resets (virtio 4.1)."""

from __future__ import annotations

from harness.model.defects.registry import Original, during, on_pci
from harness.model.device import Device
from harness.model.pci.common import QueueRegisters
from harness.model.pci.function import Function
from harness.model.pci.interrupts import PENDING, Interrupts
from harness.model.queue import Queue
from harness.virtio.device import DeviceStatus
from harness.virtio.pci import (
    COMMAND,
    COMMAND_INTX_DISABLE,
    COMMAND_MASTER,
    ISR_CONFIG,
    ISR_QUEUE,
    MSIX_ENTRY,
    NO_VECTOR,
    REVISION,
    STATUS,
    STATUS_INTERRUPT,
    SUBSYSTEM,
    CapType,
)

# --- PCI itself (4.1.1)


@on_pci(Interrupts._masked, "4.1.1-D-01", text="the mask bits of vectors are ignored")
def vector_masks_ignored(original: Original, interrupts: Interrupts, vector: int) -> bool:
    with during(interrupts, _table_written=False):
        return bool(original(interrupts, vector))


@on_pci(Interrupts._masked, "4.1.1-D-01", text="the function mask of MSI-X is ignored")
def function_mask_ignored(original: Original, interrupts: Interrupts, vector: int) -> bool:
    control = interrupts._table[MSIX_ENTRY.size * (vector + 1) - 4]
    return interrupts._table_written and bool(control & 1)


@on_pci(Interrupts.read_bar, "4.1.1-D-01", text="the pending bits of MSI-X always read 0")
def pending_bits_not_shown(
    original: Original, interrupts: Interrupts, offset: int, length: int
) -> bytes:
    data = bytes(original(interrupts, offset, length))
    return bytes(length) if offset >= PENDING else data


@on_pci(
    Interrupts.raise_interrupt, "4.1.1-D-01", text="an interrupt of a masked vector is forgotten"
)
def masked_interrupts_forgotten(
    original: Original, interrupts: Interrupts, vector: int, cause: int
) -> None:
    original(interrupts, vector, cause)
    interrupts._pending = 0


@on_pci(Interrupts.write_bar, "4.1.1-D-01", text="writes to the MSI-X table go a vector too far")
def mask_of_the_next_vector(
    original: Original, interrupts: Interrupts, offset: int, data: bytes
) -> None:
    original(interrupts, offset + MSIX_ENTRY.size, data)


@on_pci(Interrupts.update_line, "4.1.1-D-01", text="Interrupt Disable is ignored")
def interrupt_disable_ignored(original: Original, interrupts: Interrupts) -> None:
    space = interrupts._space
    disabled = space.field(COMMAND, 2) & COMMAND_INTX_DISABLE
    space.change(COMMAND + 1, COMMAND_INTX_DISABLE >> 8, value=False)
    original(interrupts)
    space.change(COMMAND + 1, COMMAND_INTX_DISABLE >> 8, value=bool(disabled))


@on_pci(Function.serves, "4.1.1-D-01", text="memory is accessed without bus mastering")
def bus_mastering_ignored(original: Original, function: Function, queue: Queue) -> bool:
    command = function.space.field(COMMAND, 2)
    function.space.change(COMMAND, COMMAND_MASTER, value=True)
    serves = bool(original(function, queue))
    function.space.change(COMMAND, COMMAND_MASTER, value=bool(command & COMMAND_MASTER))
    return serves


@on_pci(Function.reset, "4.1.1-D-01", text="a function level reset does nothing")
def function_level_reset_ignored(original: Original, function: Function) -> None:
    # The reset of the client, at its end, is the same function: only a running device stays.
    if not function.device.status & DeviceStatus.DRIVER_OK:
        original(function)


@on_pci(Function.config_write, "4.1.1-D-01", text="after the power state D3 a register is lost")
def status_lost_in_d3(original: Original, function: Function, offset: int, data: bytes) -> None:
    powered = function._powered
    original(function, offset, data)
    if powered and not function._powered:
        function.write_status(0)


@on_pci(
    Function.reset, "2.4-P-05", text="requests in flight continue after a reset of the function"
)
def function_reset_leaves_requests_running(original: Original, function: Function) -> None:
    running = [
        (queue, [job for job in queue._jobs if not job.done])
        for queue in function.device.queues
        if queue.ring
    ]
    original(function)
    for queue, jobs in running:
        queue._jobs += jobs


@on_pci(Function.reset, "2.4-P-05", text="a reset of the function keeps the vectors")
def function_reset_keeps_vectors(original: Original, function: Function) -> None:
    vector = function._config_vector
    original(function)
    function._config_vector = 0 if vector == NO_VECTOR else vector


@on_pci(Function.config_write, "4.1.1-D-01", text="in the power state D3 vectors are unmapped")
def vectors_lost_in_d3(original: Original, function: Function, offset: int, data: bytes) -> None:
    powered = function._powered
    original(function, offset, data)
    if powered and not function._powered:
        function._config_vector = NO_VECTOR


# --- identity (4.1.2.1)


@on_pci(Function._define_header, "4.1.2.1-D-05", text="the PCI revision is 0")
def revision_of_a_transitional_function(original: Original, function: Function) -> None:
    original(function)
    function.space.define(REVISION, b"\0")


@on_pci(Function._define_header, "4.1.2.1-D-06", text="the PCI subsystem id is 2")
def subsystem_of_a_transitional_function(original: Original, function: Function) -> None:
    original(function)
    function.space.define(SUBSYSTEM, b"\2\0")


# --- the common configuration (4.1.4.3)


@on_pci(
    Function._device_feature,
    "4.1.4.3.1-D-03",
    text="device_feature_select counts modulo 2",
)
def features_repeat_themselves(original: Original, function: Function) -> int:
    with during(function, _device_feature_select=function._device_feature_select % 2):
        return int(original(function))


@on_pci(
    Function._write_driver_feature,
    "4.1.4.3.1-D-04",
    text="driver_feature keeps the first word that was written alone",
)
def second_feature_word_lost(original: Original, function: Function, value: int) -> None:
    original(function, value)
    if function._driver_feature_select == 1:
        vars(function)["_driver_feature"] = FirstWordShown(function._driver_feature)


class FirstWordShown(dict[int, int]):
    """Driver features whose second word reads 0, though it counts."""

    def get(self, key: int, default: int = 0) -> int:  # type: ignore[override]
        """Return a word as the register shows it."""
        return 0 if key == 1 else super().get(key, default)


@on_pci(
    Device.read_generation,
    "4.1.4.3.1-D-06",
    text="the configuration generation is 0 for ever",
)
def generation_stays(original: Original, device: Device) -> int:
    original(device)
    return 0


@on_pci(Function._write_queue_reset, "4.1.4.3.1-D-11", text="a write to queue_reset is ignored")
def reset_of_a_queue_ignored(original: Original, function: Function, value: int) -> None:
    pass


@on_pci(
    Function._write_queue_reset,
    "4.1.4.3.1-D-13",
    text="queue_enable stays 1 when the reset of a queue is done",
)
def queue_enabled_after_its_reset(original: Original, function: Function, value: int) -> None:
    original(function, value)
    if value == 1 and function._queue_select < len(function.device.queues):
        function.device.queues[function._queue_select].enabled = True


@on_pci(Function._selected, "4.1.4.3.1-D-14", text="a queue that does not exist has a size")
def absent_queue_has_a_size(
    original: Original, function: Function, read: object, absent: int = 0
) -> int:
    if not function._available(function._queue_select):
        return absent or 8
    return int(original(function, read, absent))


# --- ISR status (4.1.4.5)


@on_pci(Interrupts.read_isr, "4.1.4.5.1-D-05", text="reading ISR status leaves it as it is")
def isr_stays(original: Original, interrupts: Interrupts) -> int:
    isr = interrupts.isr
    original(interrupts)
    interrupts.isr = isr
    return isr


@on_pci(
    Interrupts.raise_interrupt,
    "4.1.4.5.1-D-03",
    text="without MSI-X a completion sets no bit of ISR status",
)
def queue_bit_missing(original: Original, interrupts: Interrupts, vector: int, cause: int) -> None:
    original(interrupts, vector, cause)
    interrupts.isr &= ~ISR_QUEUE


@on_pci(
    Interrupts.raise_interrupt,
    "4.1.4.5.1-D-02",
    text="a configuration change sets no bit of ISR status",
)
def configuration_bit_missing(
    original: Original, interrupts: Interrupts, vector: int, cause: int
) -> None:
    original(interrupts, vector, cause)
    interrupts.isr &= ~ISR_CONFIG


@on_pci(Interrupts.update_line, "4.1.4.5.1-D-04", text="Interrupt Status of PCI is always 0")
def interrupt_status_missing(original: Original, interrupts: Interrupts) -> None:
    original(interrupts)
    interrupts._space.change(STATUS, STATUS_INTERRUPT, value=False)


# --- the window (4.1.4.9)


@on_pci(Function._define_structure, "4.1.4.9.1-D-01", text="there is no window to the BARs")
def no_window(
    original: Original,
    function: Function,
    kind: CapType,
    bar: int,
    offset: int,
    length: int,
    more: bytes = b"",
) -> int:
    kind = CapType.VENDOR_CFG if kind == CapType.PCI_CFG else kind
    return int(original(function, kind, bar, offset, length, more))


@on_pci(
    Function._window_access,
    "4.1.4.9.1-D-02",
    "4.1.4.9.1-D-03",
    text="the window accesses nothing",
)
def dead_window(original: Original, function: Function) -> None:
    return None


# --- MSI-X vectors (4.1.5.1.2, 4.1.5.3, 4.1.5.4)


@on_pci(
    Interrupts.raise_interrupt,
    "4.1.5.1.2.1-D-04",
    text="every message goes to the vector of configuration changes",
)
def messages_go_to_one_vector(
    original: Original, interrupts: Interrupts, vector: int, cause: int
) -> None:
    original(interrupts, vector if vector == NO_VECTOR else 0, cause)


@on_pci(Function._vector, "4.1.5.1.2.1-D-05", text="NO_VECTOR is taken for the last vector")
def nothing_is_unmapped(original: Original, function: Function, value: int) -> int:
    return function.interrupts.vectors - 1 if value == NO_VECTOR else int(original(function, value))


@on_pci(Function._vector, "4.1.5.1.2.1-D-06", text="vector registers show one vector less")
def other_vectors_shown(original: Original, function: Function, value: int) -> int:
    vector = int(original(function, value))
    return vector - 1 if 0 < vector < NO_VECTOR else vector


@on_pci(Function._vector, "4.1.5.1.2.1-D-09", text="a vector that does not exist is mapped")
def absent_vectors_mapped(original: Original, function: Function, value: int) -> int:
    return value


@on_pci(
    Function._reset_registers,
    "4.1.5.1.2.1-D-07",
    text="queues stay mapped over a reset",
)
def vectors_mapped_after_reset(original: Original, function: Function) -> None:
    before = vars(function).get("_queue_registers", [])
    original(function)
    for index, old in enumerate(before):
        function._queue_registers[index] = QueueRegisters(vector=old.vector)


@on_pci(
    Interrupts.raise_interrupt,
    "4.1.5.3.1-D-01",
    "4.1.5.4.1-D-01",
    text="an event without a vector interrupts with the first one",
)
def unmapped_events_interrupt(
    original: Original, interrupts: Interrupts, vector: int, cause: int
) -> None:
    original(interrupts, 0 if vector == NO_VECTOR else vector, cause)
