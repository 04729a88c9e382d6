"""The guest image in its cache: built on first use, checked on every use.

    debs/<sha256>.deb     packages, kept so that a locked version is downloaded only once
    keys/                 SSH keys, created once
    images/<key>/         vmlinuz, initrd, image.json (size and SHA-256 of both)
    apt/                  apt's private state
    lock                  held while something is built

The key of an image is a hash of everything that it is built from, except the SSH keys: the lock
file, the sources of this package and the guest's own files.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from harness.inputs import (
    InputError,
    MissingFileError,
    WrongValueError,
    build,
    json_of,
    read_text,
)
from harness.outputs import mark, remove_leftovers
from images import lock, recipe, ssh
from images.apt import Apt, Package
from images.errors import ImageError, no_space
from images.private import private_directory

Progress = Callable[[str], None]

BUILD_DEADLINE = 1200.0  # seconds that one process waits for another's build
_POLL = 0.1  # seconds
_UNUSED_AFTER = 30 * 24 * 3600.0  # seconds after which an image of another key is removed
_MANIFEST = "image.json"
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}


@dataclass(frozen=True)
class Image:
    """A guest image that is ready to boot."""

    key: str  # content key of the recipe and its inputs
    kernel: Path  # vmlinuz
    initrd: Path  # initramfs, a plain cpio archive
    kernel_release: str  # as `uname -r` prints it in the guest
    ssh_key: Path  # private key for root in the guest (ed25519, OpenSSH format)
    ssh_host_key: str  # the guest's pinned host key: "ssh-ed25519 AAAA..."


@dataclass(frozen=True)
class Status:
    """The state of the cached image, determined without a build."""

    state: Literal["built", "missing", "damaged", "unusable"]
    path: Path  # where the image is or would be
    key: str
    size: int  # bytes on disk, 0 if missing
    trouble: str = ""  # why a cache that is unusable cannot be read, in one line


class _DamagedError(Exception):
    """A cached image differs from what was written; the message says how."""


def cache_dir() -> Path:
    """Return the cache directory: $VBLK_CACHE, or a directory in the XDG cache."""
    if own := os.environ.get("VBLK_CACHE"):
        return Path(own).absolute()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base).absolute() / "virtio-blk-conformance"


def content_key() -> str:
    """Return the key of the image that the recipe and the lock file describe now."""
    here = Path(__file__).parent
    sources = [lock.PATH, *here.glob("*.py"), *recipe.GUEST_DIR.iterdir()]
    total = hashlib.sha256()
    for path in sorted(path for path in sources if path.is_file()):
        content = path.read_bytes()
        total.update(f"{path.relative_to(here)} {len(content)}\n".encode() + content)
    return total.hexdigest()[:16]


def ensure(progress: Progress | None = None) -> Image:
    """Return the image. Build it first if it is not in the cache, or is damaged there.

    If several processes ask at the same time, one builds it and the others wait. `progress` is
    called with a line for each step. Raises ImageError.
    """
    say = progress or _silent
    key = content_key()
    cache = cache_dir()
    with one_line_errors(cache):
        try:
            return _load(cache, key)
        except (_DamagedError, FileNotFoundError):
            pass
        private_directory(cache)
        with exclusive(cache, say):
            try:
                return _load(cache, key)  # another process may have built it meanwhile
            except FileNotFoundError:
                say("building the guest image (once; it is kept)")
            except _DamagedError as damage:
                say(f"the cached guest image is damaged ({damage}): building it again")
            _build(cache, key, say)
            try:
                return _load(cache, key)
            except (_DamagedError, FileNotFoundError) as error:
                raise ImageError(f"the guest image was damaged while built: {error}") from None


def update(progress: Progress | None = None) -> None:
    """Write a lock file with the package versions that this machine's apt sources offer now."""
    say = progress or _silent
    cache = cache_dir()
    with one_line_errors(cache):
        private_directory(cache)
        with exclusive(cache, say):
            apt = Apt(cache / "apt")
            say("fetching package lists")
            apt.refresh()
            packages = lock.resolve(apt)
        lock.write(lock.PATH, packages)
    for package in packages:
        say(f"locked {package.name} {package.version}")


def status() -> Status:
    """Return the state of the cache, for a report. Reads the image but builds nothing."""
    key = content_key()
    cache = cache_dir()
    path = cache / "images" / key
    size = 0
    try:
        size = sum(file.stat().st_size for file in path.glob("*"))
        _load(cache, key)
    except FileNotFoundError:
        return Status("damaged" if path.is_dir() else "missing", path, key, size)
    except _DamagedError:
        return Status("damaged", path, key, size)
    except OSError as error:
        return Status("unusable", path, key, size, f"{error.strerror}: {error.filename}")
    return Status("built", path, key, size)


def _silent(_line: str) -> None:
    pass


def _load(cache: Path, key: str) -> Image:
    """Return the cached image, after a check of all its bytes."""
    directory = cache / "images" / key
    try:
        manifest = _manifest(directory)
    except (InputError, WrongValueError):
        raise _DamagedError(f"{_MANIFEST} is not readable") from None
    for name in ("vmlinuz", "initrd"):
        if not (directory / name).is_file():
            raise _DamagedError(f"{name} is missing")
        if _sha256(directory / name) != manifest.sha256.get(name):
            raise _DamagedError(f"{name} has changed since it was built")
    keys = cache / "keys"
    try:
        host_key = ssh.host_key_line(keys)
        if _digest(ssh.overlay(keys)) != manifest.keys_sha256:
            raise _DamagedError("it was built with other SSH keys")
    except (OSError, ValueError, KeyError):
        raise _DamagedError("its SSH keys are not readable") from None
    with contextlib.suppress(OSError):  # a cache may be read-only
        os.utime(directory)
    return Image(
        key=key,
        kernel=directory / "vmlinuz",
        initrd=directory / "initrd",
        kernel_release=manifest.kernel_release,
        ssh_key=keys / ssh.CLIENT_KEY,
        ssh_host_key=host_key,
    )


