"""QEMU's trace log as a source of events."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.cli import main
from harness.inputs import InputError
from harness.virtio.mmio import LEGACY_VERSION, MAGIC, REGISTERS
from harness.witness.events import (
    LINE,
    Device,
    Features,
    Interrupt,
    Notified,
    Register,
    Reset,
    Status,
)
from harness.witness.judge import Fate, judge
from harness.witness.trace import events, read_trace, seen_in

BASE = 0xFEB00000


def line(kind: str, offset: int, value: int, region: str = "0x55", size: int = 4) -> str:
    return (
        f"memory_region_ops_{kind} cpu 0 mr {region} addr {BASE + offset:#x} value {value:#x} "
        f"size {size} name 'virtio-mmio'"
    )


def read(name: str, value: int) -> str:
    return line("read", REGISTERS[name], value)


def write(name: str, value: int) -> str:
    return line("write", REGISTERS[name], value)


def log(version: int = 2) -> list[str]:
    """Return a driver's start up to its first notification."""
    return [
        "virtio_set_status vdev 0x5566f335c400 val 0",
        read("MagicValue", MAGIC),
        read("Version", version),
        read("DeviceID", 2),
        write("Status", 0),
        read("Status", 0),
        write("Status", 1),
        write("Status", 3),
        write("DeviceFeaturesSel", 0),
        read("DeviceFeatures", 0x1_0000_0040),
        write("DeviceFeaturesSel", 1),
        read("DeviceFeatures", 1),
        write("DriverFeaturesSel", 0),
        write("DriverFeatures", 0x40),
        write("DriverFeaturesSel", 1),
        write("DriverFeatures", 1),
        write("Status", 0xB),
        read("Status", 0xB),
        line("read", 0x100, 0x1234_0000_0800),
        write("Status", 0xF),
        write("QueueNotify", 0),
    ]


def test_a_log_becomes_events() -> None:
    found = list(events(log()))

    device = found[0]
    assert isinstance(device, Device)
    assert (device.transport, device.offered) == ("mmio", 1 << 32 | 0x40)
    assert device.config.startswith("00080000")
    assert Features(chosen=1 << 32 | 0x40) in found
    assert Status(value=0xF, before=0xB) in found
    assert Notified(queue=0, width=4, value=0) in found
    assert Reset() in found
    cut = [event.value for event in found if isinstance(event, Register) and event.area == "device"]
    assert cut == [0x800], "the value is cut to the size of the access"


LEVEL = "virtio_mmio_setting_irq virtio_mmio setting IRQ"


def test_a_rising_interrupt_line_of_the_only_device_is_an_interrupt() -> None:
    levels = [f"{LEVEL} {level}" for level in (0, 1, 1, 0, 1)]

    assert list(events([*log(), *levels])).count(Interrupt(queue=LINE)) == 2

    other = line("write", REGISTERS["Status"], 0, region="0x66")
    assert not any(isinstance(event, Interrupt) for event in events([*log(), other, *levels]))


def test_a_driver_is_judged_by_a_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "trace.log"
    path.write_text("\n".join(log()))

    assert main(["witness", "judge", str(path)]) == 0
    out = capsys.readouterr().out
    assert "4.2.2.2-R-07     MUST       kept" in out
    assert " 0 broken" in out


def test_a_driver_that_forgets_a_selector_is_accused() -> None:
    lines = [entry for entry in log() if f"{BASE + REGISTERS['DeviceFeaturesSel']:#x}" not in entry]

    assert judge(events(lines))["4.2.2.2-R-07"].fate is Fate.BROKEN


def test_a_legacy_device_is_not_judged_by_the_modern_rules() -> None:
    lines = [write("Status", 7) if "value 0xb" in entry else entry for entry in log(LEGACY_VERSION)]
    verdicts = judge(events(lines))

    assert Features(chosen=0, legacy=True) in list(events(lines))
    assert verdicts["2.1.1-R-01"].fate is verdicts["4.2.2.2-R-01a"].fate is Fate.NOT_EXERCISED


@pytest.mark.parametrize(("first", "seen"), [("Version", True), ("DriverFeaturesSel", False)])
def test_a_log_that_begins_later_is_judged_from_the_first_reset_on(first: str, seen: bool) -> None:
    lines = log()
    start = next(at for at, entry in enumerate(lines) if f"{BASE + REGISTERS[first]:#x} " in entry)
    late = list(events(lines[start:]))

    assert not any(verdict.fate is Fate.BROKEN for verdict in judge(late).values())
    assert (Status(value=0xF, before=0xB) in late) is seen


def test_devices_are_told_apart_by_their_region() -> None:
    lines = [read("MagicValue", MAGIC), line("read", REGISTERS["MagicValue"], 0, region="0x66")]

    assert [event.connection for event in events(lines)] == [0, 1, 0, 1]


def test_the_log_of_a_run_may_be_missing_or_have_nothing_about_virtio(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    assert seen_in(path) == []
    path.write_text("memory_region_ops_read cpu 0 mr 0x1 addr 0x3fa value 0xc1 size 1 name 'io'\n")
    assert seen_in(path) == []
    path.write_text("\n".join(log()))
    assert seen_in(path) == read_trace(path)


def test_another_file_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "other.log"
    path.write_text("nothing\n")

    with pytest.raises(InputError, match="no access to a virtio block device"):
        read_trace(path)
