"""Arguments for a disk in QEMU's block layer and for its virtio-blk device.

The nodes, from the file up, are: file or null-co, raw, blkdebug for faults,
throttle for a limit of operations. The node on top has the drive's name. The
device uses it, and only a `block_resize` of this node notifies the device (a
resize of a lower node changes only the file).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.diskspec import SECTOR, DiskSpec, Fault
from harness.machine.errors import MachineError

Options = dict[str, Any]


@dataclass(frozen=True)
class BlockGraph:
    """Arguments of object-add, of blockdev-add (lowest node first) and of device_add.

    A vhost-user device has no nodes. It has a `socket`, and a character device
    with the name of the disk.
    """

    objects: tuple[Options, ...]
    nodes: tuple[Options, ...]
    device: Options
    socket: Path | None = None


HONOURED = frozenset(
    {
        *("capacity", "backing", "read_only", "logical_block_size", "physical_block_size"),
        *("geometry", "min_io_size", "opt_io_size", "serial", "queues", "queue_size"),
        *("seg_max_adjust", "write_cache", "config_wce", "discard", "write_zeroes"),
        *("max_discard_sectors", "max_write_zeroes_sectors", "event_idx", "indirect_desc"),
        *("packed", "in_order", "unmap", "iops", "faults", "image", "iothreads", "on_error"),
        *("scsi", "msix", "notify_port"),
    }
)
"""Fields of `DiskSpec` that QEMU's virtio-blk with a drive supports."""


def build_vhost_user(name: str, spec: DiskSpec, attachment: Options, socket: Path) -> BlockGraph:
    """Return the graph of the drive `name` whose back-end listens on a UNIX socket."""
    wanted: Options = {
        "num-queues": spec.queues,
        "queue-size": spec.queue_size,
        "config-wce": spec.config_wce,
        "event_idx": spec.event_idx,
        "indirect_desc": spec.indirect_desc,
        "packed": spec.packed,
        "in_order": spec.in_order,
    }
    mmio = str(attachment.get("bus", "")).startswith("virtio-mmio")
    device = {
        **attachment,
        "driver": "vhost-user-blk" if mmio else "vhost-user-blk-pci",
        "id": name,
        "chardev": name,
        **{key: value for key, value in wanted.items() if value is not None},
    }
    return BlockGraph((), (), device, socket)


def build_vfio_user(name: str, place: Options, socket: Path) -> BlockGraph:
    """Return the graph of a PCI function that a vfio-user server has; `place` is its bus."""
    address = {"type": "unix", "path": str(socket)}
    return BlockGraph((), (), {**place, "driver": "vfio-user-pci", "id": name, "socket": address})


def build(
    name: str, spec: DiskSpec, attachment: Options, path: Path | None, scratch: bool = False
) -> BlockGraph:
    """Return the graph of the drive `name` over the file `path` (None: null-co).

    `attachment` has the device's driver and its place in the machine. A `scratch` file is deleted
    with the disk, so nobody reads it after a crash of the host, and a flush need not wait for the
    host's disk. Raises MachineError for a fault that cannot be injected.
    """
    objects: list[Options] = []
    nodes: list[Options] = []
    if path is None:
        nodes.append({"driver": "null-co", "size": spec.capacity * SECTOR, "read-zeroes": True})
    else:
        nodes.append({"driver": "file", "filename": str(path)})
        if scratch:
            nodes[-1]["cache"] = {"no-flush": True}
        nodes.append({"driver": spec.image, "file": f"{name}-file"})
    if spec.faults:
        below = f"{name}-{nodes[-1]['driver']}"
        faults = [_inject(name, fault) for fault in spec.faults]
        nodes.append({"driver": "blkdebug", "image": below, "inject-error": faults})
        if any(fault.on == "flush" for fault in spec.faults):
            # A file supports a write with forced unit access (FUA), and blkdebug passes it on.
            # A quorum does not support FUA, so the block layer sends a write and a flush instead.
            below = f"{name}-blkdebug"
            nodes.append({"driver": "quorum", "children": [below], "vote-threshold": 1})
    if spec.iops is not None:
        below = f"{name}-{nodes[-1]['driver']}"
        group = f"{name}-limit"
        limits = {"iops-total": spec.iops}
        objects.append({"qom-type": "throttle-group", "id": group, "limits": limits})
        nodes.append({"driver": "throttle", "file": below, "throttle-group": group})
    for node in nodes:
        node["node-name"] = f"{name}-{node['driver']}"
        # A node passes discards on only if it has this option, so all nodes have it.
        node["discard"] = "unmap" if spec.unmap else "ignore"
        node["read-only"] = spec.read_only
    nodes[-1]["node-name"] = name
    threads = [f"{name}-iothread{number}" for number in range(spec.iothreads or 0)]
    objects += [{"qom-type": "iothread", "id": thread} for thread in threads]
    device = _device(name, spec, attachment) | _served_by(threads)
    return BlockGraph(tuple(objects), tuple(nodes), device)


