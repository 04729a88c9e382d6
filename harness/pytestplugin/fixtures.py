"""The fixture `plug`, and the lifetime of the guests that serve it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from harness import interrupt
from harness.diskspec import DiskSpec
from harness.driver.errors import DeviceTimeoutError
from harness.pytestplugin.arguments import add_option
from harness.pytestplugin.bench import (
    BENCHES,
    SPENT,
    USER_TARGETS,
    TargetRun,
    bench_of,
    let_record,
)
from harness.pytestplugin.workers import progress_of
from harness.virtio.blk import ZonedModel
from harness.virtio.features import Feature, mask

if TYPE_CHECKING:
    from harness.targets import Disk


NOTHING: Mapping[str, Any] = {}


class Plug(Protocol):
    """Type of the fixture `plug`."""

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
        prefer: Mapping[str, Any] = NOTHING,
        **fields: Any,
    ) -> Disk:
        """Plug a disk as `DiskSpec(**fields)` describes it, and start its driver.

        `features` is the exact set to negotiate; None means the driver's default set, plus `extra`
        and minus `without`. If the device lacks a feature of `needs` or `extra`, the test is
        skipped and the reason names the feature. `driver_queues` and `driver_queue_size`
        (descriptors; None for the device's maximum) are what the driver sets up. With `start=False`
        the driver does not initialise the device. `prefer` are more fields, which the test can do
        without: a target that cannot provide all of them gives a disk without them.
        """
        ...


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options for guests."""
    add_option(
        parser,
        "guest-per",
        choices=("auto", "test", "module", "run"),
        default="auto",
        help="which tests share a cloned guest; auto: all, as long as it is unchanged"
        " (default: %(default)s)",
    )
    add_option(
        parser,
        "no-clones",
        action="store_true",
        help="boot one guest for the whole run instead of cloning guests from a template",
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Store in the report how long the test's disks took."""
    report = yield
    bench = bench_of(item)
    if bench:
        setattr(report, SPENT, bench.spent)
    return report


@pytest.fixture(scope="session")
def _bench(
    request: pytest.FixtureRequest,
    record_testsuite_property: Callable[[str, object], None],
) -> Iterator[TargetRun]:
    """Give the target of the test. It starts with the first disk."""
    # Import here: a run without disks does not need QEMU's libraries.
    from harness.targets.registry import Settings, maker

    option = request.config.option
    benches = request.config.stash[BENCHES]
    bench = benches[request.param]

    let_record(bench, len(benches) == 1, record_testsuite_property)
    settings = Settings(
        option.vblk_channel,
        option.vblk_qemu,
        option.vblk_accel,
        option.vblk_boot_timeout,
        option.vblk_destructive,
        progress_of(request.config),
        clones=not option.vblk_no_clones,
        observe=option.vblk_observe,
        reuse=option.vblk_guest_per == "auto" and "hardening" not in option.vblk_level,
    )
    user = request.config.stash[USER_TARGETS]
    bench.target = maker(bench.name, user)(settings)
    try:
        yield bench
    finally:
        with interrupt.shielded():
            target, bench.target = bench.target, None
            target.close()


def _guest_scope(fixture_name: str, config: pytest.Config) -> Any:
    """Return pytest's name for the lifetime of a guest."""
    scopes = {"module": "module", "run": "session"}
    return scopes.get(config.option.vblk_guest_per, "function")


@pytest.fixture(scope=_guest_scope)
def _guest(_bench: TargetRun) -> Iterator[None]:
    """End what the target has started only for these tests."""
    yield
    if _bench.target:
        with interrupt.shielded():
            _bench.target.release()


@pytest.fixture
def plug(request: pytest.FixtureRequest, _bench: TargetRun, _guest: None) -> Iterator[Plug]:
    """Make disks for this test, and unplug them after it."""
    from harness.targets import Disk, TargetError

    bench = _bench
    bench.failed = False
    bench.spent = {}
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
        prefer: Mapping[str, Any] = NOTHING,
        **fields: Any,
    ) -> Disk:
        __tracebackhide__ = True
        specs = [DiskSpec(**fields)]
        if prefer:
            specs.insert(0, DiskSpec(**{**fields, **prefer}))
        try:
            return ready(
                specs,
                start,
                features,
                (*needs, *extra),
                mask(*extra),
                mask(*without),
                driver_queues,
                driver_queue_size,
            )
        except DeviceTimeoutError as error:
            # The test has not begun: this says nothing about its statement.
            raise TargetError(f"the disk was not ready for the test: {error}") from None

    def ready(
        specs: Sequence[DiskSpec],
        start: bool,
        features: int | None,
        needs: tuple[Feature, ...],
        extra: int,
        without: int,
        driver_queues: int,
        driver_queue_size: int | None,
    ) -> Disk:
        __tracebackhide__ = True
        known = bench.offered_before(specs, writes)
        if known is not None:
            _need(known, needs)
        disk = Disk(bench.plug(specs, writes, request.session))
        bench.disks.append(disk)
        offered = disk.driver.offered()
        bench.note_offered(specs, writes, offered)
        _need(offered, needs)
        if start:
            about_zones = bool(disk.spec.zoned) or Feature.BLK_ZONED in needs
            maybe_aware = bool(offered & Feature.BLK_ZONED.mask) and not about_zones
            if extra or without or maybe_aware:
                accepted = disk.driver.negotiate(features).accepted
                if features is None and maybe_aware and _host_aware(disk):
                    accepted &= ~Feature.BLK_ZONED.mask
                features = (accepted | extra) & ~without
            disk.start(features, driver_queues, driver_queue_size)
        return disk

    yield make

    with interrupt.shielded():
        errors = _take_out(bench, request.config.option.vblk_guest_per in ("auto", "test"))
    # After a failure or a signal, errors here are a consequence of it.
    if errors and not bench.failed and interrupt.received() is None:
        raise errors[0]


def _take_out(bench: TargetRun, guest_ends: bool) -> list[Exception]:
    """Unplug all disks of a test, also after an error with one; return the errors."""
    errors: list[Exception] = []
    while bench.disks:
        disk = bench.disks.pop()
        try:
            if guest_ends:
                disk.leave()
            else:
                disk.unplug()
        except Exception as error:
            errors.append(error)
    return errors


def _host_aware(disk: Disk) -> bool:
    """Return True for a disk whose zones a driver may ignore.

    Without ZONED it is a disk like any other. With ZONED, what was never written may read as
    anything (virtio 5.2.6.2), and a test of other things does not expect that.
    """
    return disk.driver.config().model == ZonedModel.HOST_AWARE


def _need(offered: int, features: Iterable[Feature]) -> None:
    missing = [feature.name for feature in features if not offered & feature.mask]
    if missing:
        pytest.skip(f"the device does not offer {', '.join(missing)}")
