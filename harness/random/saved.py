"""Scripts of findings as files that say what they show and how to do it again."""

from __future__ import annotations

import re
from itertools import count
from pathlib import Path

from harness.random.hunt import Found, Hunt
from harness.random.script import text_of
from harness.targets import Target


def save(found: Found, hunt: Hunt, directory: Path, origin: str) -> Path:
    """Write a finding's script into a directory, which is made if need be; the file.

    `origin` says where it comes from, in one line. A name that is taken is not taken again.
    """
    directory.mkdir(parents=True, exist_ok=True)
    stem = re.sub(r"[^a-z0-9]+", "-", f"{hunt.target.name}-{found.finding.signature}".lower())
    for number in count(1):
        more = f"-{number}" if number > 1 else ""
        path = directory / f"{stem[:60].strip('-')}{more}.script"
        try:
            file = path.open("x", encoding="utf-8")
        except FileExistsError:
            continue
        with file:
            file.write(text_of(found.script, notes(found, hunt, path, origin)))
        return path
    raise AssertionError("unreachable")


def notes(found: Found, hunt: Hunt, path: Path, origin: str) -> list[str]:
    """What stands above a saved script."""
    return [
        str(found.finding),
        f"on {made_of(hunt.target)}",
        f"{origin}; {found.times} examples failed so",
        "and so did this script alone" if found.again else "this script alone did not fail",
        f"again: vblk replay {path} --target {hunt.target.name}",
    ]


def made_of(target: Target) -> str:
    """The target, and the implementations behind it with their versions."""
    made = [
        f"{one.implementation} {'.'.join(map(str, one.version))}" for one in target.identities()
    ]
    return f"{target.name} ({', '.join(made)})"
