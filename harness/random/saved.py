"""Scripts of findings as files, with comments that say what they show and how to repeat them."""

from __future__ import annotations

import re
from itertools import count
from pathlib import Path

from harness.random.hunt import Found, Hunt
from harness.random.script import text_of
from harness.targets import Target


def save(found: Found, hunt: Hunt, directory: Path, origin: str) -> Path:
    """Write a finding's script into a directory, and return the file.

    The directory is made if needed.

    `origin` describes the source of the script in one line. An existing file is never overwritten.
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
    """Return the comment lines at the top of a saved script."""
    return [
        str(found.finding),
        f"on {made_of(hunt.target)}",
        f"{origin}; {found.times} examples failed in this way",
        "this script alone failed, too" if found.again else "this script alone did not fail",
        f"repeat: vblk replay {path} --target {hunt.target.name}",
    ]


def made_of(target: Target) -> str:
    """Return the target's name, and the implementations behind it with their versions."""
    implementations = [
        f"{identity.implementation} {'.'.join(map(str, identity.version))}"
        for identity in target.identities()
    ]
    return f"{target.name} ({', '.join(implementations)})"
