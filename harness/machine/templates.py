"""Templates: saved machines in a cache, each created once and checked before it is used.

    <directory>/lock            held while a template is created, or old ones are removed
    <directory>/<key>/          ram, state, template.json (their sizes and SHA-256, and facts)

A key is a hash of everything that the machine depends on. So a machine with any difference has
another key, and a template is never compared with a configuration.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.machine.command import Saved
from harness.machine.errors import MachineError
from harness.machine.ramfile import extents
from harness.outputs import mark, remove_leftovers
from images import store

KEPT = 12
"""Number of templates that are kept, those used last, when another one is created."""

WAIT_DEADLINE = 600.0
"""Seconds that a process waits for another one to create a template."""

_CHUNK = 1 << 20
_ZEROES = bytes(_CHUNK)
_MANIFEST = "template.json"

Facts = dict[str, Any]
Make = Callable[[Saved], Facts]
Progress = Callable[[str], None]


class TemplateError(MachineError):
    """The template cannot be created. The machine can still be booted instead."""


@dataclass(frozen=True)
class Template:
    """A saved machine, and the facts that its creator has stored with it (plain values)."""

    saved: Saved
    facts: Facts
    stamps: tuple[tuple[int, ...], ...]

    def intact(self) -> bool:
        """True if the files have not changed since their contents were checked."""
        try:
            return self.stamps == _stamps(self.saved)
        except OSError:
            return False


def key_of(parts: Mapping[str, object]) -> str:
    """Return the key of a machine that depends on `parts` (name -> value)."""
    text = json.dumps({name: str(part) for name, part in parts.items()}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def ensure(directory: Path, key: str, make: Make, progress: Progress) -> Template:
    """Return the template with that key; create it if it is missing or damaged.

    `make` writes the files of a `Saved` and returns facts. If several processes ask at the same
    time, one creates it and the others wait. Raises TemplateError if the template cannot be
    stored, and the errors of `make`.
    """
    try:
        return store.ensure(
            lambda: _load(directory / key),
            lambda: _make_and_prune(directory, key, make),
            lambda: store.exclusive(directory, WAIT_DEADLINE, "make a template", progress),
            "template",
            progress,
        )
    except store.StoreError as error:
        raise TemplateError(str(error)) from None
    except OSError as error:
        raise TemplateError(f"no template in {directory}: {error.strerror}") from error


def _make_and_prune(directory: Path, key: str, make: Make) -> None:
    _make(directory, key, make)
    _prune(directory)


def _make(directory: Path, key: str, make: Make) -> None:
    """Create a template under a temporary name and rename it. The caller holds the lock."""
    remove_leftovers(directory, ".make-")  # of a killed process: the lock is ours
    with tempfile.TemporaryDirectory(prefix=".make-", dir=directory) as name:
        mark(Path(name))
        ready = Path(name) / "ready"
        ready.mkdir(0o700)
        saved = _saved(ready)
        # The guest's memory has its private keys. QEMU would make the files as the umask says.
        for path in _files(saved):
            path.touch(0o600)
        facts = make(saved)
        for path in (saved.ram, saved.state):
            # Dirty pages of a file count as memory of every process that maps them.
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
        manifest = {"facts": facts, "sha256": {path.name: _digest(path) for path in _files(saved)}}
        (ready / _MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
        if (directory / key).exists():
            (directory / key).rename(Path(name) / "damaged")
        ready.rename(directory / key)


@dataclass(frozen=True)
class _Manifest:
    """The contents of `template.json`."""

    facts: dict[str, Any]
    sha256: dict[str, str]


def _load(directory: Path) -> Template:
    """Return the template in a directory, after a check of all its bytes."""
    saved = _saved(directory)
    manifest = store.manifest(directory / _MANIFEST, _Manifest)
    try:
        stamps = _stamps(saved)
        for path in _files(saved):
            if not path.is_file():
                raise store.DamagedError(f"{path.name} is missing")
            if manifest.sha256.get(path.name) != _digest(path):
                raise store.DamagedError(f"{path.name} has changed since it was made")
    except FileNotFoundError as error:
        raise store.DamagedError(f"{Path(error.filename).name} is missing") from None
    with contextlib.suppress(OSError):
        os.utime(directory)
    return Template(saved, manifest.facts, stamps)


def _saved(directory: Path) -> Saved:
    return Saved(directory / "ram", directory / "state")


def _files(saved: Saved) -> tuple[Path, Path]:
    return saved.ram, saved.state


def _stamps(saved: Saved) -> tuple[tuple[int, ...], ...]:
    """Return numbers that change when one of the files is written to or replaced."""
    stats = (path.stat() for path in _files(saved))
    return tuple((stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in stats)


def _digest(path: Path) -> str:
    """Return the SHA-256 of a file's size and of its data except zeroes; holes take no time."""
    total = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        total.update(f"{size}\n".encode())
        chunks = {
            number
            for begin, end in extents(file.fileno(), size)
            for number in range(begin // _CHUNK, -(-end // _CHUNK))
        }
        for number in sorted(chunks):
            data = os.pread(file.fileno(), _CHUNK, number * _CHUNK)
            if data != _ZEROES[: len(data)]:
                total.update(f"{number} {len(data)}\n".encode() + data)
    return total.hexdigest()


def _prune(directory: Path) -> None:
    """Remove all but the templates used last. A running machine keeps its open files."""
    with_use = sorted(
        (path for path in directory.iterdir() if store.has_manifest(path / _MANIFEST, _Manifest)),
        key=lambda path: path.stat().st_mtime,
    )
    for path in with_use[:-KEPT]:
        shutil.rmtree(path, ignore_errors=True)
