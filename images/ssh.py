"""The SSH keys of one cache: a client key, and the guest's pinned host key.

They are created once per cache and never leave it. They are not part of the reproducible image:
they are in a second, small cpio archive after it, which the kernel unpacks over the first.
"""

from __future__ import annotations

import errno
import io
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING

from images import cpio

# `cryptography` is imported late: most runs only import this module.
if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

CLIENT_KEY = "id_ed25519"
_HOST_KEY = "host_ed25519"

AGENT_PORT = 4041
"""The guest's TCP port on 127.0.0.1 that the SSH server may forward to; no other one."""


def ensure_keys(directory: Path) -> None:
    """Create the keys that are missing in `directory`. The caller holds the cache's lock."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in (CLIENT_KEY, _HOST_KEY):
        try:
            _load(directory / name)
        except (OSError, ValueError):
            _save(Ed25519PrivateKey.generate(), directory / name)


def host_key_line(directory: Path) -> str:
    """Return the guest's public host key, as `ssh-ed25519 AAAA...`."""
    return _public(_load(directory / _HOST_KEY))


def overlay(directory: Path) -> bytes:
    """Return the cpio archive with the keys for the guest."""
    client = _public(_load(directory / CLIENT_KEY))
    options = f'permitopen="127.0.0.1:{AGENT_PORT}"'
    tree = cpio.Tree()
    tree.directory("root", 0o700)
    tree.directory("root/.ssh", 0o700)
    tree.file("root/.ssh/authorized_keys", f"{options} {client}\n".encode(), 0o600)
    tree.file("etc/dropbear/host_key", _dropbear_format(_load(directory / _HOST_KEY)), 0o600)
    archive = io.BytesIO()
    cpio.write(tree, archive)
    return archive.getvalue()


def _load(path: Path) -> Ed25519PrivateKey:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, "No such file", str(path))
    key = serialization.load_ssh_private_key(path.read_bytes(), password=None)
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError(f"{path} is not an ed25519 key")
    return key


def _save(key: Ed25519PrivateKey, path: Path) -> None:
    from cryptography.hazmat.primitives import serialization

    text = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    temporary = path.with_suffix(".new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(text)
    temporary.replace(path)


def _public(key: Ed25519PrivateKey) -> str:
    from cryptography.hazmat.primitives import serialization

    return (
        key.public_key()
        .public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        .decode()
    )


def _dropbear_format(key: Ed25519PrivateKey) -> bytes:
    """Return dropbear's key file: two SSH strings, the key type, and private and public bytes."""
    raw = key.private_bytes_raw() + key.public_key().public_bytes_raw()
    return b"".join(struct.pack(">I", len(part)) + part for part in (b"ssh-ed25519", raw))
