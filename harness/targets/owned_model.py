"""The target `owned-model`: the model as the back-end of somebody else, which is as it is."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from harness.diskspec import SECTOR, DiskSpec
from harness.driver.transport.base import Transport
from harness.driver.transport.vhost_user import QUEUE_SIZE, VhostUser
from harness.machine.errors import MachineError
from harness.targets.base import DeviceIdentity, TargetError, translated
from harness.targets.external import HostSide
from harness.targets.model import VERSION, ModelProcess
from harness.targets.vhost_user import VhostUserSocket

FILLED = 16384
"""Sectors at the start and at the end of the disk that hold random bytes before the first test."""

RESIZABLE = 1 << 33
"""Largest capacity in sectors (4 TiB) that a test may double: file systems limit a file's size."""

SEED = 20260


class OwnedModel(VhostUserSocket):
    """One disk of the model that tests may overwrite, reached as `vhost-user:PATH` is."""

    description = "the model as a back-end of somebody else, with random contents, over vhost-user"
    owner = "the owner of the model"

    def __init__(self, defects: Sequence[str] = (), whims: Sequence[str] = ()) -> None:
        """Make a target whose device has these defects and whims, by name."""
        super().__init__("", destructive=True)
        self.name = "owned-model"
        self._defects = defects
        self._whims = whims
        from harness.model.whims import reshaped  # only this target needs it at once

        self._own = reshaped(DiskSpec(), whims)
        self._process: ModelProcess | None = None
        self._served = ""

    def _reach(self, spec: DiskSpec) -> Transport:
        if self._process is None or not self._process.alive():
            self._serve()
        return VhostUser(self._path, spec.queue_size or self._own.queue_size or QUEUE_SIZE)

    def _serve(self) -> None:
        if self._process:
            self._process.stop()
        try:
            self._process = ModelProcess(self._defects, self._whims)
            self._served, link, file = self._process.add(replace(self._own, queue_size=None))
        except MachineError as error:
            raise translated(error) from None
        assert file
        _fill(file)
        capacity = self._own.capacity
        resizable = not self._own.read_only and not self._own.zoned and capacity <= RESIZABLE
        self._host = HostSide(
            DeviceIdentity("model", VERSION), file, self._resize if resizable else None
        )
        self._path = str(link)

    def _resize(self, capacity: int) -> None:
        assert self._process
        try:
            self._process.resize(self._served, capacity)
        except MachineError as error:
            raise translated(error) from None

    def close(self) -> None:
        """Give the device back, and end its process."""
        try:
            super().close()
        finally:
            if self._process:
                self._process.stop()
                self._process = None

    def check(self) -> None:
        """Raise TargetError if the device is gone."""
        if self._process:
            try:
                self._process.check()
            except MachineError as error:
                raise TargetError(str(error)) from None

    def evidence(self) -> dict[str, str]:
        """Return how the process fares, and the end of its stderr."""
        return {"model, last words": self._process.last_words()} if self._process else {}


def _fill(file: Path) -> None:
    """Write random bytes to the start and the end of a raw file."""
    bytes_of = random.Random(SEED).randbytes
    with file.open("r+b") as raw:
        size = file.stat().st_size
        some = min(size, FILLED * SECTOR)
        raw.write(bytes_of(some))
        raw.seek(size - some)
        raw.write(bytes_of(some))
