"""Kernels of Debian: their files, modules that are needed, and a busybox for the same processor."""

from __future__ import annotations

import lzma
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import images
from harness.drivers import userland
from harness.drivers.base import NotHereError
from images import ImageError, foreign

WORDS_ARM64 = "console=ttyAMA0 quiet panic=-1 oops=panic cryptomgr.notests mitigations=off"
"""The kernel's command line on QEMU's board for arm64."""

MAX_MODULE = 64 << 20
"""Bytes of a module at most."""


@dataclass(frozen=True)
class Kernel:
    """A kernel: its release, its image, all modules by path, and a static busybox."""

    release: str
    image: Path
    modules: Mapping[str, bytes]
    busybox: bytes

    def needed(self, wanted: Sequence[str]) -> dict[str, bytes]:
        """Return modules and those that they need; what is built in is left out."""
        known = {Path(path).stem.replace("-", "_") for path in self.modules}
        present = [name for name in wanted if name in known]
        return userland.needed_modules(self.modules, present)


class Modules(Mapping[str, bytes]):
    """The modules of a kernel in a directory, by path without the suffix of the compression.

    They are read when they are asked for.
    """

    def __init__(self, top: Path) -> None:
        self._files = {
            str(path.relative_to(top)).removesuffix(".xz"): path
            for path in sorted(top.rglob("*.ko*"))
        }

    def __getitem__(self, name: str) -> bytes:
        path = self._files[name]
        content = path.read_bytes()
        if path.suffix != ".xz":
            return content
        return lzma.LZMADecompressor().decompress(content, MAX_MODULE)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def of_the_image() -> Kernel:
    """Return the kernel of the guest image. NotHereError if it cannot be had."""
    try:
        image = images.ensure()
        packages = userland.packages()
        deb = next(deb for name, deb in packages.items() if name.startswith("linux-image-"))
        files = userland.files_of(deb)
        busybox = userland.busybox()
    except ImageError as error:
        raise NotHereError(f"the guest image is missing: {error}") from None
    found = {path: content for path, content in files.items() if path.endswith(".ko")}
    return Kernel(next(iter(found)).split("/")[2], image.kernel, found, busybox)


def of_the_set(name: str) -> Kernel:
    """Return the kernel of a locked set of packages. NotHereError if it cannot be had."""
    try:
        root = foreign.ensure(name) / "root"
        # Since Linux 7 the image is next to the modules.
        (modules,) = (root / "usr/lib/modules").iterdir()
        (image,) = (*(root / "boot").glob("vmlinuz-*"), *modules.glob("vmlinuz"))
        busybox = (root / "usr/bin/busybox").read_bytes()
    except (ImageError, OSError, ValueError) as error:
        raise NotHereError(f"run: vblk image foreign {name} ({error})") from None
    return Kernel(modules.name, image, Modules(modules), busybox)
