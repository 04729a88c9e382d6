"""The page around the matrix: the totals, the filters, and the runs."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from importlib.resources import files
from string import Template

from harness.report.causes import shared
from harness.report.page.rows import Table
from harness.report.page.words import code, labels, many, quoted, tag, text, versions, word
from harness.report.results import MEANINGS, OPEN, ORDER, Column, Results, Verdict
from harness.virtio.catalogue import STRENGTH
from harness.virtio.sections import section_name

WIDE = 12
"""Number of columns that fit on a sheet of paper.

With more, it is printed like on a narrow screen.
"""


def rendered(results: Results) -> str:
    """Return the results as one self-contained HTML page."""
    style, cards, script = _part("page.css"), _part("cards.css"), _part("page.js")
    narrow = "(max-width: 46rem)"
    media = f"{narrow}, print" if len(results.columns) > WIDE else narrow
    style += f"@media {media} {{\n{cards}{_names(results)}}}\n{_hiders(results)}"
    table = Table(results)
    return Template(_part("page.html")).substitute(
        title=text(_title(results)),
        hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        style=style,
        script=script,
        headline="".join(_headline(results)),
        summary="".join(_summary(results)),
        legend="".join(
            f"<dt>{tag(verdict)}</dt><dd>{text(MEANINGS[verdict])}</dd>" for verdict in ORDER
        ),
        levels="".join(
            f'<option value="{text(level)}">{text(level)}</option>'
            for level in STRENGTH
            if any(row.level == level for row in results.rows.values())
        ),
        sections="".join(_section_options(results)),
        verdicts="".join(
            f'<label class="v {code(verdict)}"><input type="checkbox" name="v"'
            f' value="{code(verdict)}" checked>{text(word(verdict))}</label>'
            for verdict in ORDER
        ),
        targets="".join(
            f'<label><input type="checkbox" name="c" value="{number}" checked>'
            f"{text(labels(results)[column.id])}</label>"
            for number, column in enumerate(results.columns)
        ),
        heads="".join(
            f'<th scope="col"><span>{text(column.name)}'
            f"<small>{text(versions(column))}</small></span></th>"
            for column in results.columns
        ),
        bodies="\n".join(table.bodies()),
        sources="\n".join(table.sources()),
        made="".join(_made(results)),
    )


def _part(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _title(results: Results) -> str:
    specification = next((run.specification for run in results.runs), "virtio")
    return f"{specification}, block {'driver' if _of_drivers(results) else 'device'}: conformance"


def _of_drivers(results: Results) -> bool:
    """Return whether all columns are drivers."""
    return bool(results.columns) and all(column.party == "driver" for column in results.columns)


def _names(results: Results) -> str:
    """Return the style that shows the target in each cell if the column's title is not visible."""
    called = labels(results)
    return "".join(
        f"#matrix .r td:nth-child({number}):not([colspan])::before"
        f" {{ content: {quoted(called[column.id])} }}\n"
        for number, column in enumerate(results.columns, 2)
    )


def _hiders(results: Results) -> str:
    """Return the style that hides the column of a target that is not selected."""
    return "".join(
        f"#matrix.c{number} :is(.r td, thead th):nth-child({number + 2}):not([colspan])"
        " { display: none }\n"
        for number in range(len(results.columns))
    )


def _headline(results: Results) -> Iterator[str]:
    """Yield the most important facts, for a reader who reads no further."""
    everything = results.verdicts()
    verdicts = {name: everything[name] for name in results.rows if not _hardens(results, name)}
    met = Counter(verdict for of_row in verdicts.values() for verdict in set(of_row.values()))
    broken = [
        column
        for column in results.columns
        if any(of_row[column.id] is Verdict.BROKEN for of_row in verdicts.values())
    ]
    noun = "driver" if _of_drivers(results) else "target"
    targets = many(len(results.columns), noun)
    if not results.columns:
        yield "<p><strong>Nothing was tested.</strong></p>"
    elif broken:
        statements = many(met[Verdict.BROKEN], "statement is", "statements are")
        yield (
            f"<p><strong>{statements} broken, and not recorded as a known deviation</strong>, on"
            f" {len(broken)} of {targets}.</p>"
        )
    else:
        yield f"<p><strong>Nothing is broken except known deviations</strong>, on {targets}.</p>"
    if met[Verdict.ERROR]:
        yield (
            f"<p>The tests of {many(met[Verdict.ERROR], 'statement')} have no verdict"
            f" on some {noun}: an error of the harness, the machine or a record.</p>"
        )
    yield _causes(results)
    known = many(met[Verdict.DEVIATION], "statement is", "statements are")
    advisories = many(met[Verdict.ADVISORY], "SHOULD is", "SHOULDs are")
    yield (
        f"<p>{known} known not to be kept on some {noun}, with the reason;"
        f" {advisories} not followed on some {noun}. {_tested(results, verdicts)}</p>"
    )
    yield _hardening([of_row for name, of_row in everything.items() if name not in verdicts])
    if not all(run.complete for run in results.runs):
        yield "<p><strong>A run was cut short:</strong> tests not reached are “not run”.</p>"


CAUSES = 20
"""Groups of failures, the largest of each target, that the page shows."""


