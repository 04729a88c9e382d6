"""The matrix: a row for each statement, and its details below it."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import quote

from harness.report.page.sequence import sequence
from harness.report.page.words import BAD, code, labels, link, listed, many, tag, text, word
from harness.report.results import ORDER, Result, Results, Row, Test, Verdict, proves, worst
from harness.virtio.sections import section_name, section_url

WHOLE = 16_000
"""Most characters of a failure's text on the page: its start and its end are shown."""

BUDGET = 500_000
"""Approximate number of characters of all failures' texts. The results file has the whole texts."""

LEAST = 2_000
"""Characters of a failure's text that are always kept, however many failures there are."""

Group = tuple[Verdict, Result, list[str]]
"""Equal results: their verdict for a statement, the first of them, and their columns."""


class Table:
    """The rows of one results' table, as HTML."""

    def __init__(self, results: Results) -> None:
        self._results = results
        self._labels = labels(results)
        self._numbers = {name: number for number, name in enumerate(results.tests)}
        self._tests: dict[str, list[Test]] = {}
        for test in results.tests.values():
            for name in test.statements:
                self._tests.setdefault(name, []).append(test)
        failures = sum(
            bool(result.evidence)
            for test in results.tests.values()
            for result in test.results.values()
        )
        self._allowed = max(LEAST, min(WHOLE, BUDGET // max(1, failures)))

    def bodies(self) -> Iterator[str]:
        """Yield a <tbody> for each section, which begins with the section's name."""
        section = None
        for number, row in enumerate(self._results.ordered_rows()):
            if row.section != section:
                if section is not None:
                    yield "</tbody>"
                section = row.section
                yield (
                    f'<tbody data-s="{text(section)}"><tr class="s">'
                    f'<th scope="rowgroup" colspan="{len(self._results.columns) + 1}">'
                    f"<span>{link(section_url(section), section)}"
                    f" {text(section_name(section))}</span></th></tr>"
                )
            yield self._row(row, row.id if row.kind == "catalogue" else f"s{number}")
        if section is not None:
            yield "</tbody>"

    def sources(self) -> Iterator[str]:
        """Yield every test with its source, as the target of links in the rows."""
        for test in self._results.tests.values():
            number = self._numbers[test.id]
            traces = "".join(
                sequence(result.trace, self._anchor(test, name), f"Trace, {self._labels[name]}")
                for name, result in test.results.items()
            )
            yield (
                f"<details><summary>{text(test.id)}</summary>"
                f'<p id="t{number}">{self._place(test)}</p><pre>{text(test.source)}</pre>{traces}'
                "</details>"
            )

    def _anchor(self, test: Test, column: str) -> str:
        """Return the id of a trace on the page."""
        return f"r{self._numbers[test.id]}-{list(self._labels).index(column)}"

    def _place(self, test: Test) -> str:
        url = next((run.source for run in reversed(self._results.runs) if run.source), "")
        url = url.replace("{file}", quote(test.file)).replace("{line}", str(test.line))
        return link(url, f"{test.file}, line {test.line}")

    def _row(self, row: Row, anchor: str) -> str:
        tests = self._tests.get(row.id, [])
        verdicts = [
            worst(
                proves(test.results[column.id], row) for test in tests if column.id in test.results
            )
            for column in self._results.columns
        ]
        level = row.level if row.party == "device" else f"{row.level}, {row.party}"
        name = row.id if row.kind == "catalogue" else row.section
        if row.untested and set(verdicts) <= {Verdict.NOT_RUN}:
            why = f"no test is possible: {text(row.untested)}"
            cells = f'<td class="n u" colspan="{max(1, len(verdicts))}">{why}</td>'
        else:
            cells = "".join(
                f'<td class="{code(verdict)}">{word(verdict)}</td>' for verdict in verdicts
            )
        return (
            f'<tr class="r" id="{text(anchor)}" data-l="{text(row.level)}"'
            f' data-v="{"".join(map(code, verdicts))}"><th scope="row"><label>'
            f'<input type="checkbox" aria-label="details of {text(name)}">'
            f'<a href="#{text(anchor)}">{text(name)}</a> <i>{text(level)}</i>'
            f"<span>{text(row.text)}</span>{_tally(verdicts)}</label></th>{cells}</tr>"
            f'<tr class="m"><td colspan="{len(verdicts) + 1}"><div>'
            f"{self._details(row, tests)}</div></td></tr>"
        )

    def _details(self, row: Row, tests: list[Test]) -> str:
        parts = []
        if row.untested:
            parts.append(f"<p>No test is possible: {text(row.untested)}</p>")
        elif not tests:
            parts.append("<p>None of its tests was part of the run.</p>")
        groups = {test.id: self._groups(row, test) for test in tests}
        parts += self._deviations(
            [group for test_groups in groups.values() for group in test_groups]
        )
        for test in tests:
            number = self._numbers[test.id]
            items = "".join(self._group(test, *group) for group in groups[test.id])
            parts.append(
                f'<h4><a href="#t{number}">{text(test.id.rpartition("::")[2])}</a>'
                f" <small>{self._place(test)}</small></h4><ul>{items}</ul>"
            )
        return "".join(parts)

    def _groups(self, row: Row, test: Test) -> list[Group]:
        """Return a test's results, equal ones grouped, the worst first."""
        groups: dict[tuple[object, ...], Group] = {}
        for column in self._results.columns:
            result = test.results.get(column.id)
            if result is None:
                continue
            proved = proves(result, row)
            why = tuple(sorted(result.deviation.items()))
            details = (result.expected, result.seen, result.reason, result.hardening.get("verdict"))
            key = (proved, result.verdict, why, *details)
            groups.setdefault(key, (proved, result, []))[2].append(column.id)
        return sorted(groups.values(), key=lambda group: ORDER.index(group[0]))

    def _deviations(self, groups: list[Group]) -> Iterator[str]:
        """Yield the known deviations of a statement, each once for all tests that meet it."""
        whys: dict[str, list[str]] = {}
        for proved, result, columns in groups:
            if proved is Verdict.DEVIATION:
                whys.setdefault(result.deviation.get("why", ""), []).extend(columns)
        for why, columns in whys.items():
            yield (
                f'<p class="why">{tag(Verdict.DEVIATION)} of {self._targets(columns)}:'
                f" {text(why)}</p>"
            )

    def _targets(self, columns: list[str]) -> str:
        names = [self._labels[name] for name in dict.fromkeys(columns)]
        return listed(names, len(self._results.columns))

    def _group(self, test: Test, proved: Verdict, result: Result, columns: list[str]) -> str:
        remarks = [part for part in (result.reason, result.hardening.get("verdict", "")) if part]
        if proved is not result.verdict:
            other = result.deviation.get("statement")
            remarks.append(
                f"the test ended at the known deviation from {other}"
                if other
                else "the test failed, which a SHOULD among its statements excuses"
            )
        words = "".join(f": {text(part)}" for part in remarks)
        if proved in BAD:
            words += _observed(result)
        return (
            f"<li>{tag(proved)} on {self._targets(columns)}{words}"
            f"{self._evidence(test, proved, columns)}</li>"
        )

    def _evidence(self, test: Test, proved: Verdict, columns: list[str]) -> str:
        """Return the failures' whole texts. Of a known failure only the first is shown."""
        if proved not in BAD:
            return ""
        excused = proved in (Verdict.DEVIATION, Verdict.ADVISORY)
        parts = []
        for name in columns[:1] if excused else columns:
            result = test.results[name]
            if result.artifacts:
                parts.append(
                    f'<p>Files in <a href="{quote(result.artifacts)}/">'
                    f"{text(result.artifacts)}</a></p>"
                )
            if result.trace:
                anchor = self._anchor(test, name)
                parts.append(f'<p><a href="#{anchor}">Trace, {text(self._labels[name])}</a></p>')
            if result.evidence:
                opened = "" if excused or name != columns[0] else " open"
                parts.append(
                    f"<details{opened}><summary>Evidence, {text(self._labels[name])}</summary>"
                    f"<pre>{text(self._cut(result.evidence))}</pre></details>"
                )
        return "".join(parts)

    def _cut(self, evidence: str) -> str:
        """Return the start and the end of a text that is too long for the page."""
        left_out = len(evidence) - self._allowed
        if left_out <= 0:
            return evidence
        half = self._allowed // 2
        return (
            f"{evidence[:half]}\n\n[{many(left_out, 'character')} left out here;"
            f" the results file has them]\n\n{evidence[-half:]}"
        )


def _observed(result: Result) -> str:
    parts = []
    if result.expected:
        parts.append(f"expected <code>{text(result.expected)}</code>")
    if result.seen:
        parts.append(f"seen <code>{text(result.seen)}</code>")
    return f": {', '.join(parts)}" if parts else ""


def _tally(verdicts: list[Verdict]) -> str:
    """Return the number of targets with each verdict, for screens too narrow for columns."""
    counts = ((verdict, verdicts.count(verdict)) for verdict in ORDER)
    return "".join(
        f'<b class="y {code(verdict)}">{count} {text(word(verdict))}</b>'
        for verdict, count in counts
        if count
    )
