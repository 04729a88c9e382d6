"""Contents of the guest image: files of Debian packages, and our own files.

`update` writes the versions of `PACKAGES` to the lock file. `build` makes the reproducible part
of the image from exactly these .deb files. It needs no root and no mount: it reads packages as
archives, and writes the initramfs as an archive.
"""

from __future__ import annotations

import errno
import io
import os
import re
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath

from images import cpio, modules
from images.errors import ImageError

# The kernel is found through its metapackage, whose dependency names the current version.
KERNEL_METAPACKAGE = "linux-image-cloud-amd64"
PACKAGES = (
    "busybox-static",
    "dropbear-bin",
    "python3.11-minimal",
    "libpython3.11-minimal",
    "libpython3.11-stdlib",
    # libraries of the above
    "libc6",
    "libcrypt1",
    "libexpat1",
    "libffi8",
    "libgmp10",
    "libtomcrypt1",
    "libtommath1",
    "zlib1g",
)

# No virtio driver is among them: the kernel's PCI hot plug binds a loaded driver to a new device
# even if `drivers_autoprobe` is off, so virtio_pci would take every disk under test. The network
# card is vmxnet3, the only other one that both the cloud kernel and QEMU have.
MODULES = ("uio_pci_generic", "vfio_iommu_type1", "vfio_pci", "vmxnet3")

# For QEMU's -append. A guest that panics resets at once, which ends a QEMU with -no-reboot.
# Measured under TCG: the crypto self-tests take 0.4 s of the boot, and page-table isolation
# flushes QEMU's TLB at every system call. The kernel's check of the timer interrupt counts ticks
# during a busy loop; on a busy host it panics although the timer works.
_ALWAYS = (
    "console=ttyS0 quiet panic=-1 oops=panic cryptomgr.notests mitigations=off ipv6.disable=1"
    " no_timer_check"
)
# Without noirq every bind and unbind of a PCI driver walks ACPI's routing table: 0.3 s under TCG.
KERNEL_ARGS = f"{_ALWAYS} acpi=noirq"
# On a microvm only ACPI has the interrupt routing, and there is no timer to calibrate the time
# stamp counter: the kernel tries it, and under TCG every second boot hung there.
KERNEL_ARGS_MICROVM = f"{_ALWAYS} tsc_early_khz=2000000"
# With noirq, the driver of an Intel IOMMU finds no vector for its own interrupt, and fails.
KERNEL_ARGS_IOMMU = f"{_ALWAYS} intel_iommu=on"

GUEST_DIR = Path(__file__).parent / "guest"

_MERGED = ("bin", "lib", "lib64", "sbin")  # links into usr/
_LIBRARY = re.compile(
    r"usr/lib64/ld-linux-x86-64\.so\.2"
    r"|usr/lib/x86_64-linux-gnu/"
    r"(ld-linux-x86-64|lib(c|m|z|crypt|expat|ffi|gmp|tomcrypt|tommath))\.so\..*"
)
_PROGRAMS = {"usr/bin/busybox", "usr/bin/python3.11", "usr/sbin/dropbear"}

_PYTHON = "usr/lib/python3.11"
# Parts of the standard library that a guest agent does not use, or whose libraries are absent.
_PYTHON_WITHOUT = {
    "asyncio",
    "curses",
    "dbm",
    "distutils",
    "email",
    "ensurepip",
    "html",
    "http",
    "idlelib",
    "lib2to3",
    "multiprocessing",
    "pydoc_data",
    "sqlite3",
    "test",
    "tkinter",
    "turtledemo",
    "unittest",
    "venv",
    "wsgiref",
    "xml",
    "xmlrpc",
}
_PYTHON_EXTENSIONS = {
    "_contextvars",
    "_ctypes",
    "_json",
    "_posixshmem",
    "_queue",
    "_typing",
    "mmap",
    "resource",
    "termios",
}

# Run by the packaged Python. Hash-based and never checked, so that a .pyc contains no time. It is
# next to the source (not in __pycache__), so that Python finds it without the source.
_COMPILER = f"""
import pathlib, py_compile, sys
root = pathlib.Path(sys.argv[1])
for path in sorted((root / "{_PYTHON}").rglob("*.py")):
    py_compile.compile(
        str(path), f"{{path}}c", f"/{{path.relative_to(root)}}", doraise=True,
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )
"""

_PASSWD = b"root:!:0:0:root:/root:/bin/sh\n"
_GROUP = b"root:x:0:\n"
_SHELLS = b"/bin/sh\n"
_TOOL_DEADLINE = 120.0  # seconds


def build(debs: Mapping[str, Path], out: Path, progress: Callable[[str], None]) -> str:
    """Write `vmlinuz` and `base.cpio` into the directory `out`, and return the kernel's release.

    `debs` has a .deb file for each of `PACKAGES` and one whose name starts with `linux-image-`.
    Raises ImageError, and OSError when a file can't be written.
    """
    tree = cpio.Tree()
    for path in _MERGED:
        tree.link(path, f"usr/{path}")
    stdlib: dict[str, bytes] = {}
    release = ""
    for name, deb in sorted(debs.items()):
        progress(f"unpacking {name}")
        if name.startswith("linux-image-"):
            release = _add_kernel(tree, deb, out / "vmlinuz")
            continue
        for path, member, data in _members(deb):
            if path in _PROGRAMS or _LIBRARY.fullmatch(path) or _is_wanted_extension(path):
                _add_member(tree, path, member, data)
            elif _is_wanted_source(path):
                stdlib[path] = data
    progress("compiling Python's standard library")
    _add_host_made(tree, stdlib, out)
    _add_own(tree)
    progress("writing the initramfs")
    with (out / "base.cpio").open("wb") as file:
        cpio.write(tree, file)
    return release


