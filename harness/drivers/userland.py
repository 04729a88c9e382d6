"""The initramfs of a Linux that works on the disk: busybox, kernel modules, and the work.

The work is chosen on the kernel's command line (`vblk.work=use,discard`), or in lines on the
console. Each piece of work ends with a line on the console: "vblk: use done" or "vblk: use failed".
"""

from __future__ import annotations

import io
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from functools import cache as cached
from pathlib import Path, PurePosixPath

from images import cache, cpio, lock, modules
from images.errors import ImageError

UNPACK_DEADLINE = 60.0
"""Seconds that a package may take to be unpacked."""

WORKS = ("use", "discard", "filesystem", "resize", "rebind", "parallel")
"""Kinds of work that the script below has."""

PREFIX = "vblk: "
READY = "vblk: ready"
ASK_FOR_RESIZE = "vblk: waits for a resize"
WRONG_DATA = "vblk: wrong data"
NO_DISK = "vblk: there is no disk"
END = "vblk: end"

INIT = r"""#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs tmp /tmp
. /works
works= legacy= cold=
for argument in $(cat /proc/cmdline); do
    case $argument in
        vblk.work=*) works=$(echo ${argument#*=} | tr , ' ') ;;
        vblk.legacy) legacy=force_legacy=1 ;;
        vblk.cold) cold=yes ;;
    esac
done
load() {
    for module in /modules/*; do
        case $module in *virtio_pci.ko) insmod $module $legacy ;; *) insmod $module ;; esac
    done
}
if [ -z "$cold" ]; then load; fi
if [ -z "$works" ]; then
    stty -echo
    echo "vblk: ready"
    read works
fi
if [ -n "$cold" ]; then
    if [ -e /sys/bus/pci/rescan ]; then echo 1 > /sys/bus/pci/rescan; fi
    load
fi
do_works $works
sync
poweroff -f
"""

SCRIPT = r"""
size() { cat /sys/block/vda/size; }
read_only() { [ "$(cat /sys/block/vda/ro)" = 1 ]; }
forget() { echo 3 > /proc/sys/vm/drop_caches; }

wait_for() {
    for n in $(seq 600); do
        if [ "$@" ]; then return; fi
        sleep 0.05
    done
    return 1
}

same() {
    forget
    dd if=/dev/vda of=/tmp/back bs=64k skip=$1 count=1 2>/dev/null || return
    cmp -s /tmp/back /tmp/data && return
    echo "vblk: wrong data"
    return 1
}

disk_appears() {
    for n in $(seq 600); do
        if [ -b /dev/vda ]; then return; fi
        if dmesg | grep -q 'virtio.*failed with error'; then return 1; fi
        sleep 0.05
    done
    return 1
}

do_works() {
    if disk_appears; then
        for work in "$@"; do
            if work_$work; then echo "vblk: $work done"; else echo "vblk: $work failed"; fi
        done
    else
        dmesg | grep virtio
        echo "vblk: there is no disk"
    fi
    echo "vblk: end"
}

work_use() {
    last=$(($(size) / 128 - 1))
    dd if=/dev/vda of=/dev/null bs=64k count=2 2>/dev/null || return
    dd if=/dev/vda of=/dev/null bs=64k skip=$last count=1 2>/dev/null || return
    if read_only; then return 0; fi
    head -c 65536 /dev/urandom > /tmp/data
    for place in 1 $last; do
        dd if=/tmp/data of=/dev/vda bs=64k seek=$place conv=fsync 2>/dev/null || return
        same $place || return
    done
    cat /sys/block/vda/serial > /dev/null
    cat /sys/block/vda/cache_type > /dev/null
}

work_discard() {
    if [ "$(cat /sys/block/vda/queue/discard_max_bytes)" != 0 ]; then
        blkdiscard -o 1048576 -l 1048576 /dev/vda || return
    fi
    if [ "$(cat /sys/block/vda/queue/write_zeroes_max_bytes)" != 0 ]; then
        blkdiscard -z -o 4194304 -l 1048576 /dev/vda 2>/dev/null
    fi
    return 0
}

work_filesystem() {
    mkdir -p /mnt
    mke2fs -b 4096 /dev/vda > /dev/null || return
    mount -t ext4 /dev/vda /mnt || return
    head -c 2097152 /dev/urandom > /mnt/a
    sum=$(md5sum < /mnt/a)
    cp /mnt/a /mnt/b
    umount /mnt
    forget
    mount -t ext4 /dev/vda /mnt || return
    back=$(md5sum < /mnt/b) || return
    if [ "$sum" != "$back" ]; then
        echo "vblk: wrong data"
        return 1
    fi
    rm /mnt/a
    sync
    if [ "$(cat /sys/block/vda/queue/discard_max_bytes)" != 0 ]; then fstrim /mnt || return; fi
    umount /mnt
}

work_resize() {
    old=$(size)
    echo "vblk: waits for a resize"
    for n in $(seq 600); do
        if [ "$(size)" != $old ]; then break; fi
        sleep 0.05
    done
    [ "$(size)" != $old ] && dd if=/dev/vda of=/dev/null bs=512 skip=$old count=8 2>/dev/null
}

work_rebind() {
    device=$(basename $(readlink -f /sys/block/vda/device))
    echo $device > /sys/bus/virtio/drivers/virtio_blk/unbind || return
    wait_for ! -e /dev/vda || return
    echo $device > /sys/bus/virtio/drivers/virtio_blk/bind || return
    wait_for -b /dev/vda && work_use
}

work_parallel() {
    pids=
    for place in 0 8 16 24; do
        dd if=/dev/vda of=/dev/null bs=4k iflag=direct skip=$place count=8 2>/dev/null &
        pids="$pids $!"
    done
    for pid in $pids; do wait $pid || return; done
}
"""


