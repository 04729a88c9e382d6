"""Kernel modules: which files a set of modules needs, and the index that modprobe reads."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath

from .errors import ImageError

_DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")


def module_name(path: str) -> str:
    """A module's name from its file: the kernel takes `-` and `_` as the same."""
    return PurePosixPath(path).stem.replace("-", "_")


def dependencies(module: bytes) -> list[str]:
    """The modules that a .ko file names in its `depends` field."""
    found = _DEPENDS.search(module)
    if found is None:
        raise ImageError("a kernel module without a `depends` field: not a module of Linux 6.1?")
    return [name.replace("-", "_") for name in found[1].decode().split(",") if name]


def needed(modules: Mapping[str, bytes], wanted: Iterable[str]) -> dict[str, list[str]]:
    """Each needed module's path with the paths of all that must be loaded before it, nearest first.

    `modules` maps paths to contents; `wanted` has names. Raises ImageError for a missing module.
    """
    paths = {module_name(path): path for path in modules}
    result: dict[str, list[str]] = {}

    def visit(name: str) -> str:
        if name not in paths:
            raise ImageError(f"the kernel package has no module {name}")
        path = paths[name]
        if path not in result:
            before: list[str] = []
            for direct in map(visit, dependencies(modules[path])):
                before = [direct, *result[direct], *before]
            result[path] = list(dict.fromkeys(before))
        return path

    for name in wanted:
        visit(name)
    return result


def modules_dep(needs: Mapping[str, list[str]]) -> str:
    """The text of `modules.dep`."""
    return "".join(f"{path}: {' '.join(before)}".rstrip() + "\n" for path, before in needs.items())
