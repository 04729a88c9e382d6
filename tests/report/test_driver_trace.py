"""The trace of a test: events at the driver, kept in memory and written for a failed test."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from harness.cli.main import main
from harness.diskspec import DiskSpec
from harness.driver.bus.base import MmioWindow
from harness.driver.interface import Request as Sent
from harness.driver.trace import BYTES, KEPT, SHOWN, Trace, cut, merged, unwatch, watch
from harness.report.trace import Row, as_lines, events_of, in_words, marked, rings, shown
from harness.targets import Disk
from harness.targets.model import Model
from harness.virtio.blk import RequestType
from harness.virtio.ring import DESC, PACKED_DESC
from harness.witness.at_the_driver import at_the_driver
from harness.witness.events import (
    About,
    Chain,
    Completed,
    Event,
    Failed,
    Message,
    Notified,
    Register,
    Request,
    Started,
    Stored,
    Used,
    read,
)

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Run a test on the model without and with a defect; return target -> directory of a trace."""
    top = tmp_path_factory.mktemp("kept")
    subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--tb=no"),
            *("--vblk-target=model", "--vblk-target=model+used-length-one-too-large"),
            *("--vblk-target=model-pci", f"--artifacts={top}", "--vblk-trace"),
            *("conformance/test_both_rings.py", "-k", "used_length and split-id"),
        ],
        cwd=ROOT,
        capture_output=True,
        timeout=120,
    )
    return {path.parts[-3]: path.parent for path in sorted(top.rglob("trace.jsonl"), reverse=True)}


def target(traces: dict[str, Path], name: str) -> Path:
    """Return the directory of the target with this name."""
    (found,) = (path for known, path in traces.items() if known.startswith(name))
    return found


def test_a_failed_test_leaves_the_events_and_marks_what_the_driver_saw_last(traces) -> None:
    kept = target(traces, "model-used")
    events = read(kept / "trace.jsonl")

    assert isinstance(events[0], About)
    assert isinstance(events[-1], Failed)
    assert events[0].target == "model+used-length-one-too-large"
    assert {Message, Started, Notified, Used, Completed} <= {type(event) for event in events}
    times = [event.time for event in events]
    assert times == sorted(times)
    bad = [line for line in (kept / "trace.txt").read_text().splitlines() if line[0] == "!"]
    assert [Row.parse(line).side for line in bad] == ["device", "device"]
    assert "used" in bad[0]
    assert "completed" in bad[1]


def test_with_the_option_a_passed_test_leaves_its_trace_and_nothing_else(traces) -> None:
    kept = target(traces, "model-pci")
    assert sorted(path.name for path in kept.iterdir()) == [
        ".vblk-artifacts",
        "trace.jsonl",
        "trace.txt",
    ]
    events = read(kept / "trace.jsonl")
    assert marked(events) == frozenset()
    assert {"common", "notify", "pci"} <= {
        event.area for event in events if isinstance(event, Register)
    }


def test_the_witness_judges_a_trace(traces, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["witness", "judge", str(target(traces, "model-pci") / "trace.jsonl")]) == 0
    assert "kept" in capsys.readouterr().out


