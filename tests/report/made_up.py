"""Invented results: two targets, one in two versions, every verdict, markup in all texts."""

from __future__ import annotations

from harness.report.results import Column, Result, Results, Row, Run, Test, Verdict

HOSTILE = "</pre><script>document.title='owned'</script>\x1b[31m\x00 & \"'"

PCI_OLD = Column("pci", {"qemu": "7.2.22"}, {"qemu": "QEMU 7.2.22"}, [0])
PCI_NEW = Column("pci", {"qemu": "10.0.2"}, {"qemu": "QEMU 10.0.2"}, [0])
OTHER = Column('"}*{color:red}<b>', {}, {}, [0])


def row(name: str, level: str = "MUST", **fields: str) -> Row:
    """Return a row as for a statement of the catalogue."""
    return Row(name, name.partition("-")[0], level, "device", f"About {name}.", **fields)  # type: ignore[arg-type]


def a_test(name: str, *statements: str, **results: Result) -> Test:
    """Return a test with results by target: old, new, other."""
    columns = {"old": PCI_OLD, "new": PCI_NEW, "other": OTHER}
    return Test(
        f"suite/test_a.py::{name}",
        "suite/test_a.py",
        7,
        list(statements),
        f"def {name}(plug):\n    assert 1 < 2\n",
        {columns[key].id: result for key, result in results.items()},
    )


def kept() -> Result:
    """Return the result of a passed test."""
    return Result(Verdict.KEPT, 0.1)


def broken(seen: str = "513", evidence: str = "the whole story") -> Result:
    """Return the result of an unknown failure."""
    trace = {
        "lines": [
            "   0.000100  driver  notified virtqueue 0 <b>",
            "!  0.000300  device  used 0 of virtqueue 0, length 513",
            "   0.100000  test    the test failed: 513",
            "no line of a trace",
        ],
        "before": ["queue 0 (split, 8) | 0 | [0] 0x5000+16 | available"],
        "after": ["queue 0 (split, 8) | 0 | [0] 0x5000+16 | used, length 513"],
    }
    return Result(Verdict.BROKEN, 0.1, "used <= 1", seen, evidence=evidence, trace=trace)


def deviates() -> Result:
    """Return the result of a recorded deviation."""
    why = {"statement": "2.4.1-D-02", "why": "it writes on after a reset"}
    return Result(Verdict.DEVIATION, 0.1, "silence", "a write", deviation=why, evidence="a trace")


def skipped(reason: str) -> Result:
    """Return the result of a skipped test."""
    return Result(Verdict.SKIPPED, reason=reason)


def made_up() -> Results:
    """Return results with every verdict, and with texts that look like markup."""
    rows = [
        row("2.1.2-D-01"),
        row("2.4.1-D-02", "MUST NOT"),
        row("2.4.1-D-03"),
        row("2.7.4.1-D-01", "SHOULD"),
        row("2.10.2-D-01"),
        row("5.2.6.2-D-01", untested="nothing shows it"),
        Row("5.2.6-P-07", "5.2.6", "described", "device", "prose <i>"),
    ]
    tests = [
        a_test(
            "test_start", "2.1.2-D-01", old=kept(), new=kept(), other=broken("used 513", HOSTILE)
        ),
        a_test("test_reset", "2.4.1-D-02", "2.4.1-D-03", old=deviates(), new=kept()),
        a_test(
            "test_frame",
            "2.7.4.1-D-01",
            old=Result(Verdict.ADVISORY, 0.1, "framing", "none"),
            new=kept(),
            other=skipped("it has no <ring>"),
        ),
        a_test(
            "test_memory",
            "2.10.2-D-01",
            old=Result(Verdict.ERROR, seen="QEMU died", evidence="last words"),
            new=skipped("there are no regions"),
        ),
        a_test("test_prose", "5.2.6-P-07", old=kept(), new=kept(), other=kept()),
    ]
    run = Run(
        "2026-01-01T00:00:00+00:00",
        2.0,
        True,
        "virtio 1.4",
        "0.1",
        ["--target", "<pci>"],
        {"machine": "x86_64"},
        "https://example.org/a/blob/abc/{file}#L{line}",
    )
    return Results(
        [run],
        [PCI_OLD, PCI_NEW, OTHER],
        {item.id: item for item in rows},
        {test.id: test for test in tests},
    )
