"""The image cache: each image is built once, always checked, and never left half-built.

The recipe is replaced by one that writes two small files, so that these tests need no archive.
"""

from __future__ import annotations

import errno
import itertools
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

import images
from harness.outputs import MARKER, mark
from images import cache, lock, recipe, ssh

FORK = multiprocessing.get_context("fork")
DEADLINE = 60.0  # seconds

Build = Callable[[Mapping[str, Path], Path, Callable[[str], None]], str]


def small_build(_debs: Mapping[str, Path], out: Path, progress: Callable[[str], None]) -> str:
    progress("building something small")
    (out / "vmlinuz").write_bytes(b"kernel" * 1000)
    (out / "base.cpio").write_bytes(b"initramfs" * 1000)
    return "6.1.0-test"


@pytest.fixture(autouse=True)
def small_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install an empty cache and a fast recipe, and return the path of the cache."""
    monkeypatch.setenv("VBLK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(lock, "read", lambda path: [])
    monkeypatch.setattr(recipe, "build", small_build)
    return tmp_path / "cache"


def leftovers(cache_path: Path) -> list[str]:
    """Return the entries of the images directory that are not finished images."""
    return [path.name for path in (cache_path / "images").iterdir() if path.name.startswith(".")]


def test_cache_dir_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VBLK_CACHE", "/somewhere")
    assert images.cache_dir() == Path("/somewhere")
    monkeypatch.delenv("VBLK_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert images.cache_dir() == Path("/xdg/virtio-blk-conformance")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert images.cache_dir() == Path("/home/someone/.cache/virtio-blk-conformance")


def test_built_on_first_use_then_found(small_image: Path) -> None:
    lines: list[str] = []
    assert images.status().state == "missing"

    image = images.ensure(lines.append)
    again = images.ensure(lambda line: pytest.fail(f"built again: {line}"))

    assert "building something small" in lines
    assert again == image
    assert images.status().state == "built"
    assert images.status().path == image.kernel.parent
    assert image.kernel_release == "6.1.0-test"
    assert image.kernel.read_bytes() == b"kernel" * 1000
    assert image.initrd.read_bytes().startswith(b"initramfs" * 1000 + b"070701")
    assert image.ssh_host_key.startswith("ssh-ed25519 AAAA")
    assert small_image in image.ssh_key.parents


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def alter(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("part", "damage"),
    [
        *itertools.product(["vmlinuz", "initrd"], [truncate, alter, Path.unlink]),
        *itertools.product(["image.json"], [truncate, Path.unlink]),
    ],
)
def test_a_damaged_image_is_found_and_built_again(
    part: str, damage: Callable[[Path], None], small_image: Path
) -> None:
    image = images.ensure()
    good = image.initrd.read_bytes()
    damage(image.kernel.parent / part)
    lines: list[str] = []

    assert images.status().state == "damaged"
    assert images.ensure(lines.append) == image

    assert "building something small" in lines
    assert image.initrd.read_bytes() == good
    assert images.status().state == "built"
    assert leftovers(small_image) == []


def test_an_image_with_other_ssh_keys_is_built_again(small_image: Path) -> None:
    before = images.ensure()
    old = before.initrd.read_bytes()
    shutil.rmtree(small_image / "keys")
    ssh.ensure_keys(small_image / "keys")

    after = images.ensure()

    assert after.ssh_host_key != before.ssh_host_key
    assert after.initrd.read_bytes() != old
    assert after.initrd.read_bytes().endswith(ssh.overlay(small_image / "keys"))


def test_the_key_follows_the_lock_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = images.ensure()
    changed = Path(cache.__file__).parent / "packages.lock.json"
    copy = tmp_path / "images"
    shutil.copytree(changed.parent, copy)
    (copy / "packages.lock.json").write_text(changed.read_text() + "\n")
    monkeypatch.setattr(cache, "__file__", str(copy / "cache.py"))
    monkeypatch.setattr(lock, "PATH", copy / "packages.lock.json")
    monkeypatch.setattr(recipe, "GUEST_DIR", copy / "guest")

    assert images.ensure().key != before.key


def test_images_long_unused_are_removed_and_others_kept(small_image: Path) -> None:
    old, recent = small_image / "images" / "old", small_image / "images" / "recent"
    old.mkdir(parents=True)
    recent.mkdir()
    photos = small_image / "images" / "photos"  # the cache may be a directory of the user's
    photos.mkdir()
    for directory in (old, recent):
        (directory / "image.json").write_text(
            '{"kernel_release": "6.1", "sha256": {}, "keys_sha256": ""}'
        )
    a_while_ago = time.time() - 31 * 24 * 3600
    os.utime(old, (a_while_ago, a_while_ago))
    os.utime(photos, (a_while_ago, a_while_ago))

    images.ensure()

    assert not old.exists()
    assert photos.exists()
    assert recent.exists()


def ensure_in_child(lines: multiprocessing.Queue[tuple[int, str]]) -> None:
    image = images.ensure(lambda line: lines.put((os.getpid(), line)))
    lines.put((os.getpid(), f"got {image.key}"))


def blocking_build(started: Event, go_on: Event) -> Build:
    def build(debs: Mapping[str, Path], out: Path, progress: Callable[[str], None]) -> str:
        (out / "vmlinuz").write_bytes(b"half")
        started.set()
        assert go_on.wait(DEADLINE)
        return small_build(debs, out, progress)

    return build


def test_processes_that_ask_together_get_one_build(monkeypatch: pytest.MonkeyPatch) -> None:
    started, go_on = FORK.Event(), FORK.Event()
    monkeypatch.setattr(recipe, "build", blocking_build(started, go_on))
    lines: multiprocessing.Queue[tuple[int, str]] = FORK.Queue()
    first, *others = [FORK.Process(target=ensure_in_child, args=(lines,)) for _ in range(3)]
    messages: list[tuple[int, str]] = []
    try:
        first.start()
        assert started.wait(DEADLINE)
        for process in others:
            process.start()
        while sum("waiting" in line for _, line in messages) < 2:
            messages.append(lines.get(timeout=DEADLINE))
        go_on.set()
        while sum(line.startswith("got ") for _, line in messages) < 3:
            messages.append(lines.get(timeout=DEADLINE))
        for process in (first, *others):
            process.join(DEADLINE)
            assert process.exitcode == 0
    finally:
        for process in (first, *others):
            if process.pid is not None:
                process.kill()
                process.join()

    assert [pid for pid, line in messages if line == "building something small"] == [first.pid]
    for process in others:
        waiting = f"waiting for process {first.pid} to build the guest image"
        assert (process.pid, waiting) in messages
    assert len({line for _, line in messages if line.startswith("got ")}) == 1


def test_a_killed_build_leaves_nothing_in_the_way(
    small_image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, go_on = FORK.Event(), FORK.Event()
    monkeypatch.setattr(recipe, "build", blocking_build(started, go_on))
    process = FORK.Process(target=images.ensure)
    process.start()
    try:
        assert started.wait(DEADLINE)
    finally:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    assert leftovers(small_image) != []
    monkeypatch.setattr(recipe, "build", small_build)

    image = images.ensure()

    assert image.kernel.read_bytes() == b"kernel" * 1000
    assert leftovers(small_image) == []


def test_waiting_for_another_build_has_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    started, go_on = FORK.Event(), FORK.Event()
    monkeypatch.setattr(recipe, "build", blocking_build(started, go_on))
    monkeypatch.setattr(cache, "BUILD_DEADLINE", 0.2)
    process = FORK.Process(target=images.ensure)
    process.start()
    try:
        assert started.wait(DEADLINE)
        with pytest.raises(images.ImageError, match=f"process {process.pid} takes more than"):
            images.ensure()
    finally:
        process.kill()
        process.join()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_clear_line(
    number: int, small_image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_debs: Mapping[str, Path], out: Path, _progress: Callable[[str], None]) -> str:
        (out / "vmlinuz").write_bytes(b"half")
        raise OSError(number, os.strerror(number), str(out / "base.cpio"))

    monkeypatch.setattr(recipe, "build", full)

    with pytest.raises(images.ImageError, match=r"no space left.*VBLK_CACHE") as caught:
        images.ensure()

    assert "\n" not in str(caught.value)
    assert list((small_image / "images").iterdir()) == []
    assert images.status().state == "missing"


def test_a_cache_that_cannot_be_made_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("VBLK_CACHE", str(tmp_path / "file" / "cache"))

    with pytest.raises(images.ImageError, match=r"can't be used.*set VBLK_CACHE"):
        images.ensure()


def test_leftovers_of_a_killed_build_go_and_a_directory_of_the_user_stays(
    small_image: Path,
) -> None:
    ours, theirs = (small_image / "images" / f".build-{name}" for name in ("ours", "theirs"))
    for directory in (ours, theirs):
        directory.mkdir(parents=True)
        (directory / "file").write_text("")
    mark(ours)
    (theirs / MARKER).write_text((ours / MARKER).read_text())  # a copy has the wrong name

    images.ensure()

    assert not ours.exists()
    assert (theirs / "file").exists()


def test_a_lock_that_is_a_file_of_the_user_is_left_alone(small_image: Path) -> None:
    small_image.mkdir(parents=True, exist_ok=True)
    (small_image / "lock").write_text("my own notes")

    with pytest.raises(images.ImageError, match="lock is a file of yours: set VBLK_CACHE"):
        images.ensure()

    assert (small_image / "lock").read_text() == "my own notes"


@pytest.mark.parametrize("name", ["image.json", "vmlinuz", "initrd"])
def test_a_fifo_or_a_directory_in_place_of_a_file_is_built_again(
    small_image: Path, name: str
) -> None:
    path = images.ensure().kernel.with_name(name)
    path.unlink()
    os.mkfifo(path)
    assert images.ensure().kernel.is_file()
    path.unlink()
    path.mkdir()

    assert images.ensure().kernel.is_file()


@pytest.mark.parametrize("text", ["[" * 5000, "{}", '{"kernel_release": 1}', "\ud800"])
def test_a_damaged_manifest_is_built_again(small_image: Path, text: str) -> None:
    path = images.ensure().kernel.with_name("image.json")
    path.write_bytes(text.encode(errors="surrogatepass"))

    assert images.status().state == "damaged"
    assert images.ensure().kernel.is_file()
