"""The lock file and apt: the host's real apt, on a test archive of two packages."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

import images
from images import cache, lock, recipe
from images.apt import Package


class Archive:
    """A package archive in a directory; apt uses only this archive in these tests."""

    def __init__(self, top: Path) -> None:
        self._top = top
        self._stanzas: dict[str, str] = {}
        self.publish([])

    def add(self, name: str, version: str, depends: str = "") -> Package:
        """Publish one version of a package, and replace any other version of it."""
        tree = self._top / "tree" / f"{name}-{version}"
        (tree / "DEBIAN").mkdir(parents=True)
        control = f"Package: {name}\nVersion: {version}\nArchitecture: amd64\n"
        control += "Maintainer: nobody <nobody@localhost>\nDescription: test\n"
        control += f"Depends: {depends}\n" if depends else ""
        (tree / "DEBIAN/control").write_text(control)
        deb = self._top / f"{name}_{version}_amd64.deb"
        subprocess.run(["dpkg-deb", "--build", tree, deb], check=True, capture_output=True)
        sha256 = hashlib.sha256(deb.read_bytes()).hexdigest()
        size = deb.stat().st_size
        self._stanzas[name] = f"{control}Filename: ./{deb.name}\nSize: {size}\nSHA256: {sha256}\n"
        self.publish(self._stanzas.values())
        return Package(name, version, sha256)

    def remove(self, name: str) -> None:
        del self._stanzas[name]
        self.publish(self._stanzas.values())

    def publish(self, stanzas: Iterable[str]) -> None:
        (self._top / "Packages").write_text("\n".join(stanzas))


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Archive:
    """An empty archive, an apt that uses only this archive, and an empty cache."""
    top = tmp_path / "archive"
    top.mkdir()
    (tmp_path / "sources.list").write_text(f"deb [trusted=yes] file:{top} ./\n")
    (tmp_path / "apt.conf").write_text(
        f'Dir::Etc::sourcelist "{tmp_path}/sources.list";\nDir::Etc::sourceparts "/dev/null";\n'
    )
    monkeypatch.setenv("APT_CONFIG", str(tmp_path / "apt.conf"))
    monkeypatch.setenv("VBLK_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    return Archive(top)


def fetch(packages: list[Package], say: cache.Progress = print) -> dict[str, Path]:
    return cache.fetch(images.cache_dir(), packages, say)


def test_a_locked_package_is_downloaded_once(archive: Archive) -> None:
    package = archive.add("busybox-static", "1:2.0-1")
    lines: list[str] = []

    (deb,) = fetch([package], lines.append).values()
    archive.remove("busybox-static")
    again = fetch([package], lines.append)

    assert hashlib.sha256(deb.read_bytes()).hexdigest() == package.sha256
    assert again == {"busybox-static": deb}
    assert lines == ["fetching package lists", "downloading busybox-static 1:2.0-1"]


def test_a_damaged_download_in_the_cache_is_fetched_again(archive: Archive) -> None:
    package = archive.add("busybox-static", "2.0")
    (deb,) = fetch([package]).values()
    deb.write_bytes(b"damaged")

    fetch([package])

    assert hashlib.sha256(deb.read_bytes()).hexdigest() == package.sha256


def test_a_version_gone_from_the_archive_is_named(archive: Archive) -> None:
    gone = archive.add("busybox-static", "2.0")
    archive.add("busybox-static", "2.1")
    there = archive.add("zlib1g", "1.0")

    with pytest.raises(images.ImageError) as caught:
        fetch([gone, there])

    message = str(caught.value)
    assert "busybox-static 2.0" in message
    assert "vblk image update" in message
    assert "zlib1g" not in message
    assert "\n" not in message


def test_an_archive_that_cannot_be_read_is_not_taken_for_a_changed_one(
    archive: Archive, tmp_path: Path
) -> None:
    package = archive.add("busybox-static", "2.0")
    (tmp_path / "archive").rename(tmp_path / "elsewhere")

    with pytest.raises(images.ImageError, match=r"offers no Debian packages \(apt: ") as caught:
        fetch([package])

    assert "image update" not in str(caught.value)


def test_other_bytes_under_a_locked_version_are_refused(archive: Archive) -> None:
    package = archive.add("busybox-static", "2.0")
    locked = Package(package.name, package.version, "0" * 64)

    with pytest.raises(images.ImageError, match=f"{package.sha256}, not the locked 0000"):
        fetch([locked])

    assert list((images.cache_dir() / "debs").iterdir()) == []


def test_update_locks_what_the_archive_offers(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipe, "PACKAGES", ("busybox-static",))
    monkeypatch.setattr(lock, "PATH", tmp_path / "packages.lock.json")
    busybox = archive.add("busybox-static", "1:2.0-1")
    kernel = archive.add("linux-image-6.1.0-7-cloud-amd64", "6.1.9-1")
    archive.add(recipe.KERNEL_METAPACKAGE, "6.1.9-1", f"{kernel.name} (= 6.1.9-1)")
    lines: list[str] = []

    images.update(lines.append)

    assert lock.read(lock.PATH) == [busybox, kernel]
    assert "locked busybox-static 1:2.0-1" in lines


def test_update_names_a_package_that_the_archive_lacks(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "PATH", tmp_path / "packages.lock.json")
    archive.add("zlib1g", "1.0")

    with pytest.raises(images.ImageError, match="no package linux-image-cloud-amd64"):
        images.update()

    assert not lock.PATH.exists()


def test_without_apt_the_message_says_so(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = archive.add("busybox-static", "2.0")
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(images.ImageError, match="apt-get and dpkg-deb not found"):
        fetch([package])


@pytest.mark.parametrize("text", ["", "{}", '{"packages": [{"name": "libc6"}]}', "[]"])
def test_a_damaged_lock_file_is_named(text: str, tmp_path: Path) -> None:
    path = tmp_path / "packages.lock.json"
    path.write_text(text)

    with pytest.raises(images.ImageError, match=r"packages\.lock\.json.*vblk image update"):
        lock.read(path)


def test_the_lock_file_names_every_package_of_the_recipe() -> None:
    listed = json.loads(lock.PATH.read_text())["packages"]
    names = {package["name"] for package in listed}

    (kernel,) = names - set(recipe.PACKAGES)
    assert names == {kernel, *recipe.PACKAGES}
    assert kernel.startswith("linux-image-")
    assert kernel.endswith("-cloud-amd64")
    assert all(len(package["sha256"]) == 64 for package in listed)


@pytest.mark.parametrize("name", ['a "cache"', "it's", "a;b", "ca\u00e9 {top} %s"])
def test_a_cache_may_have_any_name(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("VBLK_CACHE", str(tmp_path / name))
    (tmp_path / name).mkdir()
    package = archive.add("busybox-static", "2.0")

    (deb,) = fetch([package]).values()

    assert hashlib.sha256(deb.read_bytes()).hexdigest() == package.sha256


def test_a_configuration_of_the_user_is_left_alone(archive: Archive) -> None:
    theirs = images.cache_dir() / "apt" / "apt.conf"
    theirs.parent.mkdir()
    theirs.write_text("// mine")

    with pytest.raises(images.ImageError, match="is a file of yours: set VBLK_CACHE"):
        fetch([archive.add("busybox-static", "2.0")])

    assert theirs.read_text() == "// mine"


@pytest.mark.parametrize(
    "text",
    ["[" * 5000, "{}", '{"packages": {}}', '{"packages": [{"name": 1}]}', '{"packages": 3}'],
)
def test_a_damaged_lock_file_is_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "packages.lock.json"
    path.write_text(text)

    with pytest.raises(images.ImageError, match="can't be read") as caught:
        lock.read(path)

    assert str(caught.value).isprintable()
