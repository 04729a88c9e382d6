"""A driver without a device: memory, and values that a test sets."""

from __future__ import annotations

import os
from typing import Any

from harness.driver.errors import DeviceTimeoutError
from harness.driver.interface import Completion, ConfigChange, Driver, Request


class FakeDriver(Driver):
    """Driver that records its calls; `interrupt` makes its file descriptor readable."""

    def __init__(self, kind: str, address: str, timeout: float) -> None:
        self.attached = (kind, address, timeout)
        self.memory = bytearray(1 << 20)
        self.calls: list[tuple[Any, ...]] = []
        self.changes: list[ConfigChange] = []
        self.closed = 0
        self.serviced_badly = False
        self._read_end, self._write_end = os.pipe()

    def fileno(self) -> int | None:
        return self._read_end

    def interrupt(self) -> None:
        os.write(self._write_end, b"!")

    def service(self) -> None:
        os.read(self._read_end, 1)
        if self.serviced_badly:
            raise ValueError("ISR is gone")
        self.changes.append(ConfigChange(capacity=8, generation=len(self.changes)))

    def description(self) -> dict[str, Any]:
        return {"attached": self.attached}

    def config_changes(self) -> list[ConfigChange]:
        return self.changes

    def memory_read(self, address: int, length: int) -> bytes:
        return bytes(self.memory[address : address + length])

    def memory_write(self, address: int, data: bytes) -> None:
        self.memory[address : address + len(data)] = data

    def request(self, request: Request, queue: int = 0, timeout: float = 10.0) -> Completion:
        self.calls.append((request, queue, timeout))
        return Completion(status=0, used_len=1, data=request.data, damage=("guard",))

    def reset(self, timeout: float = 5.0) -> None:
        raise DeviceTimeoutError("status stays 4", {"status": 4, "queues": [1, 2]})

    def status(self) -> int:
        raise ZeroDivisionError("a bug")

    def close(self) -> None:
        self.closed += 1
        os.close(self._read_end)
        os.close(self._write_end)


def _absent(self: Driver, *args: object, **kwargs: object) -> None:
    raise NotImplementedError


for _name in FakeDriver.__abstractmethods__:
    setattr(FakeDriver, _name, _absent)
FakeDriver.__abstractmethods__ = frozenset()


def make_driver(kind: str, address: str, timeout: float) -> Driver:
    return FakeDriver(kind, address, timeout)
