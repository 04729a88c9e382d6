"""Boards other than `pc`: the places of their disks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from harness.diskspec import DiskSpec
from harness.machine import Machine, MachineConfig, MachineError


def test_q35_has_each_disk_behind_a_root_port_and_the_iommu(
    config: MachineConfig, new_machine: Callable[..., Machine]
) -> None:
    machine = new_machine(replace(config, board="q35"))
    cold = machine.add_disk(DiskSpec(backing="null"))
    machine.start()
    drives = [cold, *(machine.add_disk(DiskSpec(backing="null")) for _ in range(7))]

    assert [drive.pci_address for drive in drives] == [f"0000:0{bus}:00.0" for bus in range(1, 9)]
    with pytest.raises(MachineError, match="at most 8 disks"):
        machine.add_disk(DiskSpec())
    for drive in drives:
        arguments = {"path": f"/machine/peripheral/{drive.name}", "property": "iommu_platform"}
        assert machine.qmp("qom-get", **arguments) is True
    (bus,) = (bus for bus in machine.qmp("query-pci") if bus["bus"] == 0)
    ports = [device for device in bus["devices"] if device["class_info"]["class"] == 0x0604]
    assert [port["qdev_id"] for port in ports] == [f"port{slot}" for slot in range(4, 12)]
