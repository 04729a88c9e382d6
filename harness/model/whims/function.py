"""Whims of the PCI function (virtio 4.1.2, 4.1.4, 4.1.5.1)."""

from __future__ import annotations

import time
from collections.abc import Callable

from harness.model.pci.function import COMMON_LENGTH, REGISTER_BAR, Function
from harness.model.pci.interrupts import Interrupts
from harness.model.pci.space import EXPRESS_SIZE, ConfigSpace
from harness.model.whims.registry import PCI, Original, also, whim
from harness.virtio.pci import CAP, CAP_EXPRESS, CAP_VENDOR, ISR_QUEUE, REVISION, CapType

RESET_TIME = 0.03


def _taken(function: Function) -> dict[int, int]:
    """Return the vectors of the virtqueues that are enabled, by index."""
    taken: dict[int, int] = vars(function).setdefault("taken_vectors", {})
    return taken


@whim(
    Function._write_queue_enable,
    text="a virtqueue keeps the MSI-X vector that it has when it is enabled",
    ways=(PCI,),
)
def vector_taken_at_enable(original: Original, function: Function, value: int) -> None:
    original(function, value)
    if (found := function._queue()) and value == 1:
        _taken(function).setdefault(function._queue_select, found[1].vector)


@also("vector-taken-at-enable", Function._write_queue_reset)
def _forgets_at_queue_reset(original: Original, function: Function, value: int) -> None:
    original(function, value)
    if (found := function._queue()) and not found[0].enabled:
        _taken(function).pop(function._queue_select, None)


@also("vector-taken-at-enable", Function._reset_registers)
def _forgets_at_reset(original: Original, function: Function) -> None:
    _taken(function).clear()
    original(function)


@also("vector-taken-at-enable", Function._queue_signal)
def _signals_by_the_taken(original: Original, function: Function, index: int) -> Callable[[], None]:
    del original

    def signal() -> None:
        # The legacy interface has no queue_enable, and its vectors are mapped at any time.
        now = function._queue_registers[index].vector
        function.interrupts.raise_interrupt(_taken(function).get(index, now), ISR_QUEUE)

    return signal


@whim(
    Function.write_status,
    text="device_status reads 0 only 30 ms after a 0 was written to it",
    ways=(PCI,),
)
def slow_function_reset(original: Original, function: Function, value: int) -> None:
    state = vars(function)
    # A driver does not wait if device_status reads 0 already.
    if value or not function.device.status:
        original(function, value)
        return
    if state.get("resetting"):
        return
    state["resetting"] = True

    def finish() -> None:
        state["resetting"] = False
        original(function, 0)

    function.device.queues[0]._loop.at(time.monotonic() + RESET_TIME, finish)


# --- capabilities and vectors

RESERVED_TYPE, RESERVED_BAR = 0x20, 7
VENDOR_DATA = bytes([12, CapType.VENDOR_CFG]) + (0x1B36).to_bytes(2, "little") + b"vendor"
"""A capability with vendor data, from cap_len on: the vendor id of QEMU, and 6 bytes."""

MORE = 4
"""Bytes by which each virtio capability is longer than specified."""

REPEATED = 0x800
"""Offset in the BAR at which the common configuration is found a second time."""


@whim(
    Function._define_capabilities,
    text="the list has a capability with vendor data, and two of the common configuration",
    ways=(PCI,),
)
def odd_capabilities(original: Original, function: Function) -> None:
    function.space.add_capability(CAP_VENDOR, VENDOR_DATA)
    _define_with_room(original, function)
    _add_structure(function.space, CapType.COMMON_CFG, REGISTER_BAR, REPEATED)


@whim(
    Function._define_capabilities,
    text="the list has a virtio capability of a reserved type",
    ways=(PCI,),
)
def reserved_type(original: Original, function: Function) -> None:
    _add_structure(function.space, RESERVED_TYPE, REGISTER_BAR, 0)
    _define_with_room(original, function)


@whim(
    Function._define_capabilities,
    text="the list has a capability of the common configuration in a reserved BAR",
    ways=(PCI,),
)
def reserved_bar(original: Original, function: Function) -> None:
    _add_structure(function.space, CapType.COMMON_CFG, RESERVED_BAR, 0)
    _define_with_room(original, function)


@whim(
    Function._define_capabilities,
    text="each virtio capability is 4 bytes longer than specified",
    ways=(PCI,),
)
def longer_capabilities(original: Original, function: Function) -> None:
    _define_with_room(original, function, MORE)


def _define_with_room(original: Original, function: Function, longer: int = 0) -> None:
    """Define the capabilities without PCI Express, and virtio capabilities with more bytes."""
    space = function.space
    add = space.add_capability

    def changed(ident: int, body: bytes, writable: bytes = b"") -> int:
        if ident == CAP_EXPRESS:
            return EXPRESS_SIZE
        if ident == CAP_VENDOR:
            body = bytes([body[0] + longer]) + body[1:] + bytes(longer)
        return add(ident, body, writable)

    vars(space)["add_capability"] = changed
    original(function)
    del vars(space)["add_capability"]


def _add_structure(space: ConfigSpace, kind: int, bar: int, offset: int) -> None:
    whole = CAP.pack(CAP_VENDOR, 0, CAP.size, kind, bar, 0, offset, COMMON_LENGTH)
    space.add_capability(CAP_VENDOR, whole[2:])


@whim(
    Function._define_structure,
    text="the common, the device and the ISR structure are 64 bytes longer than defined",
    ways=(PCI,),
)
def longer_structures(
    original: Original,
    function: Function,
    kind: CapType,
    bar: int,
    offset: int,
    length: int,
    more: bytes = b"",
) -> int:
    if kind in (CapType.COMMON_CFG, CapType.DEVICE_CFG, CapType.ISR_CFG):
        length += 0x40
    return int(original(function, kind, bar, offset, length, more))


def _repeated(bar: int, offset: int) -> bool:
    return bar == REGISTER_BAR and REPEATED <= offset < REPEATED + COMMON_LENGTH


@also("odd-capabilities", Function._bar_read)
def _reads_the_repeated(
    original: Original, function: Function, bar: int, offset: int, length: int
) -> bytes:
    if _repeated(bar, offset):
        return function._common.read(offset - REPEATED, length)
    return bytes(original(function, bar, offset, length))


@also("odd-capabilities", Function.bar_write)
def _writes_the_repeated(
    original: Original, function: Function, bar: int, offset: int, data: bytes
) -> None:
    original(function, bar, offset, data)
    if _repeated(bar, offset):
        function._common.write(offset - REPEATED, data)


@whim(Function._define_header, text="the PCI revision is 7, if a driver may ignore it", ways=(PCI,))
def other_revision(original: Original, function: Function) -> None:
    original(function)
    if function.layout == "modern":
        function.space.define(REVISION, b"\7")


@whim(
    Interrupts.__init__,
    text="there is one MSI-X vector for all events",
    breaks=("4.1.5.1.2.1-D-01",),
    ways=(PCI,),
)
def one_vector(
    original: Original,
    interrupts: Interrupts,
    space: ConfigSpace,
    bar: int,
    vectors: int,
    send_message: Callable[[int], None],
    send_line: Callable[[], None],
) -> None:
    original(interrupts, space, bar, 1, send_message, send_line)
