"""The scenarios: the device that a driver gets, and the work that it does there.

Each device is legal. `about` are statements that the driver breaks if it hangs or fails in the
scenario. The stream alone does not show them.
"""

from __future__ import annotations

from collections.abc import Sequence

from harness.drivers.base import Scenario, UnknownScenarioError
from harness.drivers.hardening import ILLEGAL_DEVICES

ORDINARY = ("use", "parallel")
EVERYTHING = ("use", "discard", "filesystem", "parallel")
MODERN_PCI = frozenset({"pci", "modern"})

SCENARIOS: tuple[Scenario, ...] = (
    Scenario("ordinary", "an ordinary disk, and all the work that there is", EVERYTHING),
    Scenario("again", "the device is reset and initialized again", ("use", "rebind", "reboot")),
    Scenario(
        "resize",
        "the capacity doubles, which is announced twice",
        ("resize",),
        whims=("announces-a-change-twice",),
    ),
    Scenario("read-only", "the disk is read-only", disk={"read_only": True}),
    Scenario(
        "new-features",
        "feature bits are offered that nobody knows",
        whims=("future-bits", "distant-bits"),
        about=("2.2.1-R-03a", "2.2.1-R-05"),
    ),
    Scenario(
        "few-features", "no optional feature is offered", whims=("bare",), about=("2.2.1-R-04a",)
    ),
    Scenario(
        "long-configuration",
        "the configuration space goes on after its last field",
        whims=("config-longer",),
        about=("2.5.1-R-03",),
    ),
    Scenario(
        "short-configuration",
        "the configuration space is as short as the offered features allow",
        whims=("config-shorter",),
        about=("2.5.1-R-04",),
    ),
    Scenario(
        "narrow-limits",
        "segments, discards and the queue are as small as they may be",
        EVERYTHING,
        {"queue_size": 8, "max_discard_sectors": 8, "max_write_zeroes_sectors": 8},
        ("seg-max-1", "one-segment"),
    ),
    Scenario(
        "needless-notifications",
        "the device notifies more than it has to",
        ORDINARY,
        whims=("signals-twice", "signals-at-enable"),
        about=("2.7.7.1-R-05",),
    ),
    Scenario(
        "out-of-order",
        "requests take their time, and end out of order",
        ORDINARY,
        {"in_order": False, "packed": False},
        ("used-out-of-order", "every-third-is-slow"),
    ),
    Scenario(
        "out-of-order-packed",
        "requests of a packed virtqueue take their time, and end out of order",
        ORDINARY,
        {"in_order": False, "packed": True},
        ("used-out-of-order", "every-third-is-slow"),
    ),
    Scenario(
        "slow-reset",
        "a reset takes 30 ms",
        ("use", "rebind", "reboot"),
        whims=("slow-function-reset",),
        about=("2.4.2-R-01", "4.1.4.3.2-R-05"),
        needs=frozenset({"pci"}),
    ),
    Scenario(
        "odd-function",
        "the PCI function has vendor data, a structure that is there twice, and another revision",
        whims=("odd-capabilities", "other-revision"),
        needs=MODERN_PCI,
    ),
    Scenario(
        "reserved-type",
        "a virtio capability has a reserved type",
        whims=("reserved-type",),
        about=("4.1.4.1-R-01",),
        needs=MODERN_PCI,
    ),
    Scenario(
        "longer-capabilities",
        "virtio capabilities are longer than specified",
        whims=("longer-capabilities",),
        about=("4.1.4.1-R-03",),
        needs=MODERN_PCI,
    ),
    Scenario(
        "reserved-bar",
        "a virtio capability names a reserved BAR",
        whims=("reserved-bar",),
        about=("4.1.4.1-R-04",),
        needs=MODERN_PCI,
    ),
    Scenario(
        "longer-structures",
        "the structures of registers are longer than defined",
        whims=("longer-structures",),
        about=("4.1.4.1-R-06a",),
        needs=MODERN_PCI,
    ),
    Scenario(
        "one-vector",
        "the PCI function has one MSI-X vector",
        whims=("one-vector",),
        about=("4.1.5.1.2.2-R-01",),
        needs=MODERN_PCI,
    ),
    Scenario(
        "platform",
        "the device offers to respect an IOMMU and the order of the platform",
        whims=("access-platform", "order-platform"),
        needs=MODERN_PCI,
    ),
    Scenario("packed", "virtqueues can be packed", EVERYTHING, {"packed": True}),
    Scenario(
        "queues",
        "there are four request queues, and the cache mode cannot be changed",
        ORDINARY,
        {"queues": 4, "config_wce": False},
    ),
    Scenario("large-blocks", "a block has 4096 bytes", EVERYTHING, {"logical_block_size": 4096}),
    Scenario("random", "operations that chance has chosen", ("random",)),
)


def chosen(names: Sequence[str] = ()) -> tuple[Scenario, ...]:
    """Return the scenarios of these names, or all with a legal device if there are no names.

    Illegal devices are scenarios, too. UnknownScenarioError for an unknown name.
    """
    known = {scenario.name: scenario for scenario in (*SCENARIOS, *ILLEGAL_DEVICES)}
    for name in names:
        if name not in known:
            raise UnknownScenarioError(f"no scenario {name!r}; known: {', '.join(known)}")
    return tuple(known[name] for name in names) if names else SCENARIOS
