"""Reduction of a script to the operations that are needed for the same finding."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from harness.random.operations import Ask, Operation, Send

REPLAYS = 150
"""Replays of one script.

From forty operations, the most in an example, to five takes some sixty; the rest is for the
requests in them.
"""

SECONDS = 30.0
"""Seconds for the scripts of a round.

A replay that ends with a device that hangs takes some ten seconds.
"""

T = TypeVar("T")


def cut(
    script: Sequence[Operation],
    finds: Callable[[Sequence[Operation]], bool],
    replays: int = REPLAYS,
    seconds: float = SECONDS,
) -> tuple[Operation, ...]:
    """Return the script without the operations and requests that the finding does not need.

    `finds` plays a script, and returns True for the same finding. It is called at most `replays`
    times, and not after `seconds`. The first operation stays.
    """
    left, until = replays, time.monotonic() + seconds

    def still(shorter: Sequence[Operation]) -> bool:
        nonlocal left
        left -= 1
        return left >= 0 and time.monotonic() < until and finds(shorter)

    plug, *rest = script
    rest = _shorten(rest, lambda fewer: still((plug, *fewer)))
    for place in range(len(rest)):
        rest[place] = _thin_out(rest, place, lambda other: still((plug, *other)))
    return (plug, *rest)


def _thin_out(
    rest: Sequence[Operation], place: int, still: Callable[[Sequence[Operation]], bool]
) -> Operation:
    """Return one of the operations without the requests in it that are not needed."""
    send = rest[place]
    if not isinstance(send, Send):
        return send

    def with_fewer(asks: Sequence[Ask]) -> bool:
        return still((*rest[:place], replace(send, asks=tuple(asks)), *rest[place + 1 :]))

    return replace(send, asks=tuple(_shorten(send.asks, with_fewer)))


def _shorten(items: Sequence[T], still: Callable[[Sequence[T]], bool]) -> list[T]:
    """Return the needed items: first leave out halves, then smaller parts, then single items.

    It starts at the end: few items depend on later ones.
    """
    kept = list(items)
    size = max(len(kept) // 2, 1)
    while True:
        before = len(kept)
        for start in range(len(kept) - size, -size, -size):
            fewer = kept[: max(start, 0)] + kept[start + size :]
            if fewer and still(fewer):
                kept = fewer
        if size > 1:
            size //= 2
        elif len(kept) == before:
            return kept
