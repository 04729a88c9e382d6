"""Registers as a table of fields: accesses of any width come down to fields."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Register:
    """A field of a structure: offset and width in bytes, and its two accesses.

    `write` is None for a field that is read-only.
    """

    offset: int
    width: int
    read: Callable[[], int]
    write: Callable[[int], None] | None = None


class Registers:
    """A structure of registers. What lies between them reads 0 and ignores writes."""

    def __init__(self, registers: Mapping[str, Register]) -> None:
        self._registers = registers

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes; each register that they touch is read once."""
        data = bytearray(length)
        for register in self._touched(offset, length):
            value = register.read().to_bytes(register.width, "little")
            first = max(offset, register.offset)
            last = min(offset + length, register.offset + register.width)
            data[first - offset : last - offset] = value[
                first - register.offset : last - register.offset
            ]
        return bytes(data)

    def write(self, offset: int, data: bytes) -> None:
        """Write bytes; a register that they cover in part keeps its other bytes."""
        for register in self._touched(offset, len(data)):
            if register.write is None:
                continue
            first = max(offset, register.offset)
            last = min(offset + len(data), register.offset + register.width)
            if last - first == register.width:
                value = bytearray(register.width)
            else:
                value = bytearray(register.read().to_bytes(register.width, "little"))
            value[first - register.offset : last - register.offset] = data[
                first - offset : last - offset
            ]
            register.write(int.from_bytes(value, "little"))

    def _touched(self, offset: int, length: int) -> list[Register]:
        return [
            register
            for register in self._registers.values()
            if register.offset < offset + length and offset < register.offset + register.width
        ]
