"""Kernel modules: the files that a set of modules needs, and the index that modprobe reads."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath

from images.errors import ImageError

_DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")


def module_name(path: str) -> str:
    """Return a module's name from its file name: the kernel treats `-` and `_` as the same."""
    return PurePosixPath(path).stem.replace("-", "_")


def dependencies(module: bytes) -> list[str]:
    """Return the modules in the `depends` field of a .ko file."""
    found = _DEPENDS.search(module)
    if found is None:
        raise ImageError("a kernel module without a `depends` field: not a module of Linux 6.1?")
    return [name.replace("-", "_") for name in found[1].decode().split(",") if name]


def needed(modules: Mapping[str, bytes], wanted: Iterable[str]) -> dict[str, list[str]]:
    """Return path of each needed module -> paths of its dependencies, in the order of loading.

    `modules` maps paths to contents; `wanted` has names. Raises ImageError for a missing module.
    """
    paths = {module_name(path): path for path in modules}

    def load(name: str, order: list[str]) -> None:
        if name not in paths:
            raise ImageError(f"the kernel package has no module {name}")
        for direct in dependencies(modules[paths[name]]):
            load(direct, order)
        if paths[name] not in order:
            order.append(paths[name])

    everything: list[str] = []
    for name in wanted:
        load(name, everything)
    result: dict[str, list[str]] = {}
    for path in everything:
        order: list[str] = []
        load(module_name(path), order)
        result[path] = order[:-1]
    return result


def modules_dep(needs: Mapping[str, list[str]]) -> str:
    """Return the text of `modules.dep`: each module and its dependencies, last loaded first."""
    return "".join(
        f"{path}: {' '.join(reversed(order))}".rstrip() + "\n" for path, order in needs.items()
    )