def _members(deb: Path) -> Iterator[tuple[str, tarfile.TarInfo, bytes]]:
    """Yield a package's files and links: path as on a merged /usr, metadata, content."""
    unpacked = _run(["dpkg-deb", "--fsys-tarfile", str(deb)])
    with tarfile.open(fileobj=io.BytesIO(unpacked)) as tar:
        for member in tar:
            if not (member.isfile() or member.issym()):
                continue
            path = member.name.removeprefix("./")
            if path.split("/")[0] in _MERGED:
                path = f"usr/{path}"
            content = tar.extractfile(member) if member.isfile() else None
            yield path, member, content.read() if content else b""


def _add_member(tree: cpio.Tree, path: str, member: tarfile.TarInfo, data: bytes) -> None:
    if member.issym():
        tree.link(path, member.linkname)
    else:
        tree.file(path, data, member.mode & 0o755)


def _add_kernel(tree: cpio.Tree, deb: Path, vmlinuz: Path) -> str:
    release = ""
    found: dict[str, bytes] = {}
    for path, _, data in _members(deb):
        if path.startswith("boot/vmlinuz-"):
            release = path.removeprefix("boot/vmlinuz-")
            vmlinuz.write_bytes(data)
        elif path.endswith(".ko"):
            found[path] = data
    if not release:
        raise ImageError(f"{deb.name} has no kernel in it")
    top = f"usr/lib/modules/{release}"
    by_relative_path = {str(PurePosixPath(path).relative_to(top)): found[path] for path in found}
    needs = modules.needed(by_relative_path, MODULES)
    for path in needs:
        tree.file(f"{top}/{path}", by_relative_path[path])
    tree.file(f"{top}/modules.dep", modules.modules_dep(needs).encode())
    return release


def _is_wanted_extension(path: str) -> bool:
    top, _, name = path.rpartition("/")
    return top == f"{_PYTHON}/lib-dynload" and name.split(".")[0] in _PYTHON_EXTENSIONS


def _is_wanted_source(path: str) -> bool:
    if not (path.startswith(f"{_PYTHON}/") and path.endswith(".py")):
        return False
    return path.removeprefix(f"{_PYTHON}/").split("/")[0] not in _PYTHON_WITHOUT


def _add_host_made(tree: cpio.Tree, stdlib: Mapping[str, bytes], work: Path) -> None:
    """Add files that the packages' own programs create: bytecode, and links for busybox.

    Compiling imports in the guest takes seconds under TCG. The packaged Python compiles its own
    library, so the bytecode does not depend on the host's Python.
    """
    with tempfile.TemporaryDirectory(dir=work) as name:
        root = Path(name)
        programs = {path: entry for path, entry in tree.entries() if path.startswith("usr/")}
        for path, entry in programs.items():
            target = root / path
            if entry.is_directory:
                target.mkdir(parents=True)
            elif entry.is_link:
                target.symlink_to(entry.data.decode())
            else:
                target.write_bytes(entry.data)
                target.chmod(entry.mode & 0o777)
        for path, data in stdlib.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(data)
        _compile(root)
        for path in stdlib:
            tree.file(f"{path}c", (root / f"{path}c").read_bytes())
        for applet in _run([str(root / "usr/bin/busybox"), "--list-full"]).decode().split():
            path = applet if applet.startswith("usr/") else f"usr/{applet}"
            if path not in tree:
                tree.link(path, "/bin/busybox")


def _compile(root: Path) -> None:
    libraries = root / "usr/lib/x86_64-linux-gnu"
    python = [
        str(libraries / "ld-linux-x86-64.so.2"),
        "--library-path",
        str(libraries),
        str(root / "usr/bin/python3.11"),
    ]
    environment = {"PYTHONHOME": str(root / "usr"), "PYTHONHASHSEED": "0"}
    _run([*python, "-S", "-s", "-c", _COMPILER, str(root)], environment)


def _add_own(tree: cpio.Tree) -> None:
    tree.file("init", (GUEST_DIR / "init").read_bytes(), 0o755)
    tree.file("agent/bootstrap.py", (GUEST_DIR / "bootstrap.py").read_bytes())
    tree.file("etc/passwd", _PASSWD)
    tree.file("etc/group", _GROUP)
    tree.file("etc/shells", _SHELLS)
    for path in ("dev", "proc", "run", "sys"):
        tree.directory(path)
    tree.directory("root", 0o700)
    tree.directory("tmp", 0o1777)


def _run(command: list[str], environment: Mapping[str, str] | None = None) -> bytes:
    """Run a program and return its output. ImageError if it is missing, fails or is too slow."""
    env = {**os.environ, "LC_ALL": "C", **(environment or {})}
    try:
        return subprocess.run(
            command, env=env, check=True, capture_output=True, timeout=_TOOL_DEADLINE
        ).stdout
    except FileNotFoundError:
        raise ImageError(f"{command[0]} is missing: apt-get install dpkg") from None
    except subprocess.TimeoutExpired:
        raise ImageError(f"{command[0]} took more than {_TOOL_DEADLINE:.0f} s") from None
    except subprocess.CalledProcessError as error:
        complaint = error.stderr.decode(errors="replace")
        if "No space left on device" in complaint:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None
        last = complaint.strip().splitlines()[-1:]
        raise ImageError(f"{Path(command[0]).name} failed: {''.join(last)}") from None
