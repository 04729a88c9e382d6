"""Findings for the maintainers of a device: a Markdown text for each, as a bug tracker takes it.

A finding is the failures of a target with the same probable cause. Errors that say nothing of the
device are no findings, unless the device or its connection was lost.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.driver.flight import Sent
from harness.report.artifacts import lasting
from harness.report.causes import Cause, causes, type_name
from harness.report.failure import printable
from harness.report.results import Column, Result, Results, Row, Test, Verdict
from harness.virtio.blk import Status
from harness.virtio.sections import section_url

LISTED = 40
"""Most tests, statements and requests that a text lists."""

EXCERPT = 30
"""Last lines of a trace that a text has."""

EVIDENCE = 20_000
"""Most characters of a failure's evidence: its start and its end are kept."""


@dataclass(frozen=True)
class Finding:
    """A finding: the target, the cause, and the tests that show it, the best one first."""

    column: Column
    title: str
    tests: tuple[Test, ...]


def findings(results: Results, known: bool = False) -> list[Finding]:
    """Return the findings, target by target; with `known` the recorded deviations, too."""
    found = []
    columns = {column.id: column for column in results.columns}
    for cause in causes(results):
        if _about_the_device(results, cause):
            names = dict.fromkeys((cause.test, *cause.tests))
            tests = tuple(results.tests[name] for name in names)
            found.append(Finding(columns[cause.column], cause.text, tests))
    return found + (list(_deviations(results)) if known else [])


def _about_the_device(results: Results, cause: Cause) -> bool:
    verdicts = {results.tests[test].results[cause.column].verdict for test in cause.tests}
    return cause.ended or Verdict.BROKEN in verdicts


def _deviations(results: Results) -> Iterator[Finding]:
    """Yield the recorded deviations, each with all tests that meet it on a target."""
    for column in results.columns:
        tests: dict[tuple[str, str], list[Test]] = {}
        for test in results.tests.values():
            result = test.results.get(column.id)
            if result and result.verdict is Verdict.DEVIATION:
                why = result.deviation.get("statement", ""), result.deviation.get("why", "")
                tests.setdefault(why, []).append(test)
        for (statement, words), of in tests.items():
            yield Finding(column, f"{statement}: {words}", tuple(of))


def file_names(found: Iterable[Finding]) -> Iterator[tuple[str, Finding]]:
    """Yield each finding with a file name: a number, and the first words of its title."""
    for number, finding in enumerate(found, 1):
        slug = re.sub(r"[^a-z0-9]+", "-", finding.title.lower()).strip("-")[:60].rstrip("-")
        yield f"{number:02}-{slug or 'finding'}.md", finding


def markdown(results: Results, finding: Finding) -> str:
    """Return the text of a finding."""
    return printable("\n".join(_lines(results, finding))) + "\n"


def _lines(results: Results, finding: Finding) -> Iterator[str]:
    column, test = finding.column, finding.tests[0]
    result = test.results[column.id]
    rows = _rows(results, finding.tests[:1])
    others = [row for row in _rows(results, finding.tests[1:]) if row not in rows]
    yield f"# {_inline(finding.title)}"
    yield ""
    yield "| | |"
    yield "| --- | --- |"
    yield f"| {column.party} | {_inline(column.id)} |"
    for row in rows:
        yield f"| statement | {_link(row)} ({row.level}): {_inline(row.text)} |"
    if others:
        more = f" and {len(others) - LISTED} more" if len(others) > LISTED else ""
        links = ", ".join(map(_link, others[:LISTED]))
        yield f"| statements of the other tests | {links}{more} |"
    for name, value in column.facts.items():
        yield f"| {_inline(name)} | {_inline(value)} |"
    for number in column.runs:
        run = results.runs[number]
        host = ", ".join(f"{name} {value}" for name, value in run.host.items())
        words = f"{run.started}, suite {run.suite}, {run.specification}, {host}"
        yield f"| run | {_inline(words)} |"
    yield ""
    yield f"**Tests.** {len(finding.tests)} of this {column.party} show it. The shortest is"
    yield f"`{test.id}`."
    yield ""
    yield "**Reproduce.** In a checkout of the suite:"
    yield ""
    yield from _fenced(command(results, column, test))
    yield ""
    yield from _reproducer(column, result)
    if result.expected:
        yield "**Expected.**"
        yield ""
        yield from _fenced(result.expected)
        yield ""
    yield "**Seen.**"
    yield ""
    yield from _fenced(result.seen or "no text")
    yield ""
    yield from _requests(result.requests)
    yield from _trace(result.trace.get("lines", []))
    yield from _evidence(result)
    yield from _attachments(result)
    yield from _others(finding)


