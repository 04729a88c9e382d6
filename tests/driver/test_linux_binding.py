"""Taking a PCI function from Linux and giving it back, on a sysfs of plain files."""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path
from typing import Any

import pytest

from harness.driver.bus import linux_pci, linux_sysfs, linux_vfio
from harness.driver.bus.linux_sysfs import Binding, FileBar, MappedBar
from harness.driver.errors import BadArgumentError, DriverError, NoDeviceError

ADDRESS = "0000:00:05.0"


@pytest.fixture
def sysfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PCI bus with one function and two drivers, `ours` and `theirs`."""
    monkeypatch.setattr(linux_sysfs, "SYSFS", tmp_path)
    function = tmp_path / "devices" / ADDRESS
    function.mkdir(parents=True)
    (function / "config").write_bytes(bytes(256))
    for driver in ("ours", "theirs"):
        (tmp_path / "drivers" / driver).mkdir(parents=True)
    return tmp_path


def bind(sysfs: Path, driver: str) -> None:
    (sysfs / "devices" / ADDRESS / "driver").symlink_to(sysfs / "drivers" / driver)


def test_a_free_function_is_bound_and_unbound(sysfs: Path) -> None:
    override = sysfs / "devices" / ADDRESS / "driver_override"
    binding = Binding(ADDRESS, "ours", 0.0)
    assert override.read_text() == "ours"
    assert (sysfs / "drivers/ours/bind").read_text() == ADDRESS
    assert not (sysfs / "drivers/ours/unbind").exists()

    binding.release()

    assert (sysfs / "drivers/ours/unbind").read_text() == ADDRESS
    assert override.read_text() == "\n"


def test_what_its_owner_bound_stays_bound(sysfs: Path) -> None:
    bind(sysfs, "ours")
    Binding(ADDRESS, "ours", 0.0).release()
    assert list((sysfs / "drivers/ours").iterdir()) == []


def test_another_drivers_function_is_let_be(sysfs: Path) -> None:
    bind(sysfs, "theirs")
    with pytest.raises(NoDeviceError, match="in use by the kernel's theirs: unbind it first"):
        Binding(ADDRESS, "ours", 0.0)
    assert not (sysfs / "devices" / ADDRESS / "driver_override").exists()
    assert list((sysfs / "drivers/theirs").iterdir()) == []


def test_no_two_drivers_take_one_function(sysfs: Path) -> None:
    first = Binding(ADDRESS, "ours", 0.0)
    with pytest.raises(NoDeviceError, match="already driven"):
        Binding(ADDRESS, "ours", 0.0)
    first.release()
    Binding(ADDRESS, "ours", 0.0).release()


def test_a_function_that_is_not_there_is_one_line_with_those_that_are(sysfs: Path) -> None:
    with pytest.raises(NoDeviceError, match=f"no PCI function 0000:00:06.0 .* are: {ADDRESS}"):
        Binding("0000:00:06.0", "ours", 0.0)


def test_a_driver_that_is_not_loaded_is_one_line(sysfs: Path) -> None:
    with pytest.raises(NoDeviceError, match="modprobe absent"):
        Binding(ADDRESS, "absent", 0.0)
    assert not (sysfs / "devices" / ADDRESS / "driver_override").exists()


@pytest.mark.parametrize("winner", ["ours", "theirs"])
def test_a_function_that_is_bound_while_it_is_plugged_in(
    sysfs: Path, monkeypatch: pytest.MonkeyPatch, winner: str
) -> None:
    """Accept that the kernel binds a new function first, so that our own attempt finds it busy."""
    attempts = []
    write_text = Path.write_text

    def write(path: Path, text: str, *args: Any) -> int:
        if path.name != "bind":
            return write_text(path, text, *args)
        attempts.append(text)
        if len(attempts) == 1:
            raise OSError(errno.ENODEV, "not on the bus yet")
        if len(attempts) == 2:
            bind(sysfs, winner)
        raise OSError(errno.EBUSY, "bound")

    monkeypatch.setattr(Path, "write_text", write)
    monkeypatch.setattr(linux_sysfs, "BIND_WAIT", 0.1)
    if winner == "ours":
        Binding(ADDRESS, "ours", 0.0).release()
        assert attempts == [ADDRESS] * 2
        assert (sysfs / "drivers/ours/unbind").exists()
    else:
        with pytest.raises(DriverError, match=r"not bound to ours after 0\.1 s"):
            Binding(ADDRESS, "ours", 0.0)


def test_a_driver_that_does_not_take_the_function_is_one_line(sysfs: Path) -> None:
    (sysfs / "drivers/ours/bind").mkdir()  # a directory, so that writing fails
    with pytest.raises(DriverError, match=f"ours does not take {ADDRESS}: Is a directory"):
        Binding(ADDRESS, "ours", 0.0)
    assert (sysfs / "devices" / ADDRESS / "driver_override").read_text() == "\n"


def test_vfio_without_an_iommu_is_one_line(sysfs: Path) -> None:
    with pytest.raises(NoDeviceError, match="behind no IOMMU"):
        linux_vfio.LinuxVfio(ADDRESS, 0.0)


def test_a_function_without_an_interrupt_is_one_line_and_given_back(
    sysfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linux_pci, "DRIVER", "ours")
    monkeypatch.setattr(linux_pci, "DEV", sysfs)
    function = sysfs / "devices" / ADDRESS
    for path in (function / "uio/uio7", sysfs / "uio7"):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (function / "irq").write_text("0\n")

    with pytest.raises(DriverError, match="routes none to its slot"):
        linux_pci.LinuxPci(ADDRESS, 0.0)

    assert (sysfs / "drivers/ours/unbind").read_text() == ADDRESS


def test_bars_are_accessed_at_their_offset(tmp_path: Path) -> None:
    path = tmp_path / "bars"
    path.write_bytes(bytes(3 * mmap.PAGESIZE))
    with path.open("r+b") as file:
        offset = 2 * mmap.PAGESIZE
        mapped = MappedBar(file.fileno(), mmap.PAGESIZE, offset)
        by_file = FileBar(file.fileno(), offset)
        for width, value in ((1, 0xA1), (2, 0xB1B2), (4, 0xC1C2C3C4)):
            mapped.write(4 * width, width, value)
            by_file.write(64 + 4 * width, width, value)
            for bar in (mapped, by_file):
                assert bar.read(4 * width, width) == bar.read(64 + 4 * width, width) == value
        with pytest.raises(BadArgumentError, match="not aligned"):
            mapped.read(2, 4)
        mapped.close()
        assert os.pread(file.fileno(), 4, offset + 16) == bytes.fromhex("c4c3c2c1")


def test_device_visible_regions_are_found_where_they_are_mapped() -> None:
    """Find regions also while older regions exist above and below; each has its own name."""
    regions = [linux_vfio._Region() for _ in range(4)]
    for position in (0, 2):
        regions[position].map.close()
        regions[position] = linux_vfio._Region()
    for number, region in enumerate(regions):
        region.map[0] = number + 1
    with Path("/proc/self/mem").open("rb", buffering=0) as memory:
        for number, region in enumerate(regions):
            memory.seek(region.virtual)
            assert memory.read(1) == bytes([number + 1])
