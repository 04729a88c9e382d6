"""The part of the pytest plugin for devices with a defect: `--defect`, `--list-defects`."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options for planted defects."""
    group = parser.getgroup("virtio-blk", "virtio-blk conformance")
    group.addoption(
        "--defect",
        action="append",
        default=[],
        metavar="NAME",
        help="plant this defect in the device of every --target; repeatable, they add up",
    )
    group.addoption("--list-defects", action="store_true", help="print the defects and stop")


def pytest_cmdline_main(config: pytest.Config) -> int | None:
    """`--list-defects`."""
    if not config.option.list_defects:
        return None
    from harness.defects.catalogue import defects

    for one in defects().values():
        print(f"{one.name}  ({one.target}; {', '.join(one.statements)})\n    {one.text}")
    return 0
