"""The pytest plugin: options, the fixture `plug`, and what is reported.

Nothing is started before a test asks for a disk.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from harness.disks import DiskSpec
from harness.report import Statement, statement_of
from harness.report.artifacts import keep
from harness.report.deviations import Deviation, DeviationFileError, load
from harness.report.failure import attach_evidence
from harness.report.outcome import describe
from harness.report.results import TARGET_ID, plain_node
from harness.report.summary import by_target
from harness.report.verdict import judge
from harness.virtio.catalogue import SPECIFICATION
from harness.virtio.features import Feature, mask

if TYPE_CHECKING:
    from harness.target import Disk, Plugged, Target
    from harness.target.userfile import UserTarget

pytest_plugins = [
    "harness.report.artifacts",
    "harness.report.plugin",
    "harness.report.select",
    "harness.defects.plugin",
    "harness.random.plugin",
]


@dataclass
class Bench:
    """A target of this run, once a test wanted it, and the disks of the test that runs."""

    name: str
    target: Target | None = None
    disks: list[Disk] = field(default_factory=list)
    failed: bool = False
    worked: bool = False
    said: dict[str, dict[str, str]] = field(default_factory=dict)
    record: Callable[[str, object], None] = lambda name, value: None

    def plug(self, spec: DiskSpec, writes: bool, session: pytest.Session) -> Plugged:
        """A disk of the target. If not even the run's first one is to be had, the run ends."""
        from harness.target import LacksError, TargetError

        __tracebackhide__ = True
        assert self.target
        try:
            plugged = self.target.plug(spec, writes)
        except LacksError as error:
            pytest.skip(str(error))
        except TargetError as error:
            if not self.worked:
                session.shouldstop = str(error)
            raise error.with_traceback(None) from None  # where in the harness is of no interest
        if not self.worked:
            self.worked = True
            made_of = {
                one.implementation: ".".join(map(str, one.version))
                for one in self.target.identities()
            }
            self.said = {"facts": self.target.facts(), "implementations": made_of}
            for name, value in self.said["facts"].items():
                self.record(name, value)
        return plugged


BENCHES = pytest.StashKey[dict[str, Bench]]()
USER_TARGETS: pytest.StashKey[dict[str, UserTarget]] = pytest.StashKey()
STATEMENT = pytest.StashKey[Statement | None]()
DEVIATIONS = pytest.StashKey[tuple[Deviation, ...]]()


class Plug(Protocol):
    """The type of the fixture `plug`."""

    def __call__(
        self,
        *,
        start: bool = True,
        features: int | None = None,
        needs: Iterable[Feature] = (),
        extra: Iterable[Feature] = (),
        without: Iterable[Feature] = (),
        driver_queues: int = 1,
        driver_queue_size: int | None = None,
        **fields: Any,
    ) -> Disk:
        """A disk as `DiskSpec(**fields)` says, its driver started.

        `features` is the exact set to negotiate; None means what the driver
        takes by itself, with `extra` and without `without`. If the device
        lacks one of `needs` or `extra`, the test is skipped, naming it.
        `driver_queues` and `driver_queue_size` (descriptors, None for the device's
        largest) are what the driver sets up. With `start=False` the device is
        left as it came.
        """
        ...


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of this plugin."""
    group = parser.getgroup("virtio-blk", "virtio-blk conformance")
    group.addoption(
        "--target",
        action="append",
        metavar="NAME",
        help="a device under test, and the way to it (guest-pci); repeatable",
    )
    group.addoption(
        "--targets", metavar="FILE", type=Path, help="a TOML file that defines more targets"
    )
    group.addoption("--list-targets", action="store_true", help="print the targets and stop")
    group.addoption(
        "--destructive",
        action="store_true",
        help="allow to overwrite the disk behind a device that is not ours (vhost-user:PATH)",
    )
    group.addoption(
        "--channel",
        choices=("serial", "ssh"),
        default="serial",
        help="how the driver in a guest is reached (%(default)s)",
    )
    group.addoption("--qemu", metavar="PATH", help="the QEMU to run (qemu-system-x86_64 on PATH)")
    group.addoption(
        "--accel",
        choices=("auto", "kvm", "tcg"),
        default="auto",
        help="QEMU's accelerator; auto takes KVM if a guest boots on it (%(default)s)",
    )
    group.addoption(
        "--strict-should",
        action="store_true",
        help="a SHOULD that the device does not keep is a failure, not an advisory",
    )
    group.addoption(
        "--boot-timeout",
        type=_seconds,
        default=60.0,
        metavar="SECONDS",
        help="how long a guest may take until its agent answers (60)",
    )


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0")
    return seconds


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers."""
    config.addinivalue_line(
        "markers", "clause(*ids): the statements of the specification that the test checks"
    )
    config.addinivalue_line(
        "markers",
        "described(section, text): behaviour that the specification describes without a keyword",
    )
    config.addinivalue_line(
        "markers", "on(*traits): the traits of the targets that the test is about"
    )
    config.addinivalue_line("markers", "reads_only: the test changes nothing on the disk")
    config.stash[BENCHES] = {name: Bench(name) for name in _targets(config)}


