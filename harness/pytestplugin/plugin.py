"""The pytest plugin: options, markers, and the judgement of each test's outcome.

Nothing starts before a test asks for a disk.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness.inputs import printable
from harness.pytestplugin.arguments import add_option, existing_directory, seconds
from harness.pytestplugin.bench import (
    BENCHES,
    DRIVERS,
    USER_TARGETS,
    DriverRun,
    TargetRun,
    bench_of,
)
from harness.pytestplugin.lost import print_listing
from harness.pytestplugin.summary import by_target
from harness.report import Statement, statement_of
from harness.report.artifacts import keep, keep_trace
from harness.report.deviations import Deviation, DeviationFileError, load_for
from harness.report.failure import attach_evidence, requests_of
from harness.report.outcome import describe, is_error
from harness.report.results import TARGET_ID, Verdict, plain_node
from harness.report.verdict import judge
from harness.virtio.catalogue import SPECIFICATION

if TYPE_CHECKING:
    from harness.targets.userfile import UserTarget

pytest_plugins = [
    "harness.pytestplugin.interruption",
    "harness.pytestplugin.output",
    "harness.pytestplugin.xdist",
    "harness.pytestplugin.fixtures",
    "harness.pytestplugin.drivers",
    "harness.pytestplugin.reports",
    "harness.pytestplugin.seconds",
    "harness.pytestplugin.select",
    "harness.pytestplugin.hardening",
    "harness.pytestplugin.defects",
    "harness.pytestplugin.random_run",
]


STATEMENT = pytest.StashKey[Statement | None]()
DEVIATIONS = pytest.StashKey[tuple[Deviation, ...]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the plugin's general options."""
    add_option(
        parser,
        "target",
        action="append",
        metavar="NAME",
        help="target to test: a device and the way to reach it (default: guest-pci); repeatable",
    )
    add_option(
        parser, "targets", metavar="FILE", type=Path, help="TOML file that defines more targets"
    )
    add_option(parser, "list-targets", action="store_true", help="print the targets and exit")
    add_option(
        parser,
        "deviations",
        action="append",
        default=[],
        type=existing_directory,
        metavar="DIR",
        help="directory with more files of recorded deviations, IMPLEMENTATION.toml; repeatable",
    )
    add_option(
        parser,
        "destructive",
        action="store_true",
        help="allow tests to overwrite the disk behind an external device",
    )
    add_option(
        parser,
        "channel",
        choices=("serial", "ssh"),
        default="serial",
        help="connection to the driver in a guest (default: %(default)s)",
    )
    add_option(
        parser, "qemu", metavar="PATH", help="QEMU program (default: qemu-system-x86_64 from PATH)"
    )
    add_option(
        parser,
        "accel",
        choices=("auto", "kvm", "tcg"),
        default="auto",
        help="accelerator of QEMU; auto uses KVM if a guest boots with it (default: %(default)s)",
    )
    add_option(
        parser,
        "strict-should",
        action="store_true",
        help="report a SHOULD that the device does not keep as a failure, not as an advisory",
    )
    add_option(
        parser,
        "boot-timeout",
        type=seconds,
        default=60.0,
        metavar="SECONDS",
        help="longest time until a guest's agent answers, in seconds (default: 60)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers."""
    config.addinivalue_line(
        "markers", "clause(*ids): statements of the specification that the test checks"
    )
    config.addinivalue_line(
        "markers",
        "described(*ids): behaviour that the specification describes without a keyword",
    )
    config.addinivalue_line("markers", "on(*traits): traits that a target needs for this test")
    config.addinivalue_line("markers", "reads_only: the test does not change the disk's contents")
    if config.option.vblk_trace and not config.option.vblk_artifacts:
        raise pytest.UsageError("--vblk-trace needs --artifacts DIR, where the traces are written")
    config.stash[BENCHES] = {name: TargetRun(name) for name in _targets(config)}


def _targets(config: pytest.Config) -> list[str]:
    """Return the names given by --target without duplicates.

    Raise pytest.UsageError for an unknown one.
    """
    wanted: list[str] = config.option.vblk_target or []
    if config.option.vblk_defect or config.option.vblk_whim:
        whims = [f"whim:{name}" for name in config.option.vblk_whim]
        planted = "+".join(["", *config.option.vblk_defect, *whims])
        wanted = [name + planted for name in wanted or ["guest-pci"]]
    user = config.stash[USER_TARGETS] = user_targets(config)
    if wanted:
        from harness.targets import TargetError
        from harness.targets.registry import maker

        try:
            for name in wanted:
                maker(name, user)
        except TargetError as error:
            raise pytest.UsageError(printable(str(error))) from None
    return list(dict.fromkeys(wanted)) or ["guest-pci"]


def user_targets(config: pytest.Config) -> dict[str, UserTarget]:
    """Return the targets that the --targets file defines.

    Raise pytest.UsageError, with the line, for a bad file.
    """
    if config.option.vblk_targets is None:
        return {}
    from harness.targets import TargetError
    from harness.targets.registry import load_targets

    try:
        return load_targets(config.option.vblk_targets)
    except TargetError as error:
        raise pytest.UsageError(printable(str(error))) from None


def pytest_cmdline_main(config: pytest.Config) -> int | None:
    """Print the targets if `--list-targets` is given."""
    if not config.option.vblk_list_targets:
        return None
    from harness.targets.registry import descriptions

    user = {name: target.device or target.command for name, target in user_targets(config).items()}
    lines = user | descriptions()
    width = max(map(len, lines))
    return print_listing(f"{name:<{width}}  {text}" for name, text in lines.items())


@pytest.hookimpl(trylast=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test that uses a disk on every target.

    With one target the test ids do not name it.
    """
    if "_bench" not in metafunc.fixturenames:
        return
    names = list(metafunc.config.stash[BENCHES].keys())
    ids = [TARGET_ID + name for name in names] if len(names) > 1 else [pytest.HIDDEN_PARAM]
    metafunc.parametrize("_bench", names, ids=ids, indirect=True, scope="session")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Resolve every test's statements and recorded deviations; a bad record ends the run here."""
    records = cache(_records)
    for item in items:
        item.stash[STATEMENT] = statement = statement_of(item)
        bench = bench_of(item)
        if bench:
            item.user_properties.append(("target", bench.name))
            if isinstance(bench, DriverRun):
                item.user_properties.append(("party", "driver"))
            elif bench.name.startswith("guest-"):
                item.user_properties.append(("channel", item.config.option.vblk_channel))
        if statement is None:
            continue
        item.user_properties += statement.properties()
        try:
            item.stash[DEVIATIONS] = tuple(_recorded(item, statement, records))
        except DeviationFileError as error:
            raise pytest.UsageError(printable(str(error))) from None


def _recorded(
    item: pytest.Item, statement: Statement, records: Callable[..., tuple[Path, ...]]
) -> Iterator[Deviation]:
    """Yield the recorded deviations of this test, for every implementation and version."""
    node = item.path.name + plain_node(item.nodeid[item.nodeid.index("::") :])
    bound = {*statement.clauses, *(section for section, _ in statement.hardening)}
    for path in records(item.path.parent, *item.config.option.vblk_deviations):
        for deviation in load_for(path, item.path.name):
            if deviation.covers(node):
                if deviation.clause not in bound:
                    raise DeviationFileError(f"{path}: {node} is not about {deviation.clause}")
                yield deviation


def _records(tests: Path, *more: Path) -> tuple[Path, ...]:
    """Return the files with deviations of the tests in a directory, and those in `more`."""
    directories = (tests / "deviations", *more)
    return tuple(path for place in directories for path in sorted(place.glob("*.toml")))


HARNESS = Path(__file__).parents[1]

SEEN = "seen"
"""User property of a test that looked at the disk through the device, for want of its file."""


def pytest_report_header(config: pytest.Config) -> str:
    """Return the header line: specification, and targets with the channel, or drivers."""
    if config.stash[DRIVERS] and not config.option.vblk_target:
        return f"{SPECIFICATION}, driver {', '.join(config.stash[DRIVERS].keys())}"
    return (
        f"{SPECIFICATION}, target {', '.join(config.stash[BENCHES].keys())},"
        f" guests over {config.option.vblk_channel}"
    )


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Skip a test if its target turns out, in the middle of the test, to lack something."""
    if not isinstance(bench_of(pyfuncitem), TargetRun):
        return (yield)
    from harness.driver.errors import DriverError
    from harness.driver.transport.vhost_channel import GoneError
    from harness.machine.rundir import check_room
    from harness.targets import LacksError

    try:
        return (yield)
    except LacksError as error:
        pytest.skip(str(error))
    except (AssertionError, DriverError) as error:
        # A device that finds no room for what it writes fails requests, and has no defect.
        check_room()
        if isinstance(error, GoneError) and not pyfuncitem.config.option.fulltrace:
            _cut_harness(error)
        raise


def _cut_harness(error: BaseException) -> None:
    """Let the traceback end in the test: where the harness noticed the end is of no help."""
    last, frame = None, error.__traceback__
    while frame:
        if not Path(frame.tb_frame.f_code.co_filename).is_relative_to(HARNESS):
            last = frame
        frame = frame.tb_next
    if last:
        last.tb_next = None


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print a table of results for each target if there are several."""
    devices = config.option.vblk_target or not config.stash[DRIVERS]
    names = [*(config.stash[BENCHES] if devices else ()), *config.stash[DRIVERS].keys()]
    reports = [report for group in terminalreporter.stats.values() for report in group]
    looks = sum(SEEN in dict(getattr(report, "user_properties", ())) for report in reports)
    if looks:
        terminalreporter.write_line(
            f"{looks} tests without a backing file: the disk was seen through the device"
        )
    if len(names) > 1:
        terminalreporter.section("targets")
        for line in by_target(terminalreporter.stats, names):
            terminalreporter.write_line(line)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Judge a test by its statement, and attach evidence to a failure."""
    report = yield
    bench = bench_of(item)
    if bench is None or bench.target is None:
        return report
    error = call.excinfo.value if call.excinfo else None
    excused, kept = None, ""
    every = item.config.option.vblk_trace and call.when == "call" and not report.skipped
    if call.when == "call":
        excused = judge(
            report,
            error,
            item.stash[STATEMENT],
            _affecting(item, bench),
            item.config.option.vblk_strict_should,
        )
        if excused:
            item.user_properties.append(excused)
    files: dict[str, str] = {}
    seen: dict[str, list[str]] = {}
    if report.failed or every:  # before the evidence, which reads registers: no part of the test
        from harness.report import trace  # most runs start without it

        traces = trace.traced(item, call, bench.name, bench.description, bench.disks)
        files = trace.files(traces)
        seen = trace.shown(traces[0]) if traces and report.failed else {}
    # A failure that is excused can have ended the device, too.
    bench.failed = bench.failed or report.failed or excused is not None
    if isinstance(bench, TargetRun) and bench.target and bench.failed:
        bench.target.distrust()
    if report.failed:
        attach_evidence(report, error, bench.target, bench.disks)
        kept = keep(report, item, bench.name, bench.target, bench.disks, files)
    elif every and files:
        keep_trace(report, item, bench.name, files)
    disks = bench.disks if call.when == "call" else ()
    requests = requests_of(disks, report.failed)
    if call.when == "call":
        requests += bench.requests
    describe(report, item, call, excused, bench.description, kept, requests, seen)
    if call.when == "call" and any(disk.through_device for disk in bench.disks):
        item.user_properties.append((SEEN, "through the device"))
    if call.when == "call" and is_error(report):
        item.user_properties.append(("verdict", Verdict.ERROR.value))
    return report


def pytest_report_teststatus(report: pytest.TestReport) -> tuple[str, str, str] | None:
    """Count a test that came to no verdict among the errors, not among the failures."""
    if report.when == "call" and report.failed and is_error(report):
        return "error", "E", "ERROR"
    return None


def _affecting(item: pytest.Item, bench: TargetRun | DriverRun) -> list[Deviation]:
    """Return the recorded deviations of this test that the device under test has."""
    recorded = item.stash.get(DEVIATIONS, ())
    if not recorded or bench.target is None:
        return []
    target = bench.name.partition("+")[0]
    alike = bench.target.alike if isinstance(bench, TargetRun) else ""
    return [
        deviation
        for deviation in recorded
        for device in bench.target.identities()
        if deviation.affects(device.implementation, device.version, target, device.parts, alike)
    ]
