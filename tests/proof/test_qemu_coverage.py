"""Tables of QEMU's coverage, made from what gcov prints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.proof import qemu_coverage
from harness.report.coverage import CoverageError

PATH = "hw/virtio/device.c"

REASONS = """
["hw/virtio/device.c"]
goal = [90, 80]
others = ["other_*"]

["hw/virtio/device.c".reasons]
half = "nobody asks"
"""

PAGE = """# Page
<!-- figures: made by tox -e coverage-qemu -->
old
<!-- figures: end -->
<!-- remainder: made by tox -e coverage-qemu -->
<!-- remainder: end -->
"""


def line(number: int, function: str, count: int, *branches: int) -> dict[str, Any]:
    return {
        "line_number": number,
        "function_name": function,
        "count": count,
        "branches": [{"count": taken} for taken in branches],
    }


DOCUMENT = {
    "files": [
        {"file": "../source/qemu/include/device.h", "lines": [line(3, "inline", 0)]},
        {
            "file": f"../source/qemu/{PATH}",
            "lines": [
                line(20, "half", 4, 4, 0),
                line(21, "half", 0),
                line(10, "whole", 2),
                line(30, "other_device", 0, 0, 0),
                line(40, "unread", 0),
            ],
        },
    ]
}


@pytest.fixture
def counters(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Directory of a QEMU whose counters are DOCUMENT."""
    reasons = tmp_path / "reasons.toml"
    reasons.write_text(REASONS)
    monkeypatch.setattr(qemu_coverage, "REASONS", reasons)
    monkeypatch.setattr(qemu_coverage, "counted", lambda build, path: DOCUMENT)
    return tmp_path


def test_lines_and_branches_are_counted_without_other_devices(counters: Path) -> None:
    (source,) = qemu_coverage.sources(counters)

    assert [function.name for function in source.functions] == ["whole", "half", "unread"]
    assert [function.name for function in source.left_out] == ["other_device"]
    assert (source.lines(), source.branches()) == ((2, 4), (1, 2))


def test_a_page_gets_the_figures_and_the_reasons(
    counters: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = counters / "page.md"
    page.write_text(PAGE)

    assert qemu_coverage.main([str(counters), "--lines", "--write", str(page)]) == 0

    text = page.read_text()
    assert "old" not in text
    assert f"| `{PATH}` | 2 of 4 (50.0 %) | 90 % | 1 of 2 (50.0 %) | 80 % | 1 |" in text
    assert "| `device.c` | 1 | `half` | nobody asks |" in text
    assert "| `device.c` | 1 | `unread` | (not read) |" in text
    assert f"{PATH}:21: half" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["others", "reasons"])
def test_a_name_that_fits_no_function_is_refused(counters: Path, name: str) -> None:
    wrong = {"others": ("other_*", "gone_*"), "reasons": ("half =", "gone =")}[name]
    qemu_coverage.REASONS.write_text(REASONS.replace(*wrong))

    with pytest.raises(CoverageError, match="has no function gone"):
        qemu_coverage.sources(counters)


def test_a_build_without_counters_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert qemu_coverage.main([str(tmp_path)]) == 1

    assert "run the suite on this QEMU" in capsys.readouterr().err
