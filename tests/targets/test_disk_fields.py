"""Every target honours a field of `DiskSpec`, or refuses it by name; none ignores one."""

from __future__ import annotations

import ast
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from harness.diskspec import DiskSpec, Fault, unsupported
from harness.machine import blockgraph, storage_daemon
from harness.targets import LacksError, daemon, found, model, qtest, vhost_user
from harness.targets.guest.target import GuestTarget
from harness.targets.profiles import profiles
from harness.targets.registry import Settings, descriptions, maker

ROOT = Path(__file__).parents[2]

VALUES: dict[str, Any] = {
    "capacity": 4096,
    "backing": "null",
    "read_only": True,
    "logical_block_size": 4096,
    "physical_block_size": 4096,
    "geometry": (2, 16, 63),
    "min_io_size": 4096,
    "opt_io_size": 8192,
    "serial": "abc",
    "queues": 2,
    "queue_size": 64,
    "seg_max_adjust": False,
    "write_cache": False,
    "config_wce": False,
    "discard": False,
    "write_zeroes": False,
    "max_discard_sectors": 8,
    "max_write_zeroes_sectors": 8,
    "event_idx": False,
    "indirect_desc": False,
    "packed": True,
    "in_order": True,
    "fua": True,
    "express": True,
    "unmap": False,
    "iops": 100,
    "faults": (Fault("read", sector=3),),
    "zoned": "host-managed",
    "zone_sectors": 2048,
    "zone_capacity": 1024,
    "conventional_zones": 1,
    "max_open_zones": 2,
    "max_active_zones": 2,
    "max_append_sectors": 8,
    "write_granularity": 4096,
    "zones_read_only": (1,),
    "zones_offline": (1,),
    "secure_erase": True,
    "lifetime": (1, 2, 3),
    "scsi": True,
    "msix": False,
    "notify_port": True,
    "members": 2,
    "image": "qcow2",
    "iothreads": 2,
    "on_error": "stop",
}
"""A value of each field that is not its default."""

# A profile's file says which fields it honours, and its program may be missing here.
NAMES = [name for name in descriptions() if ":" not in name and name not in profiles()]


def honoured(name: str) -> frozenset[str]:
    """Return the fields that a target says that it supports."""
    if name in model.VARIANTS:
        return model.VARIANTS[name].honoured
    if name == "guest-model-pci":
        return model.HONOURED
    if name == "vhost-user":
        return storage_daemon.HONOURED | vhost_user.FRONT_END
    if name.endswith("vhost-user"):
        return storage_daemon.HONOURED | daemon.BY_QEMU
    owned = ":" in name or name == "owned-model"
    shown = found.READABLE | found.CHOSEN_BY_DRIVER | found.ZONES
    if owned:
        return shown
    return blockgraph.HONOURED | ({"express"} if name in qtest.EXPRESS else set())


def test_every_field_has_a_value_here_that_is_not_its_default() -> None:
    names = [field.name for field in fields(DiskSpec)]

    assert list(VALUES) == names, "a new field of DiskSpec: say here what it can be"
    assert unsupported(DiskSpec(**VALUES), frozenset()) == names


@pytest.mark.parametrize("name", [*NAMES, "vhost-user:/no/such/socket"])
def test_what_a_target_does_not_honour_it_refuses_by_name(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GuestTarget, "_working_guest", lambda self: None)
    target = maker(name, {})(Settings(destructive=True))
    assert honoured(name) <= set(VALUES)

    for field in sorted(set(VALUES) - honoured(name)):
        with pytest.raises(LacksError, match=rf"\b{field}\b"):
            target.plug(DiskSpec(**{field: VALUES[field]}))
    target.close()


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("qtest-pci", "scsi"),
        ("qtest-pci-transitional", "scsi"),
        ("qtest-pci-legacy", "notify_port"),
        ("qtest-mmio", "notify_port"),
        ("qtest-mmio", "msix"),
        ("qtest-mmio-legacy", "msix"),
    ],
)
def test_a_field_of_another_interface_is_refused(name: str, field: str) -> None:
    target = maker(name, {})(Settings())

    with pytest.raises(LacksError, match=rf"\b{field}\b"):
        target.plug(DiskSpec(**{field: VALUES[field]}))
    target.close()


def _graph(spec: DiskSpec) -> object:
    path = None if spec.backing == "null" else Path("file")
    return blockgraph.build("disk", spec, {}, path), spec.capacity


@pytest.mark.parametrize("field", sorted(blockgraph.HONOURED))
def test_what_qemu_honours_changes_its_options(field: str) -> None:
    assert _graph(DiskSpec(**{field: VALUES[field]})) != _graph(DiskSpec())


@pytest.mark.parametrize(
    ("supported", "folders"),
    [
        (blockgraph.HONOURED, ["machine"]),
        (storage_daemon.HONOURED, ["machine"]),
        (model.HONOURED_BY_OWNER, ["model"]),
    ],
    ids=["qemu", "storage-daemon", "model"],
)
def test_what_is_honoured_is_read(supported: frozenset[str], folders: list[str]) -> None:
    read = {
        node.attr
        for folder in folders
        for path in (ROOT / "harness" / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value).endswith("spec")
    }

    # The storage daemon's owner and the model's make the file, which has the size asked for.
    assert supported - read <= {"capacity", "backing"}
