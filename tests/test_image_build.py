"""The real recipe with the locked packages: identical images, and a full disk.

The packages come from the user's own cache, or are downloaded into it once.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import images
from images import cache, lock

BUILD = """
import pathlib, sys
from images import cache, lock, recipe
store, out = map(pathlib.Path, sys.argv[1:])
recipe.build(cache.fetch(store, lock.read(lock.PATH), print), out, print)
"""
ENSURE = """
import images
try:
    images.ensure()
except images.ImageError as error:
    print(error)
    print(images.status().state, sorted(p.name for p in (images.cache_dir() / "images").iterdir()))
"""
ON_A_SMALL_DISK = (
    'mount -t tmpfs -o size="$1" tmpfs "$2" && ln -s "$3" "$2/debs" && exec "$4" -c "$5"'
)
IN_A_NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]
DEADLINE = 120.0  # seconds


@pytest.fixture(scope="module")
def store() -> Path:
    """Return a cache directory that has all locked packages."""
    images.ensure(print)
    cache.fetch(images.cache_dir(), lock.read(lock.PATH), print)
    return images.cache_dir()


def test_the_same_inputs_give_the_same_bytes(store: Path, tmp_path: Path) -> None:
    different = [
        {"PYTHONHASHSEED": "1", "TZ": "UTC", "LC_ALL": "C"},
        {"PYTHONHASHSEED": "2", "TZ": "Asia/Tokyo", "LC_ALL": "C.UTF-8", "PYTHONOPTIMIZE": "0"},
    ]
    for number, environment in enumerate(different):
        out = tmp_path / str(number)
        out.mkdir()
        subprocess.run(
            [sys.executable, "-c", BUILD, store, out],
            env={**os.environ, **environment},
            umask=0o022 if number == 0 else 0o077,
            check=True,
            capture_output=True,
            timeout=DEADLINE,
        )

    for name in ("base.cpio", "vmlinuz"):
        first, second = ((tmp_path / number / name).read_bytes() for number in "01")
        assert len(first) > 1 << 20
        assert first == second
    assert sorted(path.name for path in (tmp_path / "0").iterdir()) == ["base.cpio", "vmlinuz"]


# With these sizes the disk is full while the kernel, the files or the bytecode is written.
@pytest.mark.parametrize("size", ["8m", "20m", "42m"])
def test_a_full_disk_ends_in_one_line_and_leaves_nothing(
    size: str, store: Path, tmp_path: Path
) -> None:
    if subprocess.run([*IN_A_NAMESPACE, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this host does not allow user namespaces, so there is no small disk to fill")
    arguments: list[str | Path] = [size, tmp_path, store / "debs", sys.executable, ENSURE]

    done = subprocess.run(
        [*IN_A_NAMESPACE, "sh", "-c", ON_A_SMALL_DISK, "sh", *arguments],
        env={**os.environ, "VBLK_CACHE": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=True,
    )

    message, state = done.stdout.splitlines()
    assert message.startswith(f"no space left in {tmp_path} (")
    assert state == "missing []"
