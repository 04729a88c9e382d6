"""The initramfs archive, the module index and the SSH overlay, without building an image."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import stat
import struct
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from images import ImageError, cpio, modules, ssh
from images.guest import bootstrap


def read_cpio(archive: bytes) -> list[tuple[str, int, bytes]]:
    """Return (path, mode, content) of each entry of a newc archive, without the trailer."""
    entries: list[tuple[str, int, bytes]] = []
    at = 0
    while True:
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        name_at = at + 110
        name = archive[name_at : name_at + fields[11] - 1].decode()
        data_at = (name_at + fields[11] + 3) & ~3
        if name == "TRAILER!!!":
            return entries
        assert fields[2:4] == [0, 0], "owner is root"
        assert fields[5] == 0, "the time is 0"
        entries.append((name, fields[1], archive[data_at : data_at + fields[6]]))
        at = (data_at + fields[6] + 3) & ~3


def archive_of(tree: cpio.Tree) -> bytes:
    out = io.BytesIO()
    cpio.write(tree, out)
    return out.getvalue()


def test_an_archive_holds_each_entry_with_its_parents_before_it() -> None:
    tree = cpio.Tree()
    tree.link("usr/bin/sh", "busybox")
    tree.file("usr/bin/busybox", b"\x7fELF!", 0o755)
    tree.directory("tmp", 0o1777)

    assert read_cpio(archive_of(tree)) == [
        ("tmp", stat.S_IFDIR | 0o1777, b""),
        ("usr", stat.S_IFDIR | 0o755, b""),
        ("usr/bin", stat.S_IFDIR | 0o755, b""),
        ("usr/bin/busybox", stat.S_IFREG | 0o755, b"\x7fELF!"),
        ("usr/bin/sh", stat.S_IFLNK | 0o777, b"busybox"),
    ]


def test_an_archive_is_the_same_whatever_the_order_of_making_it() -> None:
    first, second = cpio.Tree(), cpio.Tree()
    first.file("a/b", b"1")
    first.file("c", b"2")
    second.file("c", b"2")
    second.file("a/b", b"1")

    assert archive_of(first) == archive_of(second)
    assert len(archive_of(first)) % 512 == 0


def module(*depends: str) -> bytes:
    return b"\x7fELF\0license=GPL\0depends=" + ",".join(depends).encode() + b"\0name=x\0"


KERNEL = {
    "k/vfio.ko": module(),
    "k/irqbypass.ko": module(),
    "k/vfio-pci-core.ko": module("irqbypass", "vfio"),
    "k/vfio-pci.ko": module("vfio", "vfio-pci-core"),
    "k/virtio_blk.ko": module(),
}


def test_only_needed_modules_are_taken_each_after_what_it_needs() -> None:
    needs = modules.needed(KERNEL, ["vfio_pci"])

    assert set(needs) == set(KERNEL) - {"k/virtio_blk.ko"}
    assert needs["k/vfio-pci.ko"] == ["k/vfio.ko", "k/irqbypass.ko", "k/vfio-pci-core.ko"]


def test_modules_dep_names_the_first_to_load_last() -> None:
    text = modules.modules_dep(modules.needed(KERNEL, ["vfio_pci"]))

    assert "k/vfio.ko:\n" in text
    assert "k/vfio-pci.ko: k/vfio-pci-core.ko k/irqbypass.ko k/vfio.ko\n" in text


def test_a_module_the_kernel_lacks_is_named() -> None:
    with pytest.raises(ImageError, match="no module vfio_noiommu"):
        modules.needed(KERNEL, ["vfio_noiommu"])


def test_keys_are_made_once_and_private(tmp_path: Path) -> None:
    ssh.ensure_keys(tmp_path / "keys")
    first = (tmp_path / "keys" / ssh.CLIENT_KEY).read_bytes()
    ssh.ensure_keys(tmp_path / "keys")

    assert (tmp_path / "keys" / ssh.CLIENT_KEY).read_bytes() == first
    assert first.startswith(b"-----BEGIN OPENSSH PRIVATE KEY-----")
    for path in (tmp_path / "keys").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_overlay_has_the_pinned_host_key_in_the_format_of_dropbear(tmp_path: Path) -> None:
    ssh.ensure_keys(tmp_path)
    files = {path: (mode, data) for path, mode, data in read_cpio(ssh.overlay(tmp_path))}
    mode, key = files["etc/dropbear/host_key"]

    assert stat.S_IMODE(mode) == 0o600
    assert key[:15] == struct.pack(">I", 11) + b"ssh-ed25519"
    assert key[15:19] == struct.pack(">I", 64)
    private, public = key[19:51], key[51:]
    derived_key = Ed25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()
    assert derived_key == public
    kind, pinned = ssh.host_key_line(tmp_path).split()
    assert kind == "ssh-ed25519"
    assert base64.b64decode(pinned).endswith(public)
    assert stat.S_IMODE(files["root/.ssh"][0]) == 0o700
    line = files["root/.ssh/authorized_keys"][1]
    assert line.startswith(b'permitopen="127.0.0.1:%d" ssh-ed25519 ' % ssh.AGENT_PORT)


@pytest.mark.parametrize(
    "line", [b"", b"VBLK-CODE", b"VBLK-CODE 12", b"VBLK-CODE -1 aa", b"VBLK-CODE x aa", b"\xff\0"]
)
def test_the_bootstrap_skips_noise(line: bytes) -> None:
    assert bootstrap.parse_offer(line) is None


def test_the_bootstrap_finds_the_code_behind_noise_and_a_damaged_copy(tmp_path: Path) -> None:
    code = os.urandom(10_000)
    digest = hashlib.sha256(code).hexdigest().encode()
    damaged = bytes([code[0] ^ 1]) + code[1:]
    offer = b"VBLK-CODE 10000 " + digest + b"\n"
    sent = tmp_path / "sent"
    sent.write_bytes(b"[ 1.0] noise\n\xfe\0" + offer + damaged + b"more\n" + offer + code + b"next")
    read_fd = os.open(sent, os.O_RDONLY)
    answers_fd, write_fd = os.pipe()
    try:
        assert bootstrap.receive_code(read_fd, write_fd) == code
        assert os.read(read_fd, 10) == b"next", "the bytes after the code are left for the agent"
        got = b"VBLK-GOT 4096\nVBLK-GOT 8192\nVBLK-GOT 10000\n"
        assert os.read(answers_fd, 4096) == got + b"VBLK-BAD\n" + got
    finally:
        for descriptor in (read_fd, answers_fd, write_fd):
            os.close(descriptor)


def test_the_bootstrap_ends_with_its_stream() -> None:
    read_fd, write_fd = os.pipe()
    os.write(write_fd, b"VBLK-CODE 5 aa\nabc")
    os.close(write_fd)
    try:
        with (
            pytest.raises(SystemExit, match="stream ended"),
            Path(os.devnull).open("wb") as answers,
        ):
            bootstrap.receive_code(read_fd, answers.fileno())
    finally:
        os.close(read_fd)