def _rows(results: Results, tests: Iterable[Test]) -> list[Row]:
    """Return the statements of the tests, those of the first test first."""
    names = dict.fromkeys(name for test in tests for name in test.statements)
    return [results.rows[name] for name in names if name in results.rows]


def _link(row: Row) -> str:
    name = row.id if row.kind == "catalogue" else row.section
    return f"[{_inline(name)}]({section_url(row.section)})"


def command(results: Results, column: Column, test: Test) -> str:
    """Return the command that runs one test again, with the options of the run that had it."""
    arguments = results.runs[column.runs[-1]].arguments if column.runs else []
    files = {part.file for part in results.tests.values()}

    def selects_tests(word: str) -> bool:
        place = word.partition("::")[0].rstrip("/")
        return any(file == place or file.startswith(f"{place}/") for file in files)

    options = [word for word in lasting(arguments) if not selects_tests(word)]
    subject = "--vblk-driver" if column.party == "driver" else "--vblk-target"
    return shlex.join(["pytest", *options, subject, column.name, test.id])


def _requests(requests: list[Sent]) -> Iterator[str]:
    """Yield a table of the last requests, in the order in which they were sent."""
    if not requests:
        return
    shown = requests[-LISTED:]
    yield f"**Requests.** The last {len(shown)} of the test, in order. Lengths are in bytes."
    yield ""
    yield "| type | queue | data out | data in | aligned to | descriptors | status | used length |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    for sent in shown:
        table = f"{sent.elements}, {'indirect' if sent.indirect else 'direct'}"
        ended = ("never completed", "-") if sent.status < 0 else (_status(sent), str(sent.used))
        cells = (type_name(sent.type), sent.queue, sent.size, sent.room, sent.align or "-", table)
        yield f"| {' | '.join(map(str, (*cells, *ended)))} |"
    yield ""


def _reproducer(column: Column, result: Result) -> Iterator[str]:
    """Yield the command that makes a script which runs without the suite, if there is one."""
    trace = Path(result.artifacts) / "trace.jsonl"
    qemu = column.name.startswith("qtest-")
    back_end = column.name == "vhost-user" or column.name.startswith("vhost-user:")
    if not (qemu or back_end) or not trace.is_file():
        return
    yield "A script that shows it without the suite, if the trace can be exported:"
    yield ""
    form = "qtest" if qemu else "python"
    yield from _fenced(shlex.join(["vblk", "export", str(trace), "--as", form]))
    yield ""
    if column.name.startswith("vhost-user:"):
        yield "The script writes to the disk. Add `--destructive` if it may."
        yield ""


def _trace(lines: list[str]) -> Iterator[str]:
    """Yield the end of the trace."""
    if not lines:
        return
    yield f"**Trace.** The last {len(lines[-EXCERPT:])} events; `!` marks what the driver saw last."
    yield ""
    yield from _fenced("\n".join(lines[-EXCERPT:]))
    yield ""


def _status(sent: Sent) -> str:
    known = sent.status in Status._value2member_map_
    return Status(sent.status).name if known else f"{sent.status:#04x}"


def _evidence(result: Result) -> Iterator[str]:
    if not result.evidence:
        return
    text = result.evidence
    if (left := len(text) - EVIDENCE) > 0:
        half = EVIDENCE // 2
        text = f"{text[:half]}\n[{left} characters left out]\n{text[-half:]}"
    yield "<details><summary>Evidence: the whole failure</summary>"
    yield ""
    yield from _fenced(text)
    yield ""
    yield "</details>"
    yield ""


def _attachments(result: Result) -> Iterator[str]:
    """Yield the names of the files that the run has kept of the failure."""
    directory = Path(result.artifacts)
    if not result.artifacts or not directory.is_dir():
        return
    yield f"**Attachments.** In `{directory}`:"
    yield ""
    yield from (f"- `{path.name}`" for path in sorted(directory.glob("[!.]*")))
    yield ""


def _others(finding: Finding) -> Iterator[str]:
    others = finding.tests[1:]
    if not others:
        return
    yield "**Other tests that show it.**"
    yield ""
    yield from (f"- `{test.id}`" for test in others[:LISTED])
    if len(others) > LISTED:
        yield f"- and {len(others) - LISTED} more"
    yield ""


def _inline(text: str) -> str:
    """Return a text in which Markdown finds no markup, as one line."""
    plain = " ".join(text.split())
    return re.sub(r"([\\`*_\[\]<>#|~&])", r"\\\1", plain)


def _fenced(text: str) -> Iterator[str]:
    """Yield a text as a block of code; its fence is longer than any run of backticks in it."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    yield fence
    yield text.rstrip("\n")
    yield fence
