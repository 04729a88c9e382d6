"""Findings of a random run, and the recorded deviations among them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from harness.report.deviations import Deviation, load
from harness.targets.base import Target

KNOWN = Path(__file__).parent / "known"
"""Folder of recorded deviations, as in `conformance/deviations`; `tests` are names of checks."""


class Finding(Exception):  # noqa: N818 (it is a verdict on the device)
    """A violation by the device: the check, the violated statement, and a description.

    `detail` holds what differs between findings of one kind, in addition to the numbers in `what`.
    """

    def __init__(self, check: str, statement: str, what: str, detail: str = "") -> None:
        super().__init__(f"{check} [{statement}]: {what}{detail and f': {detail}'}")
        self.check = check
        self.statement = statement
        self.what = what

    @property
    def signature(self) -> str:
        """Return a text that is the same for findings of one kind, without their numbers."""
        return f"{self.check}: {re.sub(r'0x[0-9a-f]+|[0-9]+', 'N', self.what)[:160]}"


@dataclass(frozen=True)
class Known:
    """The recorded deviations of the device under test."""

    deviations: tuple[Deviation, ...] = ()

    @classmethod
    def of(cls, target: Target) -> Known:
        """Return the deviations of the implementations that make up the target's device."""
        recorded = [deviation for path in sorted(KNOWN.glob("*.toml")) for deviation in load(path)]
        return cls(
            tuple(
                deviation
                for identity in target.identities()
                for deviation in recorded
                if deviation.affects(
                    identity.implementation,
                    identity.version,
                    target.name,
                    identity.parts,
                    target.alike,
                )
            )
        )

    @cached_property
    def checks(self) -> frozenset[str]:
        """Return the checks for which a deviation is recorded."""
        return frozenset(check for deviation in self.deviations for check in deviation.tests)

    def explains(self, finding: Finding) -> Deviation | None:
        """Return the deviation that explains a finding, or None."""
        for deviation in self.deviations:
            if finding.check in deviation.tests and deviation.explains(finding.what):
                return deviation
        return None
