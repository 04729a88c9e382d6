"""Probable causes: the failures of a run, grouped by what they have in common.

A group is the tests in which the same thing went wrong with requests that share a property, where
no request with that property was served. Failures that no property of a request explains are
grouped by the text of their error, without its numbers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from itertools import combinations

from harness.driver.flight import Sent
from harness.report.failure import printable
from harness.report.results import Column, Result, Results, Verdict
from harness.virtio.blk import RequestType, Status

FAILED = (Verdict.BROKEN, Verdict.ERROR)

GONE = re.compile(
    r"closed the connection|connection (was )?(lost|reset|refused)|Broken pipe"
    r"|\b(is|are|was) (gone|lost)\b|\b(has )?(ended|died|exited|crashed)\b|no answer"
)
"""Errors of a device, machine or connection that is no more."""

PROCESS_ENDED = re.compile(r"^.{1,80} (exited with status -?\d+|was ended by SIG\w+)$", re.M)
"""Line in the evidence of a failure about a process that has ended."""

WAITED = "waited "
"""Start of the text of a timeout."""

SECTOR_FIRST = (512, 4096, 2048, 1024, 256, 128, 64, 32, 16, 8, 4, 2)
"""Alignments in bytes, the likeliest limit of a device first."""

MOST = 40
"""Largest power of two that is tried as a limit of a size, as an exponent."""


class Kind(Enum):
    """Trouble with a request. The value completes a sentence about requests."""

    DIED = "end the device, or its connection"
    PENDING = "never complete"
    USED = "have a used length that is larger than their device-writable buffers"
    STATUS = "fail"


@dataclass(frozen=True)
class Cause:
    """Failures with probably the same cause.

    `tests` are the ids of the tests in the order of the run, `smallest` is the one with the fewest
    requests, and `column` is the id of the target. `ended` says that the device or the connection
    to it was lost; the first test is then the one that did it.
    """

    column: str
    text: str
    tests: tuple[str, ...]
    smallest: str
    ended: bool = False

    @property
    def test(self) -> str:
        """Return the id of the test to look at first."""
        return self.tests[0] if self.ended else self.smallest

    @property
    def line(self) -> str:
        """Return the cause, and the test to look at, as a line."""
        return f"{self.text}; {'first in' if self.ended else 'see'} {self.test}"


@dataclass(frozen=True)
class _Condition:
    """A property of a request, and words that follow "requests"."""

    words: str
    holds: Callable[[Sent], bool]


@dataclass(frozen=True)
class _Explanation:
    """A property that requests of failed tests share, and that no served request has.

    `types` are the types of these requests; empty for all types.
    """

    conditions: tuple[_Condition, ...]
    types: frozenset[int]
    requests: tuple[Sent, ...]

    @property
    def words(self) -> str:
        """Return the requests in words."""
        names = " and ".join(type_name(type) for type in sorted(self.types))
        parts = [f"{names} requests" if names else "requests of every type"]
        return " ".join([*parts, *(condition.words for condition in self.conditions)])


def causes(results: Results) -> list[Cause]:
    """Return the groups of failures, target by target, the largest group first."""
    return [cause for column in results.columns for cause in _of_column(results, column.id)]


def shared(results: Results) -> Iterator[tuple[Column, str, list[Cause]]]:
    """Yield each target with failures that have something in common.

    Yield the target, a line with the numbers of failures and causes, and the causes of more than
    one failure, the largest group first.
    """
    found = causes(results)
    for column in results.columns:
        groups = [cause for cause in found if cause.column == column.id]
        common = [cause for cause in groups if len(cause.tests) > 1]
        failures = sum(len(cause.tests) for cause in groups)
        if common:
            noun = "cause" if len(groups) == 1 else "causes"
            yield column, f"{failures} failures, probably {len(groups)} {noun}", common


def lines(results: Results, most: int | None) -> Iterator[str]:
    """Yield lines about failures that have something in common: at most `most` causes of each."""
    several = len(results.columns) > 1
    for column, title, common in shared(results):
        yield f"{column.name}: {title}:" if several else f"{title}:"
        for cause in common[:most]:
            yield printable(f"  {len(cause.tests)}: {cause.line}")
        if most is not None and len(common) > most:
            yield f"  {len(common) - most} other causes of several failures; -v lists all"


def _of_column(results: Results, column: str) -> list[Cause]:
    ran = {
        test.id: test.results[column] for test in results.tests.values() if column in test.results
    }
    failed = {test: result for test, result in ran.items() if result.verdict in FAILED}
    if not failed:
        return []
    served = set(next(of.served for of in results.columns if of.id == column))
    served |= {sent for result in failed.values() for sent in result.requests}
    left = dict(failed)
    found: list[Cause] = []
    for kind in Kind:
        wrong = {test: _wrong(kind, result) for test, result in left.items()}
        fine = {sent for sent in served if _is_fine(kind, sent)}
        while any(wrong.values()):
            explanation = _best(wrong, fine)
            if explanation is None:
                break
            matching = set(explanation.requests)
            tests = [test for test in wrong if matching.intersection(wrong[test])]
            requests = [sent for test in tests for sent in wrong[test] if sent in matching]
            text = _text(kind, explanation, requests)
            found.append(_cause(column, text, tests, left, kind is Kind.DIED))
            for test in tests:
                del left[test], wrong[test]
    kept = [test for test, result in ran.items() if result.verdict is Verdict.KEPT]
    found += _by_text(column, left, kept)
    return sorted(found, key=lambda cause: -len(cause.tests))


def _wrong(kind: Kind, result: Result) -> list[Sent]:
    """Return the requests of a failed test with which this has gone wrong."""
    gone = _gone(result)
    if kind is Kind.DIED or kind is Kind.PENDING:
        wanted = gone if kind is Kind.DIED else result.seen.startswith(WAITED)
        return [sent for sent in result.requests if sent.status < 0] if wanted else []
    if kind is Kind.USED:
        return [sent for sent in result.requests if sent.used > sent.room + 1]
    if gone:
        return []
    return [sent for sent in result.requests if sent.status > 0]


def _gone(result: Result) -> bool:
    """Return whether a test failed because the device or its connection was lost.

    Such a test has no verdict, or it waited for a device whose process had ended.
    """
    if result.verdict is Verdict.ERROR:
        return bool(GONE.search(result.seen))
    return result.seen.startswith(WAITED) and bool(PROCESS_ENDED.search(result.evidence))


def _is_fine(kind: Kind, sent: Sent) -> bool:
    """Return whether a request shows that the device does right what went wrong elsewhere."""
    if kind is Kind.USED:
        # One byte too many is not seen if a device may write less than there is room for.
        known = sent.type == RequestType.IN or not sent.room or sent.used == sent.room + 1
        return known and sent.status == Status.OK and sent.used <= sent.room + 1
    if kind is Kind.STATUS:
        return sent.status == Status.OK
    return sent.status >= 0


def _length(sent: Sent) -> int:
    return max(sent.size, sent.room)


def _conditions(wrong: Iterable[Sent]) -> Iterator[_Condition]:
    """Yield the properties that any of the requests has, the likelier causes first."""
    requests = list(wrong)
    candidates = [_Condition("on queues other than 0", lambda sent: sent.queue != 0)]
    candidates += (
        _Condition(
            f"with buffers that are not aligned to {align} bytes",
            lambda sent, align=align: 0 < sent.align < align,  # type: ignore[misc]
        )
        for align in SECTOR_FIRST
    )
    candidates += (
        _Condition(
            f"with more than {_bytes(1 << exponent)} of data",
            lambda sent, least=1 << exponent: _length(sent) > least,  # type: ignore[misc]
        )
        for exponent in range(MOST, 8, -1)
    )
    candidates += [
        _Condition("with an indirect table", lambda sent: sent.indirect),
        _Condition("without an indirect table", lambda sent: not sent.indirect),
        _Condition("on packed virtqueues", lambda sent: sent.packed),
        _Condition("on split virtqueues", lambda sent: not sent.packed),
        _Condition("after a reset of the device", lambda sent: sent.after_reset),
    ]
    candidates += (
        _Condition(
            f"with {count} or more descriptors",
            lambda sent, count=count: sent.elements >= count,  # type: ignore[misc]
        )
        for count in sorted({sent.elements for sent in requests if sent.elements > 3}, reverse=True)
    )
    candidates += (
        _Condition(f"on queue {queue}", lambda sent, queue=queue: sent.queue == queue)  # type: ignore[misc]
        for queue in sorted({sent.queue for sent in requests})
    )
    yield from (
        condition for condition in candidates if any(condition.holds(sent) for sent in requests)
    )


def _bytes(number: int) -> str:
    for unit, exponent in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if number >> exponent:
            return f"{number >> exponent} {unit}"
    return f"{number} bytes"


def _best(wrong: dict[str, list[Sent]], fine: set[Sent]) -> _Explanation | None:
    """Return the simplest property that explains the most tests; None if there is none."""
    requests = list({sent: None for of in wrong.values() for sent in of})
    good = list(fine)
    conditions = list(_conditions(requests))
    tests_of: dict[Sent, set[int]] = {}
    for number, of in enumerate(wrong.values()):
        for sent in of:
            tests_of.setdefault(sent, set()).add(number)
    # A set of requests is the bits of a number: all pairs of conditions are tried.
    bad_bits = [_bits(condition, requests) for condition in conditions]
    good_bits = [_bits(condition, good) for condition in conditions]
    best: _Explanation | None = None
    most = 0
    for size in range(3):
        for chosen in combinations(range(len(conditions)), size):
            bad, contrary = (1 << len(requests)) - 1, (1 << len(good)) - 1
            for number in chosen:
                bad &= bad_bits[number]
                contrary &= good_bits[number]
            served = {good[place].type for place in _places(contrary)}
            matching = [requests[place] for place in _places(bad)]
            matching = [sent for sent in matching if sent.type not in served]
            covered = len(set().union(*(tests_of[sent] for sent in matching)))
            if covered > most:
                most = covered
                types = frozenset(sent.type for sent in matching)
                every = not served and len(types) > 2
                best = _Explanation(
                    tuple(conditions[number] for number in chosen),
                    frozenset() if every else types,
                    tuple(matching),
                )
        if most == len([of for of in wrong.values() if of]):
            break
    return best


def _bits(condition: _Condition, requests: list[Sent]) -> int:
    return sum(1 << place for place, sent in enumerate(requests) if condition.holds(sent))


def _places(bits: int) -> Iterator[int]:
    while bits:
        lowest = bits & -bits
        yield lowest.bit_length() - 1
        bits ^= lowest


def type_name(type: int) -> str:
    """Return the name of a type of request, or its number."""
    known = type in RequestType._value2member_map_
    return RequestType(type).name if known else f"type {type}"


def _text(kind: Kind, explanation: _Explanation, requests: list[Sent]) -> str:
    """Return a sentence: which requests, and what goes wrong with them."""
    end = kind.value
    if kind is Kind.USED:
        more = {sent.used - sent.room - 1 for sent in requests}
        if len(more) == 1:
            end = f"have a used length that is always {more.pop()} larger than their"
            end += " device-writable buffers"
    elif kind is Kind.STATUS:
        statuses = {sent.status for sent in requests}
        known = [Status(status).name for status in statuses if status in set(Status)]
        if len(known) == len(statuses):
            end = f"end with {' or '.join(sorted(known))}"
    return f"{explanation.words} {end}"


def _cause(
    column: str, text: str, tests: list[str], failed: dict[str, Result], ended: bool = False
) -> Cause:
    smallest = min(tests, key=lambda test: len(failed[test].requests))
    return Cause(column, printable(text), tuple(tests), smallest, ended)


def _by_text(column: str, failed: dict[str, Result], kept: list[str]) -> Iterator[Cause]:
    """Yield failures with the same error text, and those of a device that is gone as one."""
    groups: dict[str, list[str]] = {}
    for test, result in failed.items():
        text = "" if _gone(result) else plain_text(result.seen) or "no text"
        groups.setdefault(text, []).append(test)
    for text, tests in groups.items():
        first = failed[tests[0]].seen
        if not text:
            words = f"the device or its connection was lost: {first}"
        elif len(tests) == 1:
            words = first or text
        else:
            words = f"the same error, {text}{_parameter(tests, kept)}"
        yield _cause(column, words, tests, failed, not text)


def plain_text(seen: str) -> str:
    """Return an error's text with numbers, addresses and paths replaced by N and PATH."""
    text = re.sub(r"(?<![\w/])/[\w./-]+", "PATH", seen)
    return re.sub(r"0x[0-9a-fA-F]+|\d+", "N", text)


def _parameter(tests: list[str], kept: list[str]) -> str:
    """Return words about the parameters that all these tests share, and no other test has."""
    shared = set.intersection(*(_parameters(test) for test in tests))
    shared -= {name for test in kept for name in _parameters(test)}
    names = ", ".join(sorted(shared))
    return f" (all with the parameter {names}, which no passed test has)" if names and kept else ""


def _parameters(test: str) -> set[str]:
    _, bracket, text = test.partition("[")
    return set(text.removesuffix("]").split("-")) if bracket else set()