def test_the_option_needs_a_directory(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_subprocess("--vblk-trace", "--collect-only")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--vblk-trace needs --artifacts DIR*"])


def test_each_request_has_its_own_properties() -> None:
    target = Model()
    try:
        disk = Disk(target.plug(DiskSpec()))
        disk.start()
        requests = [
            Sent(RequestType.IN, 3, receive=512),
            Sent(RequestType.OUT, 5, data=bytes(1024)),
        ]
        disk.driver.complete(disk.driver.submit(requests))
        found = [event for event in events_of(disk) if isinstance(event, Request)]
    finally:
        target.close()

    assert [(event.type, event.sector, event.sent, event.room) for event in found] == [
        (0, 3, 0, 512),
        (1, 5, 1024, 0),
    ]


# --- in memory


def test_memory_is_bounded_and_what_was_dropped_is_said() -> None:
    trace = Trace()
    for number in range(KEPT + 10):
        trace("used", 0, number, 1)

    events = trace.events()
    assert len(events) == KEPT + 1
    assert events[0][1:] == ("dropped", 10)
    assert events[1][1:] == ("used", 0, 10, 1)
    assert len(cut(bytes(2 * SHOWN))) == SHOWN


def test_the_file_is_bounded_and_says_what_was_dropped() -> None:
    trace = Trace()
    for number in range(KEPT):
        trace("stored", number, SHOWN, bytes(SHOWN))

    events = at_the_driver(trace.events(), "mmio")
    assert len(as_lines(events)) < 3 * BYTES
    assert isinstance(events[-1], Stored)
    assert events[-1].address == KEPT - 1
    dropped = KEPT - BYTES // SHOWN
    assert f"{dropped} events before this were dropped" in in_words(events).splitlines()[0]


def test_a_wait_shows_an_access_once() -> None:
    trace = Trace()
    for _ in range(3):
        trace.access("register", -1, 0x70, 4, 1, False)
    trace.poll(True)
    for value in (1, 1, 1, 0, 0):
        trace.access("register", -1, 0x14, 4, 7, True)
        trace.access("register", -1, 0x70, 4, value, False)
    trace.poll(False)

    values = [event[5] for event in trace.events()]
    assert values == [1, 1, 1, 7, 1, 0]


class Window(MmioWindow):
    """A window whose registers read as their offset."""

    def description(self) -> dict[str, object]:
        return {}

    def fileno(self) -> int | None:
        return None

    def take_interrupts(self, timeout: float) -> int:
        return int(timeout)

    def unmask_interrupts(self) -> None: ...

    def close(self) -> None: ...

    def read(self, offset: int, width: int) -> int:
        return offset

    def write(self, offset: int, width: int, value: int) -> None: ...


def test_a_bus_is_watched_until_it_is_not() -> None:
    bus, trace = Window(), Trace()
    watch(bus, trace)
    assert bus.read(0x70, 4) == 0x70
    bus.write(0x50, 4, 3)
    assert [bus.take_interrupts(1), bus.take_interrupts(0)] == [1, 0]
    unwatch(bus)
    bus.read(0x70, 4)

    events = at_the_driver(trace.events(), "mmio")
    assert [str(event) for event in events] == [
        "read device_status as 0x70 (32 bits)",
        "wrote 0x3 to QueueNotify (32 bits)",
        "notified virtqueue 3 by 0x3 (32 bits)",
        "interrupt queue -2, vector -1, count 1",
    ]


def test_events_of_several_observers_are_in_the_order_of_time() -> None:
    assert merged([(1.0, "a"), (3.0, "b")], [(2.0, "c")]) == [(1.0, "a"), (2.0, "c"), (3.0, "b")]


def test_a_recorded_deviation_leaves_no_trace_in_a_run_that_keeps_nothing() -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--vblk-target=qtest-pci"),
            *("conformance/test_split_ring.py", "-k", "before_an_indirect"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert "INTERNALERROR" not in done.stdout
    assert " xfailed" in done.stdout.splitlines()[-1]


def made_up() -> list[Event]:
    descriptors = DESC.pack(0x5000, 16, 1, 3) + DESC.pack(0x6000, 1, 2, 0)
    recorded = [
        (10.0, "ring", 0, 8, 0x1000, 0x2000, 0x3000, False),
        (10.5, "chain", 0, 2, False, [2, 3], descriptors, 0),
        (10.6, "available", 0, [2], 1),
        (10.7, "notified", 0),
        (11.0, "used", 0, 2, 99),
    ]
    events = at_the_driver(recorded, "vhost-user")
    return [About(test="t", target="x"), *events, Failed(time=12.0, expected="a", seen="b")]


def test_the_rings_are_shown_before_and_after_the_offending_event() -> None:
    page = shown(made_up())

    (before,), (after,) = page["before"], page["after"]
    assert before == "queue 0 (split, 8) | 2 | [2] 0x5000+16 next 3; [3] 0x6000+1 write | available"
    assert after == before.replace("available", "used, length 99")
    assert rings(made_up(), 2) == []
    assert [line[0] for line in page["lines"]] == [" ", " ", " ", " ", "!", " "]


def test_a_packed_chain_has_its_buffer_id_in_each_descriptor() -> None:
    raw = PACKED_DESC.pack(0x8000, 32, 7, 4)
    table = PACKED_DESC.pack(0x5000, 16, 0, 0) + PACKED_DESC.pack(0x6000, 1, 0, 2)

    (chain,) = at_the_driver([(1.0, "chain", 0, 7, True, [3], raw + table, 0x8000)], "mmio")

    assert isinstance(chain, Chain)
    assert chain.descriptors == [(3, 0x8000, 32, 4, 7)]
    assert chain.table == [(0, 0x5000, 16, 0, 0), (1, 0x6000, 1, 2, 0)]
    assert chain.table_at == 0x8000


def test_a_line_of_a_trace_is_read_back() -> None:
    lines = in_words(made_up()).splitlines()
    row = Row.parse(lines[4])
    assert (row.seconds, row.side, row.offending) == (1.0, "device", True)
    assert row.words == "used 2 of virtqueue 0, length 99"
    assert row.line == lines[4]
    with pytest.raises(ValueError, match="no line of a trace"):
        Row.parse("anything else")