def _targets(config: pytest.Config) -> list[str]:
    """The names that --target gave, without repetition. pytest.UsageError for an unknown one."""
    wanted: list[str] = config.option.target or []
    if config.option.defect:
        planted = "+".join(["", *config.option.defect])
        wanted = [name + planted for name in wanted or ["guest-pci"]]
    user = config.stash[USER_TARGETS] = _user_targets(config)
    if wanted:
        from harness.target import TargetError
        from harness.target.registry import maker

        try:
            for name in wanted:
                maker(name, user)
        except TargetError as error:
            raise pytest.UsageError(str(error)) from None
    return list(dict.fromkeys(wanted)) or ["guest-pci"]


def _user_targets(config: pytest.Config) -> dict[str, UserTarget]:
    """What --targets defines. pytest.UsageError, with the line, for a bad file."""
    if config.option.targets is None:
        return {}
    from harness.target import TargetError
    from harness.target.userfile import load

    try:
        return load(config.option.targets)
    except TargetError as error:
        raise pytest.UsageError(str(error)) from None


def pytest_cmdline_main(config: pytest.Config) -> int | None:
    """`--list-targets`."""
    if not config.option.list_targets:
        return None
    from harness.target.registry import descriptions

    user = {name: target.device for name, target in _user_targets(config).items()}
    lines = user | descriptions()
    width = max(map(len, lines))
    for name, description in lines.items():
        print(f"{name:<{width}}  {description}")
    return 0


