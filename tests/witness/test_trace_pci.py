"""QEMU's trace log as a source of events, for PCI functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from harness.proof.breaches.breach import Breach
from harness.proof.witnessed import trace_of
from harness.targets.disk import Disk
from harness.virtio.catalogue import ADVISORY, driver_clauses
from harness.virtio.features import Feature
from harness.witness.events import (
    Device,
    Event,
    Features,
    Notified,
    Register,
    Reset,
    Status,
)
from harness.witness.judge import Fate, judge
from harness.witness.rules import RULES
from harness.witness.trace import events, read_trace

LOGS = Path(__file__).parent / "logs"
ADVISED = {"2.4.2-R-01", "2.5.1-R-01b"}
"""SHOULDs that SeaBIOS does not follow."""


def log(form: str) -> list[str]:
    """Return the lines of a log of SeaBIOS, by the modern or the legacy interface."""
    return (LOGS / f"seabios-{form}.log").read_text().splitlines()


def base_of(lines: Sequence[str]) -> int:
    """Return where the modern BAR is: the address of the first access, to the device status."""
    first = next(line for line in lines if "virtio-pci-common" in line)
    return int(first.split()[6], 16) - 0x14


def access(kind: str, offset: int, value: int, size: int) -> str:
    """Return the line of an access to the common configuration of the modern log."""
    return (
        f"memory_region_ops_{kind} cpu 0 mr 0x1 addr {base_of(log('modern')) + offset:#x} "
        f"value {value:#x} size {size} name 'virtio-pci-common-virtio-blk'"
    )


def at(lines: Sequence[str], words: str) -> int:
    """Return the index of the first line with these words."""
    return next(number for number, line in enumerate(lines) if words in line)


def words_of(offset: int, value: int) -> str:
    """Return the words of an access to the common configuration of the modern log."""
    return f"addr {base_of(log('modern')) + offset:#x} value {value:#x} "


def placed(line: str, after: str) -> Callable[[list[str]], list[str]]:
    """Return a change of a log: a line more, behind the first one with these words."""

    def change(lines: list[str]) -> list[str]:
        number = at(lines, after)
        return [*lines[: number + 1], line, *lines[number + 1 :]]

    return change


def without(words: str) -> Callable[[list[str]], list[str]]:
    return lambda lines: [line for line in lines if words not in line]


def with_value(words: str, old: str, new: str) -> Callable[[list[str]], list[str]]:
    return lambda lines: [
        line.replace(f"value {old} ", f"value {new} ") if words in line else line for line in lines
    ]


RESET_SEEN = placed(access("read", 0x14, 0, 1), "virtio-pci-isr-virtio-blk")
"""SeaBIOS does not read the status after its reset, which other drivers do."""


def broken(lines: Sequence[str]) -> set[str]:
    """Return the MUSTs that a driver has broken."""
    verdicts = judge(events(lines))
    return {
        name
        for name, verdict in verdicts.items()
        if verdict.fate is Fate.BROKEN and driver_clauses()[name].level not in ADVISORY
    }


def test_a_log_of_a_modern_function_becomes_events() -> None:
    found = list(events(log("modern")))

    device = found[0]
    assert isinstance(device, Device)
    assert device.transport == "pci"
    assert device.offered & Feature.VERSION_1.mask
    assert device.config.startswith((16 << 11).to_bytes(8, "little").hex())
    types = {each.type for each in device.capabilities if each.virtio}
    assert types == {0, 1, 2, 3, 4}, "SeaBIOS has not read all of the window, of type 5"
    assert Status(value=0xF, before=0xB) in found
    assert Notified(queue=0, width=2, value=0) in found
    assert any(isinstance(event, Features) and not event.legacy for event in found)
    assert found.count(Reset()) == 1


def test_a_log_of_the_legacy_interface_becomes_events() -> None:
    found = list(events(log("legacy")))

    areas = {event.area for event in found if isinstance(event, Register)}
    assert areas == {"pci", "legacy", "legacy device"}
    capacity = [event for event in found if isinstance(event, Register)]
    assert [event.value for event in capacity if event.area == "legacy device"][:3] == [0, 0x80, 0]
    assert any(isinstance(event, Features) and event.legacy for event in found)
    assert Notified(queue=0, width=2, value=0) in found


def test_a_driver_is_judged_by_a_log() -> None:
    path = LOGS / "seabios-modern.log"
    verdicts = judge(read_trace(path))

    fates = {name: verdict.fate for name, verdict in verdicts.items()}
    assert {name for name, fate in fates.items() if fate is Fate.BROKEN} == {
        "4.1.4.3.2-R-05",
        *ADVISED,
    }
    assert {"2.1.1-R-01", "3.1.1-R-01", "4.1.4.3.2-R-04", "4.1.5.1.1.1-L-04"} <= {
        name for name, fate in fates.items() if fate is Fate.KEPT
    }
    of_the_device = [name for name in RULES if name.startswith("2.7.5")]
    assert all(fates[name] is Fate.NOT_EXERCISED for name in of_the_device)


def test_a_driver_of_the_legacy_interface_is_judged_by_a_log() -> None:
    verdicts = judge(read_trace(LOGS / "seabios-legacy.log"))

    assert {name for name, verdict in verdicts.items() if verdict.fate is Fate.KEPT} == {
        "2.7.2-L-01a",
        "3.1.2-L-01",
        "4.1.4.10-L-02",
        "4.1.4.10-L-04",
    }
    assert not any(verdict.fate is Fate.BROKEN for verdict in verdicts.values())


@pytest.mark.parametrize(
    ("change", "rules"),
    [
        pytest.param(lambda lines: lines, set(), id="nothing"),
        pytest.param(without(words_of(0x14, 0xB)), {"3.1.1-R-01"}, id="FEATURES_OK"),
        pytest.param(
            with_value(words_of(0x14, 0xF), "0xf", "0x4"),
            {"2.1.1-R-01", "2.1.1-R-02"},
            id="status",
        ),
        pytest.param(
            lambda lines: [
                line
                for line in lines
                if not any(f"addr {base_of(lines) + half:#x} " in line for half in (0x28, 0x2C))
            ],
            {"4.1.4.3.2-R-04"},
            id="address",
        ),
        pytest.param(
            placed(access("write", 0x12, 1, 2), words_of(0x14, 0xF)),
            {"4.1.4.3.2-R-01"},
            id="read-only",
        ),
        pytest.param(
            with_value("virtio-pci-notify", "0x0", "0x1"), {"4.1.5.2.1-R-03"}, id="notification"
        ),
        pytest.param(
            lambda lines: [
                line.replace("size 2", "size 4") if "pci-notify-" in line else line
                for line in lines
            ],
            {"4.1.5.2.1-R-01"},
            id="width-of-a-notification",
        ),
    ],
)
def test_a_breach_in_a_log_turns_its_rules_red_and_no_other(
    change: Callable[[list[str]], list[str]], rules: set[str]
) -> None:
    assert broken(change(RESET_SEEN(log("modern")))) == rules


def test_a_log_that_begins_later_accuses_nobody() -> None:
    lines = log("modern")
    start = at(lines, words_of(0x14, 3))

    assert broken(lines[start:]) == set()
    assert not any(isinstance(event, Status) for event in events(lines[start:]))


def test_a_notification_that_the_log_does_not_show_is_not_made_up() -> None:
    lines = without("pci-notify-")(log("modern"))

    assert any("virtio_queue_notify" in line for line in lines)
    assert not any(isinstance(event, Notified) for event in events(lines))


def test_a_reset_of_the_machine_ends_a_session() -> None:
    lines = log("modern")
    vdev = lines[at(lines, "val 11")].split()[2]
    again = [f"virtio_set_status vdev {vdev} val 0", access("write", 0x14, 1, 1)]

    assert list(events([*lines, *again])).count(Reset()) == 2
    assert "2.1.1-R-02" not in broken([*lines, *again])


def test_what_the_log_does_not_show_of_the_device_accuses_nobody() -> None:
    """The number of vectors, chains, and features in a word that nobody has read."""
    vector = placed(access("write", 0x10, 5, 2), words_of(0x14, 0xF))
    assert "4.1.5.1.2.2-R-04" not in broken(vector(log("modern")))

    lines = with_value(f"addr {base_of(log('modern')) + 0xC:#x}", "0x44", "0x20000044")(
        log("modern")
    )
    notice = at(lines, "virtio-pci-notify-virtio-blk")
    again = lines[notice : notice + 2]
    verdicts = judge(events([*lines, *again, *again]))
    assert verdicts["2.7.10.1-R-07"].fate is Fate.NOT_EXERCISED

    unread = [line for line in log("modern") if f"addr {base_of(log('modern')) + 4:#x}" not in line]
    assert "2.2.1-R-01a" not in broken(unread)


def test_two_functions_are_told_apart_by_their_bars() -> None:
    lines = log("modern")
    base = base_of(lines)
    other = [
        line.replace("00:02.0", "00:03.0").replace(f"{base:#x}"[:-4], f"{base + 0x10000:#x}"[:-4])
        for line in lines
    ]

    assert {event.connection for event in events([*lines, *other])} == {0, 1}
    assert broken([*lines, *other]) == broken(lines)


def work(disk: Disk) -> None:
    """Use a disk as the specification says."""
    disk.start()
    disk.write(8, b"a" * 512)
    assert disk.read(8, 1).data == b"a" * 512


def test_the_reference_driver_keeps_what_a_log_shows(tmp_path: Path) -> None:
    legal = Breach(work, frozenset(), "qtest-pci", (), {}, "")
    found: list[Event] = trace_of(legal, "qtest-pci", tmp_path)
    verdicts = judge(found)

    fates = {name: verdict.fate for name, verdict in verdicts.items()}
    assert "4.1.4.3.2-R-05" in {name for name, fate in fates.items() if fate is Fate.KEPT}
    wrong = {name for name, fate in fates.items() if fate is Fate.BROKEN}
    assert all(driver_clauses()[name].level in ADVISORY for name in wrong)
