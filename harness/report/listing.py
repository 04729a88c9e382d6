"""List of statements with their tests, for a terminal."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

from harness.virtio.catalogue import Clause


def listing(statements: Iterable[Clause], tests: Mapping[str, Collection[str]]) -> Iterator[str]:
    """Yield the lines of a list: id, level, words and tests of each statement.

    `tests` maps the id of a statement to the ids of its tests.
    """
    for clause in statements:
        party = "" if clause.party == "device" else f", {clause.party}"
        yield f"{clause.id} {clause.level}{party}"
        yield f"    {clause.text}"
        if clause.place:
            yield f"    vhost-user document: {clause.place}"
        names = tests.get(clause.id, ())
        if not names:
            yield f"    no test: {clause.untested or 'none was collected'}"
        for name in names:
            yield f"    {name}"
