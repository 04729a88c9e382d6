"""Scenarios, launchers and the drivers of a user's file, without any driver of others."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from threading import Barrier

import pytest

from harness.drivers import userfile
from harness.drivers.base import CannotError, Launcher, Place, Scenario, Watched, add_events
from harness.drivers.firmware import BAD, GOOD, OTHER, PACKETS, boot_sector
from harness.drivers.registry import MAKERS, UnknownDriverError, makers
from harness.drivers.scenarios import SCENARIOS, chosen
from harness.drivers.watching import WatchedDriver
from harness.machine.errors import MachineError
from harness.model.whims import WHIMS
from harness.virtio.catalogue import driver_clauses
from harness.witness.events import Reset, dumped, read
from harness.witness.judge import Fate, Verdict, judge

QEMU = """
[driver.kernel]
device = "vhost-user"
start = "qemu-system-x86_64 -m 256 {memory} {device} -append 'a {{b}} {socket}'"
done = "end"
"""


def test_scenarios_name_whims_and_statements_that_exist() -> None:
    assert len({scenario.name for scenario in SCENARIOS}) == len(SCENARIOS)
    for scenario in SCENARIOS:
        assert set(scenario.whims) <= set(WHIMS), scenario.name
        assert set(scenario.about) <= set(driver_clauses()), scenario.name
        assert scenario.spec().capacity >= 2048


def test_each_scenario_has_a_driver_that_can_take_part() -> None:
    able = set()
    for make in MAKERS.values():
        for scenario in SCENARIOS:
            try:
                make().check(scenario)
            except CannotError:
                continue
            able.add(scenario.name)
    assert able == {scenario.name for scenario in SCENARIOS}


def test_a_boot_sector_is_a_sector_with_its_texts_and_packets() -> None:
    for writes in (False, True):
        sector = boot_sector(writes)
        assert len(sector) == 512
        assert sector[-2:] == b"\x55\xaa"
        assert f"{GOOD}\n\0{BAD}\n\0{OTHER}\n\0".encode() in sector[:PACKETS]
        assert sector[PACKETS] == sector[PACKETS + 16] == sector[PACKETS + 32] == 16


def test_words_of_a_command_are_replaced_by_options_of_qemu(tmp_path: Path) -> None:
    path = tmp_path / "drivers.toml"
    path.write_text(QEMU)

    assert set(makers(path)) == {*MAKERS, "kernel"}
    values = {
        "device": userfile.device_words("vhost-user", Path("/tmp/a,b"), 2),
        "memory": userfile.memory_words(256),
        "socket": ["/tmp/a b"],
        "capacity": ["8"],
    }
    words = userfile.words_of("qemu -m 256 {memory} {device} -append 'a {{b}} {socket}'", values)
    assert words[3:6] == [
        "-object",
        "memory-backend-memfd,id=vblk-ram,size=256M,share=on",
        "-machine",
    ]
    assert "socket,id=vblk,path=/tmp/a,,b" in words
    assert words[-1] == "a {b} '/tmp/a b'"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[driver.a]\nstart = 'x'", "1: driver.a: needs device"),
        ("[driver.a]\ndevice = 'scsi'\nstart = 'x'", "2: driver.a.device"),
        ("[driver.a]\ndevice = 'vhost-user'\nstart = '{disk}'", "3: driver.a.start"),
        ("[driver.a]\ndevice = 'vhost-user'\nstart = 'x'\nfailed = '('", "4: driver.a.failed"),
        ("[target.a]", "only tables [driver.NAME]"),
        ("[driver.'a b']\ndevice = 'vhost-user'\nstart = 'x'", "not a valid name"),
        ("[driver.uml]\ndevice = 'vhost-user'\nstart = 'x'", "there is a driver 'uml' already"),
    ],
)
def test_a_bad_file_is_one_line_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "drivers.toml"
    path.write_text(text)

    with pytest.raises(UnknownDriverError) as error:
        makers(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def own(tmp_path: Path, **fields: object) -> Launcher:
    """Return a driver of the user that is a line of Python."""
    table = userfile.UserDriver("vhost-user", "true")
    return userfile.OwnDriver("mine", replace(table, **fields), tmp_path)  # type: ignore[arg-type]


def python(code: str) -> str:
    return f'{sys.executable} -c "{code}" {{socket}}'


@pytest.mark.parametrize(
    ("fields", "trouble"),
    [
        ({"start": python("")}, ""),
        ({"start": python("raise SystemExit(3)")}, "mine exited with status 3"),
        ({"start": python("print('ready')"), "done": "ready"}, ""),
        (
            {"start": python("print('no')"), "done": "ready"},
            "before its output had the line 'ready'",
        ),
        (
            {"start": python("import time; time.sleep(60)"), "timeout": 0.5},
            "waited 0.5 s for its end",
        ),
        ({"start": python("print('panic: x')"), "failed": "panic: ."}, "says 'panic: x'"),
        ({"start": python(""), "work": "false {work}"}, "ended with 1"),
        ({"start": python(""), "work": "test {work} = use"}, ""),
    ],
)
def test_a_driver_of_the_user_goes_on_or_not(
    tmp_path: Path, fields: dict[str, object], trouble: str
) -> None:
    watched = own(tmp_path, **fields).watch(chosen(["ordinary"])[0], tmp_path)

    assert trouble in watched.trouble
    assert bool(trouble) == bool(watched.trouble)


def test_a_program_that_is_not_there_is_no_failure_of_the_driver(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="names no program that is here"):
        own(tmp_path, start="no-such-driver {socket}").watch(chosen(["ordinary"])[0], tmp_path)


def test_events_of_another_source_get_peers_of_their_own(tmp_path: Path) -> None:
    stream = tmp_path / "stream.jsonl"
    stream.write_text("".join(f"{dumped(Reset(connection=peer))}\n" for peer in (0, 2)))

    add_events(stream, [Reset(connection=0), Reset(connection=1)])
    assert [event.connection for event in read(stream)] == [0, 2, 3, 4]

    before = stream.read_bytes()
    add_events(stream, [])
    assert stream.read_bytes() == before


class Made(Launcher):
    """A launcher whose verdicts are made up, by scenario."""

    name = implementation = "made"
    description = "made up"

    def __init__(self, fates: dict[str, Fate | Exception]) -> None:
        self.fates = fates
        self.watched: list[str] = []

    def prepare(self) -> None:
        pass

    def version(self) -> str:
        return "1.2.3-rc1"

    def drive(self, scenario: Scenario, place: Place) -> str:
        raise AssertionError

    def watch(self, scenario: Scenario, directory: Path) -> Watched:
        self.watched.append(scenario.name)
        fate = self.fates[scenario.name]
        if isinstance(fate, Exception):
            raise fate
        checked = int(fate is not Fate.NOT_EXERCISED)
        evidence = ("it did",) if fate is Fate.BROKEN else ()
        verdict = Verdict("2.1.1-R-01", fate, "", evidence, checked)
        stream = directory / f"{scenario.name}.jsonl"
        stream.write_text("{}\n")
        return Watched(scenario, stream, judge(()) | {"2.1.1-R-01": verdict}, "", "it said so")


@pytest.mark.parametrize(
    ("fates", "fate"),
    [
        ({"a": Fate.KEPT, "b": Fate.NOT_EXERCISED}, Fate.KEPT),
        ({"a": Fate.KEPT, "b": Fate.BROKEN}, Fate.BROKEN),
        ({"a": CannotError("no"), "b": Fate.KEPT}, Fate.KEPT),
        ({"a": CannotError("no"), "b": CannotError("no")}, Fate.NOT_EXERCISED),
    ],
)
def test_the_worst_scenario_decides_and_each_is_played_once(
    fates: dict[str, Fate | Exception], fate: Fate
) -> None:
    launcher = Made(fates)
    driver = WatchedDriver(launcher, [Scenario(name, "") for name in fates])
    try:
        for _ in range(2):
            verdict = driver.verdict("2.1.1-R-01")
            assert verdict.fate is fate
        assert launcher.watched == list(fates)
        broken = [name for name, value in fates.items() if value is Fate.BROKEN]
        assert [name for name in driver.logs() if name.endswith(".jsonl")] == [
            f"{name}.jsonl" for name in broken
        ]
        assert all(f"scenario {name}, it did" in verdict.evidence for name in broken)
    finally:
        driver.close()
    assert driver.identities()[0].version == (1, 2, 3)


def test_trouble_of_the_harness_is_raised_again_and_is_no_verdict() -> None:
    launcher = Made({"a": MachineError("no memory")})
    driver = WatchedDriver(launcher, [Scenario("a", "")])
    try:
        for _ in range(2):
            with pytest.raises(MachineError, match="no memory"):
                driver.verdict("2.1.1-R-01")
    finally:
        driver.close()
    assert launcher.watched == ["a"]


class Meeting(Made):
    """A launcher of two scenarios at once, which wait for each other."""

    at_once = 2

    def __init__(self, names: str) -> None:
        super().__init__(dict.fromkeys(names, Fate.KEPT))
        self.barrier = Barrier(2, timeout=60)

    def watch(self, scenario: Scenario, directory: Path) -> Watched:
        self.barrier.wait()
        return super().watch(scenario, directory)


@pytest.mark.parametrize(
    "name", ["linux-microvm", "linux-arm64", "linux-arm64-mmio", "uboot-arm64"]
)
def test_scenarios_that_share_a_file_of_a_trace_run_one_by_one(name: str) -> None:
    assert MAKERS[name]().at_once == 1


def test_scenarios_run_ahead_and_each_of_them_once() -> None:
    launcher = Meeting("abcd")
    scenarios = [Scenario(name, "") for name in "abcd"]
    driver = WatchedDriver(launcher, scenarios, scenarios)
    try:
        assert driver.watch(scenarios[0]).scenario.name == "a"
        assert "a" in launcher.watched
        assert "c" not in launcher.watched, "a third scenario ran at the same time"
        assert driver.verdict("2.1.1-R-01").fate is Fate.KEPT
        assert sorted(launcher.watched) == ["a", "b", "c", "d"]
    finally:
        driver.close()


class Endless(Meeting):
    """A launcher whose second scenario does not end."""

    def drive(self, scenario: Scenario, place: Place) -> str:
        self.barrier.wait()
        place.wait_for(lambda: scenario.name == "a", "nothing", str)
        return ""

    watch = Launcher.watch


def test_the_end_of_a_run_ends_scenarios_that_run_ahead() -> None:
    scenarios = [Scenario(name, "") for name in "ab"]
    driver = WatchedDriver(Endless("ab"), scenarios, scenarios)
    try:
        assert not driver.watch(scenarios[0]).trouble
        (running,) = driver._running.values()
        assert not running.done()
    finally:
        driver.close()
    with pytest.raises(MachineError, match="the run has ended"):
        running.result(0)
