"""What a random run has found, and which of that is known already."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from harness.report.deviations import Deviation, load
from harness.targets.base import DeviceIdentity

KNOWN = Path(__file__).parent / "known"
"""Deviations of implementations, as in `conformance/deviations`; `tests` are names of checks."""


class Finding(Exception):  # noqa: N818 (it says something about the device, not about us)
    """The device did what it must not: by which check, against which statement, and what.

    `detail` is what differs between findings of one kind, beside the numbers in `what`.
    """

    def __init__(self, check: str, statement: str, what: str, detail: str = "") -> None:
        super().__init__(f"{check} [{statement}]: {what}{detail and f': {detail}'}")
        self.check = check
        self.statement = statement
        self.what = what

    @property
    def signature(self) -> str:
        """The same for findings of one kind, whatever numbers are in them."""
        return f"{self.check}: {re.sub(r'0x[0-9a-f]+|[0-9]+', 'N', self.what)[:160]}"


@dataclass(frozen=True)
class Known:
    """The recorded deviations of the device under test."""

    deviations: tuple[Deviation, ...] = ()

    @classmethod
    def of(cls, identities: Iterable[DeviceIdentity], target: str) -> Known:
        """Those of these implementations, on that target."""
        recorded = [one for path in sorted(KNOWN.glob("*.toml")) for one in load(path)]
        return cls(
            tuple(
                one
                for identity in identities
                for one in recorded
                if one.affects(identity.implementation, identity.version, target)
            )
        )

    @cached_property
    def checks(self) -> frozenset[str]:
        """The checks that one is recorded for."""
        return frozenset(check for one in self.deviations for check in one.tests)

    def explains(self, finding: Finding) -> Deviation | None:
        """The deviation that a finding is an instance of."""
        for one in self.deviations:
            if finding.check in one.tests and one.explains(finding.what):
                return one
        return None