@cached
def files_of(deb: Path) -> dict[str, bytes]:
    """Return the regular files in a Debian package by path. ImageError if it cannot be read."""
    try:
        unpacked = subprocess.run(
            ["dpkg-deb", "--fsys-tarfile", deb],
            check=True,
            capture_output=True,
            timeout=UNPACK_DEADLINE,
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise ImageError(f"{deb.name} cannot be unpacked: {error}") from None
    found = {}
    with tarfile.open(fileobj=io.BytesIO(unpacked)) as tar:
        for member in tar:
            file = tar.extractfile(member) if member.isfile() else None
            if file:
                found[member.name.removeprefix("./")] = file.read()
    return found


@cached
def packages() -> dict[str, Path]:
    """Return the packages of the guest image as files, by name. ImageError if that fails."""
    return cache.fetch(cache.cache_dir(), lock.read(lock.PATH), lambda line: None)


def busybox() -> bytes:
    """Return the busybox of the guest image. ImageError if it cannot be downloaded."""
    return files_of(packages()["busybox-static"])["bin/busybox"]


def needed_modules(found: Mapping[str, bytes], wanted: Sequence[str]) -> dict[str, bytes]:
    """Return kernel modules and those that they need, by name, in the order of loading."""
    return {path: found[path] for path in modules.needed(found, wanted)}


def write(path: Path, drivers: Mapping[str, bytes], busybox: bytes) -> None:
    """Write an initramfs with kernel modules and a static busybox."""
    tree = cpio.Tree()
    tree.file("bin/busybox", busybox, 0o755)
    for name in ("dev", "proc", "sys", "tmp", "mnt", "modules"):
        tree.directory(name)
    for number, (name, content) in enumerate(drivers.items()):
        tree.file(f"modules/{number:02}-{PurePosixPath(name).name}", content)
    tree.file("works", SCRIPT.encode())
    tree.file("init", INIT.encode(), 0o755)
    with path.open("wb") as file:
        cpio.write(tree, file)
