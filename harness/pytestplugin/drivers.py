"""Judge drivers: `--driver NAME`, the fixture `driver`, and the tests that need it.

These tests run only on request. Without `--driver` they are deselected.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness import interrupt
from harness.inputs import printable
from harness.pytestplugin.arguments import add_option
from harness.pytestplugin.bench import DRIVERS, DriverRun, let_record
from harness.report.results import TARGET_ID

if TYPE_CHECKING:
    from harness.drivers.base import Scenario
    from harness.drivers.watching import WatchedDriver

PARAMETER = "_driver"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options for drivers."""
    add_option(
        parser,
        "driver",
        action="append",
        default=[],
        metavar="NAME",
        help="driver to judge, by what it does to the model device; repeatable",
    )
    add_option(
        parser, "drivers", metavar="FILE", type=Path, help="TOML file that defines more drivers"
    )
    add_option(parser, "list-drivers", action="store_true", help="print the drivers and exit")
    add_option(
        parser,
        "scenario",
        action="append",
        default=[],
        metavar="NAME",
        help="with --driver: only this scenario; repeatable",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Check the names of drivers and scenarios."""
    option = config.option
    names = dict.fromkeys(option.vblk_driver)
    config.stash[DRIVERS] = {name: DriverRun(name) for name in names}
    if not (names or option.vblk_drivers or option.vblk_scenario):
        return
    from harness.drivers.base import UnknownScenarioError
    from harness.drivers.registry import UnknownDriverError, makers
    from harness.drivers.scenarios import chosen

    try:
        known = makers(option.vblk_drivers)
        chosen(option.vblk_scenario)
    except (UnknownDriverError, UnknownScenarioError) as error:
        raise pytest.UsageError(printable(str(error))) from None
    for name in names:
        if name not in known:
            raise pytest.UsageError(printable(f"no driver {name!r}; known: {', '.join(known)}"))


def pytest_cmdline_main(config: pytest.Config) -> int | None:
    """Print the drivers if `--list-drivers` is given."""
    if not config.option.vblk_list_drivers:
        return None
    from harness.drivers.registry import makers

    lines = {name: make().description for name, make in makers(config.option.vblk_drivers).items()}
    width = max(map(len, lines))
    for name, description in lines.items():
        print(f"{name:<{width}}  {description}")
    return 0


@pytest.hookimpl(trylast=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test that uses a driver on every driver."""
    if PARAMETER not in metafunc.fixturenames:
        return
    names = list(metafunc.config.stash[DRIVERS].keys()) or [""]
    ids = [TARGET_ID + name for name in names] if len(names) > 1 else [pytest.HIDDEN_PARAM]
    metafunc.parametrize(PARAMETER, names, ids=ids, indirect=True, scope="session")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the tests of drivers in a run without one, and those of devices in a run with one.

    A run that names targets and drivers has both. `--scenario` deselects the tests of other
    scenarios.
    """
    if config.option.vblk_list_statements:
        return
    drivers = bool(config.stash[DRIVERS].keys())
    devices = not drivers or bool(config.option.vblk_target)
    wanted = config.option.vblk_scenario
    rest = [
        item
        for item in items
        if not (drivers if uses_driver(item) else devices) or (wanted and _of_others(item, wanted))
    ]
    if rest:
        config.hook.pytest_deselected(items=rest)
        left_out = set(rest)
        items[:] = [item for item in items if item not in left_out]


def _wanted(session: pytest.Session, name: str, legal: Sequence[Scenario]) -> Sequence[Scenario]:
    """Return the scenarios that the tests of a driver will ask for, in their order.

    A worker of pytest-xdist gets some of the tests only, which it does not know in advance.
    """
    from harness.drivers.base import Scenario

    wanted: dict[str, Scenario] = {}
    if hasattr(session.config, "workerinput"):
        return legal
    for item in session.items:
        parameters = _parameters(item)
        if parameters.get(PARAMETER) != name:
            continue
        own = [value for value in parameters.values() if isinstance(value, Scenario)]
        wanted |= {scenario.name: scenario for scenario in own or legal}
    return list(wanted.values())


def _parameters(item: pytest.Item) -> Mapping[str, object]:
    """Return the parameters of a test by name."""
    callspec = getattr(item, "callspec", None)
    return callspec.params if callspec else {}


def _of_others(item: pytest.Item, wanted: Sequence[str]) -> bool:
    """Return whether a test is about a scenario, and none of the wanted ones."""
    from harness.drivers.base import Scenario

    values = _parameters(item).values()
    return any(isinstance(value, Scenario) and value.name not in wanted for value in values)


def uses_driver(item: pytest.Item) -> bool:
    """Return whether a test judges a driver."""
    return PARAMETER in getattr(item, "fixturenames", ())


@pytest.fixture(scope="session")
def _driver(
    request: pytest.FixtureRequest,
    record_testsuite_property: Callable[[str, object], None],
) -> Iterator[DriverRun]:
    """Give the driver of the test. It starts with its first scenario."""
    from harness.drivers.registry import makers
    from harness.drivers.scenarios import chosen
    from harness.drivers.watching import WatchedDriver

    option = request.config.option
    runs = request.config.stash[DRIVERS]
    run = runs[request.param]

    let_record(run, len(runs) == 1, record_testsuite_property)
    launcher = makers(option.vblk_drivers)[run.name]()
    legal = [scenario for scenario in chosen(option.vblk_scenario) if scenario.legal]
    run.target = WatchedDriver(launcher, legal, _wanted(request.session, run.name, legal))
    try:
        yield run
    finally:
        with interrupt.shielded():
            watched, run.target = run.target, None
            watched.close()


@pytest.fixture
def driver(_driver: DriverRun) -> WatchedDriver:
    """Give the driver under test. The test is skipped if this machine lacks what it needs."""
    from harness.drivers.base import NotHereError

    _driver.failed = False
    assert _driver.target
    try:
        _driver.start()
    except NotHereError as error:
        pytest.skip(str(error))
    return _driver.target


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Iterator[None]:
    """Skip a test if its driver cannot do the work that the test needs."""
    if not uses_driver(pyfuncitem):
        return (yield)
    from harness.drivers.base import CannotError, NotHereError

    try:
        return (yield)
    except (CannotError, NotHereError) as error:
        pytest.skip(str(error))
