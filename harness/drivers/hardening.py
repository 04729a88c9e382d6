"""Illegal devices for drivers: one scenario for each behaviour and kind of virtqueue.

What a driver does with an illegal device is not prescribed. It may work on, or refuse the device.
"""

from __future__ import annotations

from harness.drivers.base import USE, Scenario
from harness.model.defects import DEFECTS
from harness.model.illegal import ILLEGAL

WORK = (USE, "parallel")

RANDOM = ("random-1", "random-2", "random-3")
"""The random devices of the suite; the others of the model are for more runs."""

OF_RINGS = tuple(name for name, illegal in ILLEGAL.items() if illegal.shown)

PLANTED = (
    "used-index-early",
    "used-length-too-long",
    "used-flags-2",
    "avail-event-stays",
    "kicks-not-wanted",
    "interrupt-lost",
    "late-completion-for-another",
    "in-order-backwards",
    "generation-stays",
    "version-1-not-offered",
    "absent-queue-has-a-size",
    "messages-go-to-one-vector",
    "isr-stays",
    "second-feature-word-lost",
    "status-left-after-reset",
)
PLANTED_PACKED = (
    "packed-chain-lost",
    "packed-interrupt-lost",
    "packed-kicks-not-wanted",
    "used-descriptor-changed",
)
"""Planted defects of the model that concern a driver: the others change data or answers, which no
driver can check."""

DISK = {"queues": 4}


def _name(name: str, packed: bool) -> str:
    return f"{name}-packed" if packed else name


def _illegal(name: str, packed: bool) -> Scenario:
    return Scenario(
        _name(name, packed),
        ILLEGAL[name].text,
        WORK,
        {**DISK, "packed": packed},
        needs=frozenset((*["packed"] * packed, *["pci"] * ILLEGAL[name].pci)),
        illegal=(name,),
        section=ILLEGAL[name].section,
    )


def _planted(name: str, packed: bool) -> Scenario:
    needs = {"packed"} if packed else set()
    needs |= {"pci"} if DEFECTS[name].target == "model-pci" else set()
    return Scenario(
        f"planted-{name}",
        DEFECTS[name].text,
        WORK,
        {**DISK, "packed": packed},
        needs=frozenset(needs),
        defects=(name,),
        section=DEFECTS[name].statements[0].partition("-")[0],
    )


ILLEGAL_DEVICES: tuple[Scenario, ...] = (
    *(
        _illegal(name, packed)
        for name in ILLEGAL
        for packed in (False, True)
        if (name in OF_RINGS or not packed) and (name in RANDOM or not name.startswith("random-"))
    ),
    *(_planted(name, packed=False) for name in PLANTED),
    *(_planted(name, packed=True) for name in PLANTED_PACKED),
)
