"""Whims of the PCI function (virtio 4.1.4.3, 4.1.5.1)."""

from __future__ import annotations

import time
from collections.abc import Callable

from harness.model.pci.function import Function
from harness.model.whims.registry import PCI, Original, also, whim
from harness.virtio.pci import ISR_QUEUE

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
