"""The driver `self`: our own reference driver, with a fixed set of work and random work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from harness.diskspec import DiskSpec
from harness.driver.errors import DriverError
from harness.driver.interface import Completion, Request
from harness.drivers.base import (
    USE,
    Fate,
    Launcher,
    NotHereError,
    Place,
    Scenario,
    StuckError,
    Watched,
    WrongDataError,
    watched,
)
from harness.machine.errors import MachineError
from harness.targets import LacksError
from harness.targets.base import TargetError
from harness.targets.disk import Disk
from harness.targets.model import VARIANTS, Model
from harness.virtio.blk import RequestType, Status, segment
from harness.virtio.features import Feature

SEED = 22
EXAMPLES = 2
STEPS = 30
"""The random work: a fixed seed, examples on each kind of disk, and operations in an example."""

VERSION = "1"


class Reference(Launcher):
    """The reference driver, in this process."""

    implementation = "self"
    works = frozenset({USE, "discard", "resize", "rebind", "parallel", "random"})

    def __init__(self, name: str, target: str) -> None:
        """`target` is the variant of the model that the driver is attached to."""
        variant = VARIANTS[target]
        self.name = name
        self.description = f"our own reference driver, on {variant.way}"
        self._target = target
        self.traits = variant.traits | ({"packed"} if "modern" in variant.traits else set())
        self._disk: Disk | None = None

    def prepare(self) -> None:
        """Nothing is needed but hypothesis for random work."""

    def version(self) -> str:
        """Return the version of the driver's behaviour."""
        return VERSION

    def drive(self, scenario: Scenario, place: Place) -> str:
        """Not used: `watch` starts the model by its target."""
        raise NotImplementedError

    def watch(self, scenario: Scenario, directory: Path) -> Watched:
        """Let the driver take part in a scenario, and judge it."""
        self.check(scenario)
        stream = directory / f"{scenario.name}.jsonl"
        target = Model(scenario.defects, self._target, scenario.whims, stream, scenario.illegal)
        trouble, fate = "", Fate.WENT_ON
        try:
            for work in self.work_of(scenario):
                if work == "random":
                    _random(target)
                else:
                    self._do(target, scenario.spec(), work)
        except StuckError as error:
            trouble, fate = str(error.args[0]), error.fate
        except DriverError as error:
            trouble, fate = str(error), Fate.REFUSED
        except TargetError as error:
            if scenario.legal:  # trouble of the harness, not of the driver
                raise MachineError(str(error)) from None
            target.check()
            trouble, fate = str(error), Fate.REFUSED
        except Exception as error:
            if scenario.legal:
                raise
            target.check()
            trouble, fate = f"{type(error).__name__}: {error}", Fate.CRASHED
        else:
            target.check()
        finally:
            target.close()
        return watched(scenario, stream, trouble, "", fate)

    def _do(self, target: Model, spec: DiskSpec, work: str) -> None:
        disk = Disk(target.plug(spec))
        try:
            features = None
            if spec.packed:
                agreed = disk.driver.negotiate()
                features = agreed.accepted | (agreed.offered & Feature.RING_PACKED.mask)
                disk.driver.reset()
            disk.start(features)
            WORK[work](disk)
        except LacksError as error:
            raise StuckError(str(error), "") from None
        finally:
            disk.unplug()


def _expect(condition: bool, what: str) -> None:
    if not condition:
        raise StuckError(what, "")


def _expect_data(done: Completion, data: bytes) -> None:
    """Raise WrongDataError if a read is done without an error and has other data."""
    _expect(done.status == Status.OK, "a read failed")
    if done.data != data:
        raise WrongDataError("other data was read than written", "")


def _use(disk: Disk) -> None:
    """Read and write both ends, flush, and read the id."""
    end = disk.spec.capacity - 8
    for sector, byte in ((0, b"a"), (end, b"b")):
        data = byte * 4096
        if not disk.spec.read_only:
            _expect(disk.write(sector, data).status == Status.OK, "a write failed")
            _expect_data(disk.read(sector, 8), data)
        _expect(disk.read(sector, 8).status == Status.OK, "a read failed")
    disk.flush()
    disk.get_id()
    disk.driver.config()


def _discard(disk: Disk) -> None:
    """Discard sectors and write zeroes, as far as the device offers it."""
    config = disk.driver.config()
    if config.max_discard_sectors:
        _expect(disk.discard(segment(16, 1)).status == Status.OK, "a discard failed")
    if config.max_write_zeroes_sectors:
        done = disk.write_zeroes(segment(32, 1))
        _expect(done.status == Status.OK, "a write of zeroes failed")
        _expect_data(disk.read(32), bytes(512))


def _resize(disk: Disk) -> None:
    """Use the sectors that a resize adds."""
    capacity = disk.spec.capacity
    disk.resize(2 * capacity)
    _expect(disk.driver.config().capacity == 2 * capacity, "the capacity is the old one")
    _expect(disk.read(capacity).status == Status.OK, "a read behind the old end failed")


def _rebind(disk: Disk) -> None:
    """Reset the device and initialize it again."""
    disk.driver.reset()
    disk.start()
    _use(disk)


def _parallel(disk: Disk) -> None:
    """Have several requests in flight."""
    reads = [Request(RequestType.IN, sector, receive=4096) for sector in range(0, 32, 8)]
    room = disk.queues[0].size // 4
    tokens = disk.driver.submit(reads[: max(1, room)])
    done = disk.driver.complete(tokens)
    _expect(all(each.status == Status.OK for each in done), "a read failed")


WORK: dict[str, Callable[[Disk], None]] = {
    USE: _use,
    "discard": _discard,
    "resize": _resize,
    "rebind": _rebind,
    "parallel": _parallel,
}


def _random(target: Model) -> None:
    """Do what `vblk random` does, for some examples. StuckError for a finding."""
    try:
        from harness.random import rounds
        from harness.random.hunt import Hunt
    except ImportError:
        raise NotHereError("random work needs hypothesis: pip install hypothesis") from None
    hunt = Hunt(target)
    try:
        for number, plug in enumerate(rounds.disks_of(hunt, rounds.LEGAL_DISKS)):
            if found := rounds.run(hunt, plug, SEED + number, EXAMPLES, STEPS):
                raise StuckError(f"vblk random found {found[0].finding}", "")
    finally:
        hunt.drop()
