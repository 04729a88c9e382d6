"""The target `pci:ADDRESS`: messages for functions that it cannot or must not drive."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from harness.diskspec import DiskSpec
from harness.driver.bus import linux_pci, linux_sysfs
from harness.driver.bus.qtest import Qtest, QtestPci
from harness.driver.errors import BadArgumentError
from harness.machine import Machine, MachineConfig, find_qemu
from harness.targets import Disk, LacksError, TargetError
from harness.targets.host_pci import HostPci, checked_address
from harness.virtio.blk import Status

ADDRESS = "0000:00:05.0"
ELSEWHERE = "0000:00:06.0"


@pytest.fixture
def sysfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PCI bus with one virtio block function, made of plain files."""
    monkeypatch.setattr(linux_sysfs, "SYSFS", tmp_path)
    function = tmp_path / "devices" / ADDRESS
    function.mkdir(parents=True)
    (function / "config").write_bytes(bytes.fromhex("f41a4210") + bytes(252))
    (function / "vendor").write_text("0x1af4\n")
    (function / "device").write_text("0x1042\n")
    return tmp_path


def complaint(address: str = ADDRESS) -> str:
    """Plug a disk, assert that it fails with one line and no skip, and return that line."""
    target = HostPci(address)
    with pytest.raises(TargetError) as caught:
        target.plug(DiskSpec(), writes=False)
    target.close()
    assert not isinstance(caught.value, LacksError)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("address", ["", "5", "00:05.0", "0000:00:05.8", "0000:00:25.0", "vda"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(TargetError, match="not an address of a PCI function"):
        checked_address(address)


def test_no_such_function(sysfs: Path) -> None:
    assert complaint(ELSEWHERE) == f"this machine has no PCI function {ELSEWHERE}; " + (
        f"it has: {ADDRESS}"
    )


@pytest.mark.parametrize(("vendor", "device"), [("0x8086", "0x1042"), ("0x1af4", "0x1041")])
def test_a_function_that_is_no_virtio_disk_is_not_touched(
    sysfs: Path, vendor: str, device: str
) -> None:
    function = sysfs / "devices" / ADDRESS
    (function / "vendor").write_text(vendor)
    (function / "device").write_text(device)
    shown = f"{vendor[2:]}:{device[2:]}"
    assert complaint() == f"{ADDRESS} is {shown}, not a virtio block device"
    assert not (function / "driver_override").exists()


def test_a_function_of_another_driver_is_let_be(sysfs: Path) -> None:
    (sysfs / "drivers/virtio-pci").mkdir(parents=True)
    (sysfs / "devices" / ADDRESS / "driver").symlink_to(sysfs / "drivers/virtio-pci")
    assert f"{ADDRESS} is in use by the kernel's virtio-pci: unbind it first" in complaint()
    assert list((sysfs / "drivers/virtio-pci").iterdir()) == []
    assert not (sysfs / "devices" / ADDRESS / "driver_override").exists()


@pytest.mark.parametrize(("grouped", "module"), [(True, "vfio-pci"), (False, "uio_pci_generic")])
def test_a_free_function_goes_through_vfio_where_there_is_an_iommu(
    sysfs: Path, grouped: bool, module: str
) -> None:
    if grouped:
        (sysfs / "devices" / ADDRESS / "iommu_group").symlink_to(sysfs)
    assert complaint() == f"the kernel has not loaded {module}: modprobe {module}"


def test_the_disk_is_only_read_by_default(sysfs: Path) -> None:
    target = HostPci(ADDRESS)
    with pytest.raises(LacksError, match="only read; tests that write need --destructive"):
        target.plug(DiskSpec())
    with pytest.raises(LacksError, match="cannot provide serial"):
        target.plug(DiskSpec(serial="mine"), writes=False)
    with pytest.raises(TargetError, match="has not loaded"):
        HostPci(ADDRESS, destructive=True).plug(DiskSpec())
    assert target.facts() == {"function": ADDRESS}
    target.check()


def test_a_function_is_read_and_its_end_is_reported(
    sysfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Use a device of a QEMU with a halted CPU in place of the host's own device."""
    with Machine(MachineConfig(find_qemu(), memory=64, parked=True)) as machine:
        drive = machine.add_disk(DiskSpec(capacity=4096))
        drive.backing.write(7, b"\x11" * 512)
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(machine.qtest_path))
        function = QtestPci(Qtest(connection), machine.ram_path, drive.slot)
        monkeypatch.setattr(linux_pci, "LinuxPci", lambda address: function)
        target = HostPci(ADDRESS)

        disk = Disk(target.plug(DiskSpec(), writes=False))
        disk.start()
        assert disk.spec.capacity == 4096
        assert disk.read(7).data == b"\x11" * 512
        with pytest.raises(BadArgumentError, match="only read"):
            disk.write(7, bytes(512))
        assert disk.read(7).status is Status.OK
        with pytest.raises(LacksError, match="single disk, and it is in use"):
            target.plug(DiskSpec(), writes=False)
        assert target.facts()["id"] == "1af4:1042"
        target.check()

        machine.stop()
        with pytest.raises(TargetError, match=f"{ADDRESS} is gone"):
            target.check()
        with pytest.raises(TargetError, match="QEMU ended during"):
            disk.unplug()