@dataclass(frozen=True)
class _Manifest:
    """The contents of `image.json`."""

    kernel_release: str
    sha256: dict[str, str]
    keys_sha256: str


def _manifest(directory: Path) -> _Manifest:
    """Return an image's manifest. FileNotFoundError, or InputError or WrongValueError."""
    path = directory / _MANIFEST
    try:
        return build(_Manifest, json_of(path, read_text(path)), extra=True)
    except MissingFileError as error:
        raise FileNotFoundError(errno.ENOENT, str(error), str(path)) from None


def _is_image(directory: Path) -> bool:
    """Return whether a directory is an image that we built, whatever the cache has beside it."""
    try:
        return bool(_manifest(directory))
    except (OSError, InputError, WrongValueError):
        return False


def _build(cache: Path, key: str, say: Progress) -> None:
    """Build the image under a temporary name and rename it. The caller holds the lock."""
    images = cache / "images"
    private_directory(images)
    remove_leftovers(images, ".build-")  # of a killed process: the lock is ours
    debs = fetch(cache, lock.read(lock.PATH), say)
    ssh.ensure_keys(cache / "keys")
    target = images / key
    with tempfile.TemporaryDirectory(prefix=".build-", dir=images) as name:
        mark(Path(name))
        ready = Path(name) / "ready"
        ready.mkdir(0o700)
        release = recipe.build(debs, ready, say)
        overlay = ssh.overlay(cache / "keys")
        with (ready / "base.cpio").open("ab") as file:
            file.write(overlay)
        (ready / "base.cpio").rename(ready / "initrd")
        (ready / "initrd").chmod(0o600)  # the guest's host key is in it
        manifest = {
            "kernel_release": release,
            "sha256": {name: _sha256(ready / name) for name in ("vmlinuz", "initrd")},
            "keys_sha256": _digest(overlay),
        }
        (ready / _MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
        if target.exists():
            target.rename(Path(name) / "damaged")
        ready.rename(target)
    for other in images.iterdir():
        if _is_image(other) and time.time() - other.stat().st_mtime > _UNUSED_AFTER:
            shutil.rmtree(other, ignore_errors=True)
    say(f"guest image ready: {target}")


def fetch(
    cache: Path,
    packages: list[Package],
    say: Progress,
    sources: Callable[[], Apt] | None = None,
) -> dict[str, Path]:
    """Return the locked packages as files, from the cache or the archive, with checked hashes."""
    store = cache / "debs"
    private_directory(store)
    files = {package: store / f"{package.sha256}.deb" for package in packages}
    missing = [package for package in packages if not _is_intact(files[package], package)]
    if missing:
        apt = sources() if sources else Apt(cache / "apt")
        say("fetching package lists")
        apt.refresh()
        _check_offered(apt, missing)
        for package in missing:
            say(f"downloading {package.name} {package.version}")
            with tempfile.TemporaryDirectory(prefix=".download-", dir=store) as name:
                deb = apt.download(package, Path(name))
                if not _is_intact(deb, package):
                    raise ImageError(
                        f"{package.name} {package.version} came with SHA-256 {_sha256(deb)}, not "
                        f"the locked {package.sha256}; if that is right: `vblk image update`"
                    )
                deb.rename(files[package])
    return {package.name: path for package, path in files.items()}


def _check_offered(apt: Apt, packages: list[Package]) -> None:
    offered = apt.offered([package.name for package in packages])
    if not offered:
        raise ImageError(f"this machine's apt offers no Debian packages{apt.complaint()}")
    versions = {(package.name, package.version) for package in offered}
    gone = [item for item in packages if (item.name, item.version) not in versions]
    if gone:
        named = ", ".join(f"{package.name} {package.version}" for package in gone)
        raise ImageError(
            f"locked but not offered by this machine's apt sources: {named}; "
            f"run `vblk image update`{apt.complaint()}"
        )


def _is_intact(path: Path, package: Package) -> bool:
    return path.is_file() and _sha256(path) == package.sha256


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@contextlib.contextmanager
def exclusive(cache: Path, say: Progress) -> Iterator[None]:
    """Hold the lock of the cache; the kernel releases it when the process ends."""
    with (cache / "lock").open("a+") as file:
        deadline = time.monotonic() + BUILD_DEADLINE
        waiting = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                file.seek(0)
                holder = f"process {file.read().strip() or '(unknown)'}"
            if not waiting:
                say(f"waiting for {holder} to build the guest image")
                waiting = True
            if time.monotonic() > deadline:
                raise ImageError(
                    f"{holder} has been building the guest image in {cache} for more than "
                    f"{BUILD_DEADLINE:.0f} s: end it, then try again"
                )
            time.sleep(_POLL)
        file.seek(0)
        if not re.fullmatch(r"\d{0,10}\s?", file.read(16)):
            raise ImageError(
                f"{cache / 'lock'} is a file of yours: set VBLK_CACHE to a directory for this alone"
            )
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


@contextlib.contextmanager
def one_line_errors(cache: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise no_space(cache) from None
        raise ImageError(
            f"the guest image's cache {cache} can't be used ({error.strerror}: {error.filename}): "
            "correct that, or set VBLK_CACHE to a directory of yours"
        ) from None
