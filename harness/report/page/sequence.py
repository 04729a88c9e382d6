"""A trace on the page: the driver on the left, the device on the right, and the rings as tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from harness.report.page.words import many, text
from harness.report.trace import Row

HEADS = ("virtqueue", "head", "descriptors", "state")


def sequence(trace: Mapping[str, Sequence[str]], anchor: str, title: str) -> str:
    """Return the folded trace of a failure, "" if there is none."""
    lines = list(_rows(trace.get("lines", ())))
    if not lines:
        return ""
    tables = "".join(
        _ring(words, trace.get(key, ()))
        for key, words in (
            ("before", "Rings before the marked event"),
            ("after", "Rings after it"),
        )
    )
    heads = "".join(f"<th>{name}</th>" for name in ("Seconds", "Driver", "Device"))
    return (
        f'<details id="{text(anchor)}"><summary>{text(title)}: {many(len(lines), "event")}'
        f'</summary><div class="scroll"><table class="q"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table>{tables}</div></details>"
    )


def _rows(lines: Sequence[str]) -> Iterator[str]:
    for line in lines:
        try:
            row = Row.parse(line)
        except ValueError:  # a results file of somebody else
            continue
        words = text(row.words)
        cells = {
            "driver": f"<td>{words}</td><td></td>",
            "device": f"<td></td><td>{words}</td>",
            "test": f'<td colspan="2">{words}</td>',
        }[row.side]
        mark = ' class="x"' if row.offending else ""
        yield f"<tr{mark}><td>{row.seconds:.6f}</td>{cells}</tr>"


def _ring(title: str, lines: Sequence[str]) -> str:
    """Return the chains of the virtqueues as a table."""
    if not lines:
        return ""
    rows = "".join(
        "<tr>" + "".join(f"<td>{text(cell)}</td>" for cell in line.split(" | ")) + "</tr>"
        for line in lines
    )
    heads = "".join(f"<th>{name}</th>" for name in HEADS)
    return (
        f'<table class="q"><caption>{title}</caption><thead><tr>{heads}</tr></thead>'
        f"<tbody>{rows}</tbody></table>"
    )
