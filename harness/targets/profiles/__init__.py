"""Tables of the targets file for well-known daemons and VMMs, taken by `--target NAME`.

VBLK_NAME_PROGRAM and VBLK_NAME_CONTROL in the environment are the paths of the programs, with the
name of the profile in capitals and _ for -. In a targets file, `profile = "NAME"` takes a profile,
and the other keys of the table replace those of the profile.
"""

from __future__ import annotations

import os
import tomllib
from functools import cache
from pathlib import Path
from typing import Any


@cache
def profiles() -> dict[str, dict[str, Any]]:
    """Return the tables of all profiles, by name, with the paths of the environment."""
    tables: dict[str, dict[str, Any]] = {}
    for path in sorted(Path(__file__).parent.glob("*.toml")):
        tables |= tomllib.loads(path.read_text())["target"]
    for name, table in tables.items():
        for key in ("program", "control"):
            if there := os.environ.get(f"VBLK_{name.upper().replace('-', '_')}_{key.upper()}"):
                table[key] = there
    return tables


def with_profile(table: dict[str, Any]) -> dict[str, Any]:
    """Return a table with the keys of its profile, if it names one. KeyError if there is none."""
    own = dict(table)
    profile = profiles()[own.pop("profile")]
    return {**profile, **own, "options": {**profile.get("options", {}), **own.get("options", {})}}
