"""An interrupt line that other devices also raise, as uio_pci_generic counts it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from harness.driver.bus import linux_pci
from harness.driver.bus.linux_pci import LinuxPci


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[LinuxPci, Callable[[], int]]]:
    """A function without a device, and a callable that increments the kernel's count."""
    reading, writing = os.pipe()
    function = object.__new__(LinuxPci)
    function._uio, function._masked, function._owed = reading, False, False
    monkeypatch.setattr(linux_pci, "change_command", lambda *_, **__: None)
    yield function, lambda: os.write(writing, b"\1\0\0\0")
    os.close(reading)
    os.close(writing)


def test_the_line_is_raised_once_until_it_is_unmasked(
    line: tuple[LinuxPci, Callable[[], int]],
) -> None:
    function, count = line
    count()
    assert function.take_interrupts(0) == 1

    count()  # another device's interrupt, while ours is pending
    assert function.take_interrupts(0) == 0
    count()
    function.unmask_interrupts()
    assert function.take_interrupts(0) == 0

    count()
    assert function.take_interrupts(0) == 1


def test_an_interrupt_whose_cause_was_read_first_is_still_reported(
    line: tuple[LinuxPci, Callable[[], int]],
) -> None:
    function, count = line
    count()
    function.unmask_interrupts()

    assert function.take_interrupts(0) == 1
    assert function.take_interrupts(0) == 0
