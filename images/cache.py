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
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from harness.outputs import mark, remove_leftovers
from images import lock, recipe, ssh, store
from images.apt import Apt, Package
from images.errors import ImageError, no_space
from images.private import private_directory

Progress = Callable[[str], None]

BUILD_DEADLINE = 1200.0  # seconds that one process waits for another's build
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
        return store.ensure(
            lambda: _load(cache, key),
            lambda: _build(cache, key, say),
            lambda: exclusive(cache, say),
            "guest image",
            say,
        )


def update(progress: Progress | None = None) -> None:
    """Write a lock file with the package versions that this machine's apt sources offer now."""
    say = progress or _silent
    cache = cache_dir()
    with one_line_errors(cache):
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
        list(cache.iterdir())  # a cache that cannot be read is neither missing nor damaged
        size = sum(file.stat().st_size for file in path.glob("*"))
        _load(cache, key)
    except FileNotFoundError:
        return Status("damaged" if path.is_dir() else "missing", path, key, size)
    except store.DamagedError:
        return Status("damaged", path, key, size)
    except OSError as error:
        return Status("unusable", path, key, size, f"{error.strerror}: {error.filename}")
    return Status("built", path, key, size)


def _silent(_line: str) -> None:
    pass


def _load(cache: Path, key: str) -> Image:
    """Return the cached image, after a check of all its bytes."""
    directory = cache / "images" / key
    manifest = store.manifest(directory / _MANIFEST, _Manifest)
    for name in ("vmlinuz", "initrd"):
        if not (directory / name).is_file():
            raise store.DamagedError(f"{name} is missing")
        if _sha256(directory / name) != manifest.sha256.get(name):
            raise store.DamagedError(f"{name} has changed since it was built")
    keys = cache / "keys"
    try:
        host_key = ssh.host_key_line(keys)
        if _digest(ssh.overlay(keys)) != manifest.keys_sha256:
            raise store.DamagedError("it was built with other SSH keys")
    except (OSError, ValueError, KeyError):
        raise store.DamagedError("its SSH keys are not readable") from None
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


def _build(cache: Path, key: str, say: Progress) -> None:
    """Build the image under a temporary name and rename it. The caller holds the lock."""
    say("building the guest image (once; it is kept)")
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
        ours = store.has_manifest(other / _MANIFEST, _Manifest)
        if ours and time.time() - other.stat().st_mtime > _UNUSED_AFTER:
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


def exclusive(cache: Path, say: Progress) -> contextlib.AbstractContextManager[None]:
    """Hold the lock of the cache, whose directory is made. StoreError after BUILD_DEADLINE."""
    return store.exclusive(cache, BUILD_DEADLINE, "build the guest image", say)


@contextlib.contextmanager
def one_line_errors(cache: Path) -> Iterator[None]:
    try:
        yield
    except store.StoreError as error:
        raise ImageError(str(error)) from None
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise no_space(cache) from None
        raise ImageError(
            f"the guest image's cache {cache} can't be used ({error.strerror}: {error.filename}): "
            "correct that, or set VBLK_CACHE to a directory of yours"
        ) from None