def _served_by(threads: Sequence[str]) -> Options:
    """Return the options of a device whose virtqueues are served by these threads by turns."""
    if not threads:
        return {}
    if len(threads) == 1:
        return {"iothread": threads[0]}
    return {"iothread-vq-mapping": [{"iothread": thread} for thread in threads]}


def _inject(name: str, fault: Fault) -> Options:
    # QEMU's block layer skips a flush if nothing was written since the last one. Then a fault
    # on flush does not happen.
    rule: Options = {
        "event": "none",
        "iotype": fault.on,
        "errno": fault.errno,
        "once": fault.once,
    }
    if fault.sector is not None:
        if fault.on == "flush":
            raise MachineError(f"{name}: a flush has no sector; leave out the fault's sector")
        rule["sector"] = fault.sector
    return rule


def _device(name: str, spec: DiskSpec, attachment: Options) -> Options:
    cylinders, heads, sectors = spec.geometry or (None, None, None)
    options: Options = {
        **attachment,
        "id": name,
        "drive": name,
        # By default QEMU stops the machine when the host's disk is full (ENOSPC), instead
        # of telling the driver.
        "werror": spec.on_error,
        # A read cannot fail with ENOSPC, so QEMU does not accept that here.
        "rerror": "report" if spec.on_error == "enospc" else spec.on_error,
    }
    wanted: Options = {
        "logical_block_size": spec.logical_block_size,
        # QEMU does not accept a logical block that is larger than a physical one.
        "physical_block_size": spec.physical_block_size or spec.logical_block_size,
        "cyls": cylinders,
        "heads": heads,
        "secs": sectors,
        "min_io_size": spec.min_io_size,
        "opt_io_size": spec.opt_io_size,
        "serial": spec.serial,
        "num-queues": spec.queues,
        "queue-size": spec.queue_size,
        "seg-max-adjust": spec.seg_max_adjust,
        "write-cache": None if spec.write_cache is None else "on" if spec.write_cache else "off",
        "config-wce": spec.config_wce,
        "discard": spec.discard,
        "write-zeroes": spec.write_zeroes,
        "max-discard-sectors": spec.max_discard_sectors,
        "max-write-zeroes-sectors": spec.max_write_zeroes_sectors,
        "event_idx": spec.event_idx,
        "indirect_desc": spec.indirect_desc,
        "packed": spec.packed,
        "in_order": spec.in_order,
        "scsi": spec.scsi,
        "vectors": 0 if spec.msix is False else None,
        "modern-pio-notify": spec.notify_port,
    }
    if spec.scsi and "disable-modern" in attachment:
        wanted["disable-modern"] = True  # QEMU refuses SCSI commands of any other device
    options.update({key: value for key, value in wanted.items() if value is not None})
    return options