def _causes(results: Results) -> str:
    """Return the groups of failures with a link to each one's smallest test."""
    numbers = {name: number for number, name in enumerate(results.tests)}
    parts = []
    for column, title, common in shared(results):
        groups = "".join(
            f"<li>{many(len(cause.tests), 'test')}: {text(cause.text)};"
            f" {'first in' if cause.ended else 'see'}"
            f' <a href="#t{numbers[cause.test]}">{text(cause.test)}</a></li>'
            for cause in common[:CAUSES]
        )
        if (rest := len(common) - CAUSES) > 0:
            groups += f"<li>{many(rest, 'other cause')}</li>"
        parts.append(f"<p>{text(labels(results)[column.id])}: {title}:</p><ul>{groups}</ul>")
    return "".join(parts)


def _hardens(results: Results, name: str) -> bool:
    """Return True if a row is not a statement, but a driver that breaks the rules."""
    return results.rows[name].level == "hardening"


def _hardening(rows: list[dict[str, Verdict]]) -> str:
    tested = [set(of_row.values()) - OPEN for of_row in rows if set(of_row.values()) - OPEN]
    if not tested:
        return ""
    borne = sum(verdicts == {Verdict.KEPT} for verdicts in tested)
    return (
        f"<p>Drivers that break the rules (this is not about conformance): of"
        f" {many(len(tested), 'kind')} tried, {borne} did no harm on any target.</p>"
    )


def _tested(results: Results, verdicts: dict[str, dict[str, Verdict]]) -> str:
    idle = [results.rows[name] for name, of_row in verdicts.items() if set(of_row.values()) <= OPEN]
    hopeless = sum(bool(row.untested) for row in idle)
    words = f"Of {many(len(verdicts), 'statement')}, {len(verdicts) - len(idle)} were tested"
    return (
        f"{words}; for {hopeless} no test is possible, and the reason is given."
        if hopeless
        else f"{words}."
    )


def _summary(results: Results) -> Iterator[str]:
    """Yield a line for each target: a bar, and its numbers."""
    verdicts = [
        of_row for name, of_row in results.verdicts().items() if not _hardens(results, name)
    ]
    counts = {
        column.id: Counter(of_row[column.id] for of_row in verdicts) for column in results.columns
    }
    shown = [verdict for verdict in ORDER if any(count[verdict] for count in counts.values())]
    noun = "Driver" if _of_drivers(results) else "Target"
    yield f'<table class="sum"><thead><tr><th scope="col">{noun}</th><th scope="col">Kept</th>'
    yield "".join(f'<th scope="col">{text(word(verdict))}</th>' for verdict in shown)
    yield "</tr></thead><tbody>"
    for column in results.columns:
        count = counts[column.id]
        tested = sum(count[verdict] for verdict in ORDER if verdict not in OPEN)
        kept = f"{count[Verdict.KEPT]} of {tested} tested" if tested else "nothing tested"
        yield (
            f'<tr><th scope="row">{text(column.name)} <small>{text(versions(column))}</small></th>'
            f"<td>{_bar(count)}<span>{kept}</span></td>"
        )
        yield "".join(
            f'<td class="{code(verdict) if count[verdict] else ""}">{count[verdict]}</td>'
            for verdict in shown
        )
        yield "</tr>"
    yield "</tbody></table>"


def _bar(count: Mapping[Verdict, int]) -> str:
    parts = "".join(
        f'<i class="{code(verdict)}" style="flex:{count[verdict]}"></i>'
        for verdict in reversed(ORDER)
        if verdict not in OPEN and count[verdict]
    )
    return f'<div class="bar" aria-hidden="true">{parts}</div>' if parts else ""


def _section_options(results: Results) -> Iterator[str]:
    """Yield every section with statements, and the sections around it."""
    counts: Counter[str] = Counter()
    order: list[str] = []
    for row in results.ordered_rows():
        numbers = row.section.split(".")
        for depth in range(1, len(numbers) + 1):
            section = ".".join(numbers[:depth])
            counts[section] += 1
            if counts[section] == 1:
                order.append(section)
    for section in order:
        indent = "\N{NO-BREAK SPACE}" * 2 * section.count(".")
        yield (
            f'<option value="{text(section)}">{indent}{text(section)}'
            f" {text(section_name(section))} ({counts[section]})</option>"
        )


def _made(results: Results) -> Iterator[str]:
    """Yield the runs and the machines, so that a reader can repeat them."""
    for number, run in enumerate(results.runs):
        state = "complete" if run.complete else "cut short"
        host = ", ".join(f"{name} {value}" for name, value in run.host.items())
        yield (
            f"<h4>Run of {text(run.started)}, {run.seconds:.0f} s, {state}</h4>"
            f"<p>Suite {text(run.suite)}, {text(run.specification)}, on {text(host)}</p>"
            f"<pre>pytest {text(' '.join(run.arguments))}</pre><dl>"
        )
        yield "".join(_facts(column) for column in results.columns if number in column.runs)
        yield "</dl>"


def _facts(column: Column) -> str:
    facts = "<br>".join(f"{text(name)}: {text(value)}" for name, value in column.facts.items())
    return f"<dt>{text(column.id)}</dt><dd>{facts}</dd>"
