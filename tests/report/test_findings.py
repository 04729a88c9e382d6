"""`vblk report`: the findings of a results file as Markdown."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from made_up import HOSTILE, PCI_NEW, a_test, broken, made_up

from harness.cli.main import main
from harness.driver.flight import Sent
from harness.report.findings import command, findings, markdown
from harness.report.results import Result, Results, Verdict, dumped

WRONG = Sent(4, queue=1, elements=2, status=1, used=1)


def with_requests() -> Results:
    """Return results with two failures of the same cause, and the options of their run."""
    results = made_up()
    results.runs[0] = replace(
        results.runs[0],
        arguments=["suite/test_a.py", "--qemu", "/opt/qemu", "--matrix", "a.json", "-q", "-k", "x"],
    )
    for name in ("test_flush", "test_both"):
        test = a_test(name, "2.1.2-D-01", new=replace(broken("1 is 0"), requests=[WRONG]))
        results.tests[test.id] = test
    return results


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "results.json"
    path.write_text(dumped(with_requests()))
    return path


def test_a_finding_has_what_a_maintainer_needs() -> None:
    results = with_requests()
    (finding,) = [finding for finding in findings(results) if len(finding.tests) == 2]
    text = markdown(results, finding)

    assert text.startswith("# FLUSH requests end with IOERR\n")
    assert "| device | pci (qemu 10.0.2) |" in text
    assert "virtio-v1.4.html#:~:text=2.1.2) (MUST): About 2.1.2-D-01." in text
    assert "pytest --qemu /opt/qemu --vblk-target pci suite/test_a.py::test_flush\n" in text
    assert "**Expected.**\n\n```\nused <= 1\n```" in text
    assert "**Seen.**\n\n```\n1 is 0\n```" in text
    assert "| FLUSH | 1 | 0 | 0 | - | 2, direct | IOERR | 1 |" in text
    assert "the whole story" in text
    assert "- `suite/test_a.py::test_both`" in text


def test_markup_in_a_device_s_words_stays_text() -> None:
    results = with_requests()
    test = a_test("test_odd", "2.1.2-D-01", new=broken(f"# <b>|`{HOSTILE}", "```\nout\n````\n"))
    results.tests[test.id] = test
    (finding,) = [finding for finding in findings(results) if finding.tests == (test,)]
    lines = markdown(results, finding).splitlines()

    assert lines[0].startswith("# \\# \\<b\\>\\|\\`\\</pre\\>")
    assert lines.count("`````") == 2
    assert not any("\x1b" in line or "\x00" in line for line in lines)


def test_trouble_of_the_harness_is_no_finding_but_a_lost_device_is() -> None:
    def found(seen: str) -> list[str]:
        results = replace(made_up(), tests={})
        test = a_test("test_a", "2.1.2-D-01", new=Result(Verdict.ERROR, seen=seen))
        results.tests[test.id] = test
        return [finding.title for finding in findings(results)]

    assert found("no room on the disk") == []
    assert found("QEMU is gone: status 139") == [
        "the device or its connection was lost: QEMU is gone: status 139"
    ]


def test_recorded_deviations_are_findings_on_request() -> None:
    results = made_up()
    more = {finding.title for finding in findings(results, known=True)}

    assert more - {finding.title for finding in findings(results)} == {
        "2.4.1-D-02: it writes on after a reset"
    }


def test_the_command_writes_a_file_for_each_finding(file: Path, tmp_path: Path, capsys) -> None:
    output = tmp_path / "findings"
    assert main(["report", str(file), "--output", str(output), "--target", "pci"]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert any(line.endswith("2 tests: FLUSH requests end with IOERR") for line in lines)
    assert [line.split("  ")[0] for line in lines] == [
        str(path) for path in sorted(output.iterdir())
    ]


def test_findings_for_a_maintainer_are_those_of_their_implementation(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def titles(*more: str) -> set[str]:
        output = tmp_path / "-".join(("findings", *more))
        assert main(["report", str(file), "--output", str(output), *more]) == 0
        return {line.split("  ")[1] for line in capsys.readouterr().out.splitlines()}

    of_qemu = titles("--for", "qemu")
    assert "2 tests: FLUSH requests end with IOERR" in of_qemu
    assert of_qemu < titles()

    assert main(["report", str(file), "-o", str(tmp_path / "x"), "--for", "spdk"]) == 2
    assert "has no implementation 'spdk'; it has: qemu" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "form"),
    [("qtest-pci", "qtest"), ("vhost-user", "python"), ("vhost-user:/run/x.sock", "python")],
)
def test_a_finding_has_the_end_of_the_trace_and_the_command_for_a_reproducer(
    name: str, form: str, tmp_path: Path
) -> None:
    (tmp_path / "trace.jsonl").write_text("")
    column = replace(PCI_NEW, name=name)
    results = replace(made_up(), columns=[column], tests={})
    test = a_test("test_a", "2.1.2-D-01")
    test.results[column.id] = replace(broken(), artifacts=str(tmp_path))
    results.tests[test.id] = test
    (finding,) = findings(results)
    text = markdown(results, finding)

    assert "!  0.000300  device  used 0 of virtqueue 0, length 513" in text
    assert f"vblk export {tmp_path / 'trace.jsonl'} --as {form}" in text


def test_nothing_is_overwritten(file: Path, tmp_path: Path, capsys) -> None:
    output = tmp_path / "findings"
    assert main(["report", str(file), "-o", str(output)]) == 0
    first = sorted(output.iterdir())[0]
    first.write_text("mine")

    assert main(["report", str(file), "-o", str(output)]) == 2
    assert capsys.readouterr().err == (
        f"vblk: {first} exists; name another directory with --output\n"
    )
    assert first.read_text() == "mine"


def test_an_unknown_target_is_one_line(file: Path, tmp_path: Path, capsys) -> None:
    assert main(["report", str(file), "-o", str(tmp_path / "out"), "--target", "nbd"]) == 2
    assert f"vblk: {file} has no target 'nbd'; it has: " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_command_to_repeat_leaves_out_defects_that_the_target_names() -> None:
    results = with_requests()
    arguments = ["--defect", "d", "suite", "--vblk-whim=w", "--accel", "tcg"]
    results.runs[0] = replace(results.runs[0], arguments=arguments)
    test = results.tests["suite/test_a.py::test_flush"]

    assert command(results, PCI_NEW, test) == (
        "pytest --accel tcg --vblk-target pci suite/test_a.py::test_flush"
    )
