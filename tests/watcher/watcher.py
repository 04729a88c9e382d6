"""A process that polls shared memory as fast as possible, for values that must not occur there.

    python watcher.py FD LOOKS CHANGES

The process maps the file FD and reads its rules as JSON from standard input. It reads the memory
at least LOOKS times and until CHANGES values have changed, or until it has seen a bad value. Then
it prints its observations as JSON. `Watcher` starts the process and reads its output.
"""

from __future__ import annotations

import json
import mmap
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

DEADLINE = 1200.0
"""Seconds after which the process ends and prints its observations so far."""

TURN = 2000
"""Reads of one field before the next field is read."""

HALF_ROUND = 0.1
"""Seconds in which no counter advances by 32768. After a longer pause nothing is known of it."""

MOST = 5
"""The most different bad values that are kept for each field."""


@dataclass(frozen=True)
class Rule:
    """Allowed values of a little-endian field.

    `offset` and `width` are in bytes. With `forward` the field is a 16-bit counter that never goes
    back; otherwise it holds one of `values`. With `flags`, an offset, the rule holds only while
    the 16 bits there are one of `available`. With `indices`, two offsets, it holds only while the
    16 bits there differ: a buffer is available and not used yet.
    """

    name: str
    offset: int
    width: int = 2
    values: tuple[int, ...] = ()
    forward: bool = False
    flags: int | None = None
    available: tuple[int, ...] = ()
    indices: tuple[int, int] | None = None


@dataclass
class Seen:
    """The result: number of reads, number of changes, and bad values with their counts."""

    looks: int
    changes: int
    bad: dict[str, dict[str, int]] = field(default_factory=dict)


class Watcher:
    """The process, from its start until `result`."""

    def __init__(self, fd: int, rules: Sequence[Rule], looks: int, changes: int) -> None:
        """Start to watch the file `fd`, and wait until the process reads it."""
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(fd), str(looks), str(changes)],
            pass_fds=[fd],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps([asdict(rule) for rule in rules]))
        self._process.stdin.close()
        if self._process.stdout.readline() != "looking\n":
            self.close()
            raise RuntimeError("the watcher did not start")

    def looking(self) -> bool:
        """Return True while the process runs."""
        return self._process.poll() is None

    def result(self) -> Seen:
        """Wait for the end of the process, and return its observations."""
        assert self._process.stdout
        return Seen(**json.loads(self._process.stdout.read()))

    def close(self) -> None:
        """End the process, if it still runs."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdout
        self._process.stdout.close()


class _Eye:
    """Reads one field, and checks its rule."""

    def __init__(self, rule: Rule, memory: memoryview) -> None:
        self.rule = rule
        self.changes = 0
        self.bad: Counter[int] = Counter()
        letter: Any = {1: "B", 2: "H", 4: "I", 8: "Q"}[rule.width]
        self._field = memory[rule.offset : rule.offset + rule.width].cast(letter)
        halves = memory.cast("H")
        if rule.forward:
            self.look = self._forward
        elif rule.flags is not None:
            self._flags = halves[rule.flags // 2 : rule.flags // 2 + 1]
            self.look = self._while_flagged
        elif rule.indices is not None:
            self._available_index, self._used_index = (
                halves[at // 2 : at // 2 + 1] for at in rule.indices
            )
            self.look = self._while_outstanding
        else:
            self.look = self._any_time
        self.look: Callable[[int], None]
        self._values = frozenset(rule.values)
        self._last = self._field[0]
        self._read = time.monotonic()

    def _note(self, value: int) -> None:
        if value in self.bad or len(self.bad) < MOST:
            self.bad[value] += 1

    def _any_time(self, times: int) -> None:
        field, values, last, changes = self._field, self._values, self._last, 0
        for _ in range(times):
            value = field[0]
            if value != last:
                changes += 1
                last = value
                if value not in values:
                    self._note(value)
        self._last = last
        self.changes += changes

    def _forward(self, times: int) -> None:
        field, last, changes = self._field, self._last, 0
        back: list[int] = []
        for _ in range(times):
            value = field[0]
            if value != last:
                changes += 1
                if (value - last) & 0xFFFF > 0x7FFF:
                    back.append(value)
                last = value
        self._last = last
        self.changes += changes
        before, self._read = self._read, time.monotonic()
        if self._read - before < HALF_ROUND:
            for value in back:
                self._note(value)

    def _while_flagged(self, times: int) -> None:
        field, values, flags, available = (
            self._field,
            self._values,
            self._flags,
            frozenset(self.rule.available),
        )
        for _ in range(times):
            before = flags[0]
            value = field[0]
            if before not in available:
                continue
            if value not in values and flags[0] == before:
                self._note(value)
            self.changes += 1

    def _while_outstanding(self, times: int) -> None:
        field, values = self._field, self._values
        available, used = self._available_index, self._used_index
        for _ in range(times):
            before, done = available[0], used[0]
            value = field[0]
            if before == done:
                continue
            if value not in values and available[0] == before and used[0] == done:
                self._note(value)
            self.changes += 1


def main() -> None:
    """Watch the memory, and print the observations."""
    fd, looks, changes = map(int, sys.argv[1:])
    rules = [
        Rule(
            **{
                **rule,
                "values": tuple(rule["values"]),
                "available": tuple(rule["available"]),
                "indices": rule["indices"] and tuple(rule["indices"]),
            }
        )
        for rule in json.load(sys.stdin)
    ]
    memory = memoryview(mmap.mmap(fd, 0))
    eyes = [_Eye(rule, memory) for rule in rules]
    print("looking", flush=True)
    done, end = 0, time.monotonic() + DEADLINE
    while done < looks or sum(eye.changes for eye in eyes) < changes:
        for eye in eyes:
            eye.look(TURN)
        done += TURN * len(eyes)
        if any(eye.bad for eye in eyes) or time.monotonic() > end:
            break
    seen = Seen(done, sum(eye.changes for eye in eyes))
    for eye in eyes:
        if eye.bad:
            seen.bad[eye.rule.name] = {hex(value): times for value, times in eye.bad.items()}
    print(json.dumps(asdict(seen)))


if __name__ == "__main__":
    main()
