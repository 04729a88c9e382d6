"""A script made shorter by leaving things out, for as long as it still finds the same."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from harness.random.operations import Ask, Operation, Send

REPLAYS = 150
"""Of one script. From forty operations, the most of an example, to five takes some sixty; the rest
is for the requests in them."""

SECONDS = 30.0
"""For one script. A replay that ends in a device that hangs takes some ten."""

T = TypeVar("T")


def cut(
    script: Sequence[Operation],
    finds: Callable[[Sequence[Operation]], bool],
    replays: int = REPLAYS,
    seconds: float = SECONDS,
) -> tuple[Operation, ...]:
    """The script without the operations, and then the requests, that it does not need.

    `finds` plays a script, and says whether it found the same; it is asked so many times, and
    not after so many seconds any more. The first operation stays.
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
    """One of the operations, without the requests in it that are not needed."""
    send = rest[place]
    if not isinstance(send, Send):
        return send

    def with_fewer(asks: Sequence[Ask]) -> bool:
        return still((*rest[:place], replace(send, asks=tuple(asks)), *rest[place + 1 :]))

    return replace(send, asks=tuple(_shorten(send.asks, with_fewer)))


def _shorten(items: Sequence[T], still: Callable[[Sequence[T]], bool]) -> list[T]:
    """What is left of some items: halves are left out first, single ones last.

    From the end, for what comes later is needed by less.
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