@pytest.hookimpl(trylast=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run every test that wants a disk on every target; one target goes without saying."""
    if "_bench" not in metafunc.fixturenames:
        return
    names = list(metafunc.config.stash[BENCHES].keys())
    ids = [TARGET_ID + name for name in names] if len(names) > 1 else [pytest.HIDDEN_PARAM]
    metafunc.parametrize("_bench", names, ids=ids, indirect=True, scope="session")


def _bench_of(item: pytest.Item) -> Bench | None:
    """The bench that a test runs on, None for a test that wants no disk."""
    callspec = getattr(item, "callspec", None)
    name = callspec.params.get("_bench") if callspec else None
    return item.config.stash[BENCHES][name] if name else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Resolve every test's statements and recorded deviations; a bad one ends the run here."""
    for item in items:
        item.stash[STATEMENT] = statement = statement_of(item)
        bench = _bench_of(item)
        if bench:
            item.user_properties.append(("target", bench.name))
            if bench.name.startswith("guest-"):
                item.user_properties.append(("channel", item.config.option.channel))
        if statement is None:
            continue
        item.user_properties += statement.properties()
        try:
            item.stash[DEVIATIONS] = tuple(_recorded(item, statement))
        except DeviationFileError as error:
            raise pytest.UsageError(str(error)) from None


def _recorded(item: pytest.Item, statement: Statement) -> Iterator[Deviation]:
    """The recorded deviations of this test, of every implementation and version."""
    node = item.path.name + plain_node(item.nodeid[item.nodeid.index("::") :])
    bound = {*statement.clauses, *(section for section, _ in statement.described)}
    for path in sorted((item.path.parent / "deviations").glob("*.toml")):
        for deviation in load(path):
            if deviation.covers(node):
                if deviation.clause not in bound:
                    raise DeviationFileError(f"{path}: {node} is not about {deviation.clause}")
                yield deviation


def pytest_report_header(config: pytest.Config) -> str:
    """The targets and the channel to guests."""
    return (
        f"{SPECIFICATION}, target {', '.join(config.stash[BENCHES].keys())},"
        f" guests over {config.option.channel}"
    )


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """What a target turns out to lack in the middle of a test is a skip, too."""
    if _bench_of(pyfuncitem) is None:
        return (yield)
    from harness.target import LacksError

    try:
        return (yield)
    except LacksError as error:
        pytest.skip(str(error))


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """With several targets, how each has fared."""
    names = list(config.stash[BENCHES].keys())
    if len(names) > 1:
        terminalreporter.section("targets")
        for line in by_target(terminalreporter.stats, names):
            terminalreporter.write_line(line)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Judge a test by its statement, and put evidence beside a failure."""
    report = yield
    bench = _bench_of(item)
    if bench is None or bench.target is None:
        return report
    error = call.excinfo.value if call.excinfo else None
    excused, kept = None, ""
    if call.when == "call":
        excused = judge(
            report,
            error,
            item.stash[STATEMENT],
            _affecting(item, bench),
            item.config.option.strict_should,
        )
        if excused:
            item.user_properties.append(excused)
    if report.failed:
        bench.failed = True
        attach_evidence(report, error, bench.target, bench.disks)
        kept = keep(report, item, bench.name, bench.target, bench.disks)
    describe(report, item, call, excused, bench.said, kept)
    return report


def _affecting(item: pytest.Item, bench: Bench) -> list[Deviation]:
    """The recorded deviations of this test that the device under test has."""
    recorded = item.stash.get(DEVIATIONS, ())
    if not recorded or bench.target is None:
        return []
    return [
        one
        for one in recorded
        for device in bench.target.identities()
        if one.affects(device.implementation, device.version, bench.name.partition("+")[0])
    ]


@pytest.fixture(scope="session")
def _bench(
    request: pytest.FixtureRequest,
    record_testsuite_property: Callable[[str, object], None],
) -> Iterator[Bench]:
    """The bench with its target, which starts with the first disk."""
    # Only now: a run that needs no disk needs no QEMU's libraries either.
    from harness.machine.cleanup import install_signal_handlers
    from harness.target.registry import Settings, maker

    install_signal_handlers()
    option = request.config.option
    benches = request.config.stash[BENCHES]
    bench = benches[request.param]

    def record(name: str, value: object) -> None:
        record_testsuite_property(name if len(benches) == 1 else f"{bench.name}.{name}", value)

    record("specification", SPECIFICATION)
    bench.record = record
    settings = Settings(
        option.channel,
        option.qemu,
        option.accel,
        option.boot_timeout,
        option.destructive,
        _progress(request.config),
    )
    user = request.config.stash[USER_TARGETS]
    bench.target = maker(bench.name, user)(settings)
    try:
        yield bench
    finally:
        bench.target.close()
        bench.target = None


def _progress(config: pytest.Config) -> Callable[[str], None]:
    """Shows a line on the terminal while a test runs, past pytest's capturing."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    capture = config.pluginmanager.get_plugin("capturemanager")

    def progress(line: str) -> None:
        if reporter is None or reporter.verbosity < 0:
            return
        with capture.global_and_fixture_disabled() if capture else nullcontext():
            reporter.ensure_newline()
            reporter.write_line(line)
            reporter.flush()

    return progress


@pytest.fixture
def plug(request: pytest.FixtureRequest, _bench: Bench) -> Iterator[Plug]:
    """Makes disks for this test, and takes them out after it."""
    from harness.target import Disk, TargetError

    bench = _bench
    bench.failed = False
    assert bench.target
    for mark in request.node.iter_markers("on"):
        missing = [trait for trait in mark.args if trait not in bench.target.traits]
        if missing:
            pytest.skip(f"{bench.name} is not {', '.join(missing)}")
    writes = request.node.get_closest_marker("reads_only") is None

    def make(
        *,
        start: bool = True,
        features: int | None = None,
        needs: Iterable[Feature] = (),
        extra: Iterable[Feature] = (),
        without: Iterable[Feature] = (),
        driver_queues: int = 1,
        driver_queue_size: int | None = None,
        **fields: Any,
    ) -> Disk:
        __tracebackhide__ = True
        disk = Disk(bench.plug(DiskSpec(**fields), writes, request.session))
        bench.disks.append(disk)
        _need(disk.driver.offered(), (*needs, *extra))
        if start:
            if extra or without:
                usual = disk.driver.negotiate(features).accepted
                features = (usual | mask(*extra)) & ~mask(*without)
            disk.start(features, driver_queues, driver_queue_size)
        return disk

    yield make

    troubles = []
    while bench.disks:
        try:
            bench.disks.pop().unplug()
        except TargetError as error:
            troubles.append(error)
    # After a failure these are its consequence, and it has been reported.
    if troubles and not bench.failed:
        raise troubles[0]


def _need(offered: int, features: Iterable[Feature]) -> None:
    missing = [feature.name for feature in features if not offered & feature.mask]
    if missing:
        pytest.skip(f"the device does not offer {', '.join(missing)}")
