"""Programs and kernels of other Debian suites, unpacked into the cache and run from there.

    foreign/<key>/root/   the files of all packages of a set, its C library included
    foreign/<key>/bin/    scripts that run its programs
    debs/<sha256>.deb     packages, shared with the guest image

A set is locked in `foreign.lock.json`: which version of each package, with its SHA-256. A
program of a set runs with the loader and the libraries of its own root, so that the
machine's own C library does not matter. Nothing gets installed.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote

from images import cache
from images.apt import ARCHITECTURE, Apt, Package
from images.errors import ImageError
from images.private import private_directory

LOCK = Path(__file__).parent / "foreign.lock.json"

UNPACK_DEADLINE = 300.0
"""Seconds that a package may take to be unpacked."""

_DONE = "complete"
"""Name of the file that is written into a set's directory last."""


@dataclass(frozen=True)
class Recipe:
    """A set: the suites to look in, the preferred one first, and the packages wanted.

    With `only` the set has those of them, and of the packages that they depend on, whose names
    match one of these patterns: a kernel does not need the programs that install it.
    `programs` are those that get a script in bin/: their paths in the root, and the words
    that follow them, in which {root} is the root.
    """

    suites: tuple[str, ...]
    packages: tuple[str, ...]
    only: tuple[str, ...] = ()
    architecture: str = ARCHITECTURE
    programs: Mapping[str, str] = field(default_factory=dict)


KERNEL = ("linux-image-*", "linux-binary-*", "linux-modules-*", "busybox-static")
"""Patterns of the packages of a kernel, and of a shell that runs on it."""

RECIPES: dict[str, Recipe] = {
    "qemu-11": Recipe(
        ("trixie-backports", "trixie"),
        (
            *("qemu-system-x86", "qemu-system-common", "qemu-system-data"),
            *("qemu-utils", "seabios", "ipxe-qemu"),
        ),
        programs={
            "usr/bin/qemu-system-x86_64": (
                "-L {root}/usr/share/qemu -L {root}/usr/share/seabios -L {root}/usr/lib/ipxe/qemu"
            ),
            "usr/bin/qemu-storage-daemon": "",
        },
    ),
    "libblkio": Recipe(("trixie",), ("libblkio1",), only=("libblkio1",)),
    "linux-trixie": Recipe(("trixie",), ("linux-image-cloud-amd64", "busybox-static"), KERNEL),
    "linux-sid": Recipe(("sid",), ("linux-image-cloud-amd64", "busybox-static"), KERNEL),
    "linux-arm64": Recipe(
        ("trixie",), ("linux-image-cloud-arm64", "busybox-static"), KERNEL, "arm64"
    ),
}
"""The sets by name."""


def locked() -> dict[str, list[Package]]:
    """Return the locked packages of each set. ImageError for a file that cannot be read."""
    try:
        document = json.loads(LOCK.read_text(encoding="utf-8"))
        return {
            name: [Package(item["name"], item["version"], item["sha256"]) for item in items]
            for name, items in document.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ImageError(f"{LOCK.name} can't be read ({error}): restore it") from None


def ensure(name: str, progress: cache.Progress = lambda line: None) -> Path:
    """Return the directory of a set, with root/ and bin/, unpacked first if the cache lacks it.

    ImageError for a set that is not known or not locked, or that cannot be had.
    """
    recipe = _recipe(name)
    packages = locked().get(name)
    if packages is None:
        raise ImageError(f"{name} is not locked: run `vblk image foreign {name} --update`")
    top = cache.cache_dir()
    key = hashlib.sha256(json.dumps([name, *map(str, packages)]).encode()).hexdigest()[:16]
    target = top / "foreign" / f"{name}-{key}"
    if (target / _DONE).exists():
        return target
    with cache.one_line_errors(top), cache.exclusive(top, progress):
        if not (target / _DONE).exists():
            progress(f"unpacking {name} of {recipe.suites[0]} (once; it is kept)")
            debs = cache.fetch(top, packages, progress, lambda: _sources(top, name))
            _unpack(list(debs.values()), target, recipe.programs)
    return target


def _recipe(name: str) -> Recipe:
    if name not in RECIPES:
        known = ", ".join(RECIPES)
        raise ImageError(f"there is no set of packages {name!r}; there are: {known}")
    return RECIPES[name]


def _sources(top: Path, name: str) -> Apt:
    """Return the suites of a set as package sources."""
    archive = Apt(top / "apt").archive()
    return Apt(top / f"apt-{name}", archive, RECIPES[name].suites, RECIPES[name].architecture)


def _unpack(debs: Sequence[Path], target: Path, programs: Mapping[str, str]) -> None:
    """Unpack packages under a temporary name, and move the directory into place."""
    private_directory(target.parent)
    with tempfile.TemporaryDirectory(prefix=".unpack-", dir=target.parent) as name:
        ready = Path(name) / "ready"
        (ready / "root").mkdir(parents=True)
        (ready / "bin").mkdir()
        for deb in debs:
            done = subprocess.run(
                ["dpkg-deb", "--extract", deb, ready / "root"],
                capture_output=True,
                text=True,
                timeout=UNPACK_DEADLINE,
                check=False,
            )
            if done.returncode:
                lines = done.stderr.strip().splitlines() or ["no message"]
                raise ImageError(f"{deb.name} cannot be unpacked: {lines[-1]}")
        for program, words in programs.items():
            script = ready / "bin" / Path(program).name
            script.write_text(_script(target / "root", program, words))
            script.chmod(0o755)
        (ready / _DONE).touch()
        if target.exists():
            target.rename(Path(name) / "incomplete")
        ready.rename(target)


def update(name: str, progress: cache.Progress = lambda line: None) -> None:
    """Lock the versions of a set that its suites offer now. ImageError if they offer none."""
    top = cache.cache_dir()
    private_directory(top)
    recipe = _recipe(name)
    with cache.one_line_errors(top), cache.exclusive(top, progress):
        apt = _sources(top, name)
        progress("fetching package lists")
        apt.refresh()
        packages = apt.closure(recipe.packages, recipe.suites[0], recipe.only)
    document = (locked() if LOCK.exists() else {}) | {name: packages}
    listed = {
        set_name: [vars_of(package) for package in sorted(items)]
        for set_name, items in sorted(document.items())
    }
    LOCK.write_text(json.dumps(listed, indent=1) + "\n", encoding="utf-8")


def vars_of(package: Package) -> dict[str, str]:
    """Return a package as the lock file has it."""
    return {"name": package.name, "version": package.version, "sha256": package.sha256}


def _script(root: Path, program: str, words: str) -> str:
    """Return a shell script that runs a program with the loader and libraries of its root."""
    libraries = root / "usr/lib/x86_64-linux-gnu"
    path = ":".join(map(str, (libraries, root / "lib/x86_64-linux-gnu", libraries / "ceph")))
    loader = root / "usr/lib64/ld-linux-x86-64.so.2"
    line = f"{quote(str(loader))} --library-path {quote(path)} {quote(str(root / program))}"
    modules = quote(str(libraries / "qemu"))
    extra = words.format(root=quote(str(root)))
    return f'#!/bin/sh\nQEMU_MODULE_DIR={modules} exec {line} {extra} "$@"\n'
