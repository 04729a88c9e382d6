"""Options for the model: planted defects, whims, their lists, and the record of its events."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from harness.pytestplugin.arguments import add_option, existing_directory
from harness.pytestplugin.lost import print_listing

if TYPE_CHECKING:
    from harness.defects.catalogue import Defect
    from harness.model.whims import Whim


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options for planted defects."""
    add_option(
        parser,
        "defect",
        action="append",
        default=[],
        metavar="NAME",
        help="plant this defect in the device of every --target; repeatable, the defects add up",
    )
    add_option(parser, "list-defects", action="store_true", help="print the defects and exit")
    add_option(
        parser,
        "whim",
        action="append",
        default=[],
        metavar="NAME",
        help="give the device of every --target this legal variation; repeatable, they add up",
    )
    add_option(
        parser,
        "observe",
        type=existing_directory,
        metavar="DIR",
        help="write what the driver does to the model (targets model, model-pci...) to files here",
    )
    add_option(parser, "list-whims", action="store_true", help="print the whims and exit")


def pytest_cmdline_main(config: pytest.Config) -> int | None:
    """Print the defects if `--list-defects` is given, the whims if `--list-whims` is."""
    if config.option.vblk_list_whims:
        from harness.model.whims import WHIMS

        return print_listing(map(_of_whim, WHIMS.values()))
    if config.option.vblk_list_defects:
        from harness.defects.catalogue import defects

        return print_listing(map(_of_defect, defects().values()))
    return None


def _of_whim(whim: Whim) -> str:
    breaks = f"; breaks {', '.join(whim.breaks)}" if whim.breaks else ""
    return f"{whim.name}  ({', '.join(whim.ways)}{breaks})\n    {whim.text}"


def _of_defect(defect: Defect) -> str:
    return f"{defect.name}  ({defect.target}; {', '.join(defect.statements)})\n    {defect.text}"
