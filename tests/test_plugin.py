"""The pytest plugin, on the fake target of conftest.py, without QEMU and guest."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parent.parent


def test_an_unknown_clause_ends_the_run_at_collection(run) -> None:
    result = run(
        """
        @clause("2.1.2-D-01", "9.9-D-99")
        def test_it(): pass
        """.replace("\n        ", "\n")
    )

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*test_it.py::test_it: no statement '9.9-D-99' in *clauses/"])


@pytest.mark.parametrize("marker", ["@clause()", "@described()", '@pytest.mark.hardening("5.2")'])
def test_a_marker_that_says_nothing_is_refused(run, marker: str) -> None:
    result = run(f"{marker}\ndef test_it(): pass\n")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*test_it.py::test_it: @*"])


@pytest.mark.parametrize(
    ("marker", "line"),
    [
        ('@described("5.2.6-P-99")', "no statement '5.2.6-P-99' in *clauses/"),
        ('@described("5.2.6", "IN reads")', "no statement '5.2.6' in *clauses/"),
        ('@described("2.4.1-D-01")', "2.4.1-D-01 is a statement of level MUST; use @clause"),
        ('@clause("5.2.6-P-07")', "5.2.6-P-07 is a statement of level described; use @described"),
    ],
)
def test_an_id_that_its_marker_cannot_have_ends_the_collection(run, marker, line) -> None:
    result = run(f"{marker}\ndef test_it(): pass\n")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*test_it.py::test_it: {line}"])
    assert len([line for line in result.errlines if line]) == 1


LEVELS = """
@clause("2.1.2-D-01")
def test_must(plug): plug(start=False); assert 1 == 2

@clause("2.1.2-D-02")
def test_should(plug): plug(start=False); assert 1 == 2, "no needs_reset"

@clause("2.1.2-D-01", "2.1.2-D-02")
def test_both(plug): plug(start=False); assert 1 == 2

@described("5.2.6-P-07")
def test_prose(plug): plug(start=False); assert 1 == 2

@clause("2.1.2-D-02")
def test_trouble(plug): plug(start=False); raise TargetError("QEMU died")
"""


def test_a_should_that_fails_is_an_advisory(run) -> None:
    result = run(LEVELS)

    result.assert_outcomes(failed=2, xfailed=2, errors=1)
    result.stdout.fnmatch_lines_random(
        [
            "XFAIL test_it.py::test_should - advisory: SHOULD: no needs_reset*",
            "XFAIL test_it.py::test_both - advisory: SHOULD: *",
            "FAILED test_it.py::test_must*",
            "FAILED test_it.py::test_prose*",
            "ERROR test_it.py::test_trouble*QEMU died*",
        ]
    )


def test_strict_should_makes_it_a_failure(run) -> None:
    run(LEVELS, "--strict-should").assert_outcomes(failed=4, errors=1)


def test_a_feature_that_is_not_offered_is_a_skip_that_names_it(run) -> None:
    result = run("def test_it(plug): plug(needs=[Feature.VERSION_1, Feature.BLK_DISCARD])\n")

    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED*the device does not offer BLK_DISCARD"])


PLUGS = """
@pytest.fixture
def counted(_bench, monkeypatch):
    plug = _bench.target.plug
    def counting(*arguments):
        print("PLUGGED")
        return plug(*arguments)
    monkeypatch.setattr(_bench.target, "plug", counting)
"""


def test_no_disk_is_plugged_again_for_a_feature_that_it_did_not_offer(run) -> None:
    result = run(
        f"""{PLUGS}
@pytest.mark.parametrize("needs", [[], [Feature.BLK_DISCARD], [Feature.VERSION_1]])
def test_it(counted, plug, needs): plug(start=False, needs=needs)

def test_another_disk(counted, plug): plug(start=False, queues=2, needs=[Feature.BLK_DISCARD])
"""
    )

    result.assert_outcomes(passed=2, skipped=2)
    result.stdout.fnmatch_lines(["SKIPPED*2*the device does not offer BLK_DISCARD"])
    assert result.stdout.str().count("PLUGGED") == 3


def test_the_second_disk_of_a_test_is_plugged_before_it_is_judged(run) -> None:
    result = run(
        f"""{PLUGS}
@pytest.mark.parametrize("times", [1, 2])
def test_it(counted, plug, times):
    plug(start=False)
    plug(start=False, needs=[Feature.BLK_DISCARD])
"""
    )

    result.assert_outcomes(skipped=2)
    assert result.stdout.str().count("PLUGGED") == 4


def test_a_disk_that_a_target_cannot_have_is_asked_for_once(run) -> None:
    result = run(
        f"""{PLUGS}
@pytest.mark.parametrize("times", [1, 2])
def test_writing(counted, plug, times): plug(start=False, needs=[Feature.BLK_DISCARD])

@reads_only
def test_reading(counted, plug): plug(start=False)
""",
        "--target=other",
    )

    result.assert_outcomes(passed=1, skipped=2)
    assert result.stdout.str().count("PLUGGED") == 2


def test_a_device_that_somebody_else_runs_is_looked_at_each_time(run) -> None:
    result = run(
        f"""{PLUGS}
@pytest.mark.parametrize("times", [1, 2])
def test_it(counted, _bench, monkeypatch, plug, times):
    monkeypatch.setattr(_bench.target, "made_to_order", False)
    plug(start=False, needs=[Feature.BLK_DISCARD])
"""
    )

    result.assert_outcomes(skipped=2)
    assert result.stdout.str().count("PLUGGED") == 2


def test_no_target_is_made_for_a_run_that_needs_no_disk(run) -> None:
    source = "def test_a(): pass\ndef test_b(plug): plug(start=False)\n"

    result = run(source, "--collect-only")
    assert "TARGET MADE" not in result.stdout.str()
    result = run(source, "-k", "test_a")
    assert "TARGET MADE" not in result.stdout.str()
    result = run(source)
    result.stdout.fnmatch_lines(["*TARGET MADE*", "*TARGET CLOSED*"])


def test_the_plugin_alone_loads_no_machine() -> None:
    code = (
        "import sys, harness.pytestplugin.plugin;"
        " print([m for m in sys.modules if 'qemu' in m or 'ssh' in m])"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )

    assert answer.stdout.strip() == "[]"


def test_a_run_without_random_tests_does_not_import_hypothesis() -> None:
    code = (
        "import sys, pytest;"
        " status = pytest.main(['-q', '--collect-only', 'conformance/test_capacity.py']);"
        " print([status, 'hypothesis' in sys.modules])"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )

    assert answer.stdout.splitlines()[-1] == "[<ExitCode.OK: 0>, False]"


def test_junit_has_properties_and_evidence(run, pytester: pytest.Pytester) -> None:
    run(
        """
@clause("2.1.2-D-01", "2.4.1-D-02")
def test_it(plug): plug(start=False); assert 1 == 2

def test_without_disk(): pass
""",
        "--junitxml=out.xml",
        "-o",
        "junit_family=xunit1",
    )

    cases = ElementTree.parse(pytester.path / "out.xml").iter("testcase")
    without, with_disk = sorted(cases, key=lambda case: case.get("name") == "test_it")
    properties = [(p.get("name"), p.get("value")) for p in with_disk.iter("property")]
    assert properties == [
        ("target", "guest-pci"),
        ("channel", "serial"),
        ("clause", "2.1.2-D-01"),
        ("clause", "2.4.1-D-02"),
        ("level", "MUST NOT"),
    ]
    assert list(without.iter("property")) == []
    failure = with_disk.findtext("failure") or ""
    assert "vblk# panic" in failure  # without control sequences of the terminal
    assert "QEMU, last words" in failure
    assert "status: 0x0f" in failure
    assert "queues: queue 0" in failure


def test_an_advisory_is_a_property_of_the_test_case(run, pytester: pytest.Pytester) -> None:
    run(LEVELS, "--junitxml=out.xml", "-k", "test_should", "-o", "junit_family=xunit1")

    (case,) = ElementTree.parse(pytester.path / "out.xml").iter("testcase")
    properties = {p.get("name"): p.get("value") for p in case.iter("property")}
    assert properties["level"] == "SHOULD"
    assert properties["advisory"].startswith("SHOULD: no needs_reset")


DEVIATION = """
[[deviation]]
clause = "2.1.2-D-01"
tests = ["test_it.py::test_recorded"]
versions = "VERSIONS"
seen = "used index"
why = "the fake is made so"
"""


@pytest.mark.parametrize(
    ("body", "versions", "outcome"),
    [
        ('assert False, "the used index"', ">=2", "xfailed"),
        ('assert False, "something else"', ">=2", "failed"),
        ('raise TargetError("the used index")', ">=2", "errors"),
        ("pass", ">=2", "errors"),
        ('assert False, "the used index"', "<2", "failed"),
        ("pass", "<2", "passed"),
    ],
)
def test_a_recorded_deviation(run, body: str, versions: str, outcome: str) -> None:
    source = f'@clause("2.1.2-D-01")\ndef test_recorded(plug): plug(start=False); {body}\n'
    result = run(source, deviations=DEVIATION.replace("VERSIONS", versions))

    result.assert_outcomes(**{outcome: 1})
    if outcome == "xfailed":
        result.stdout.fnmatch_lines(["XFAIL*deviation: 2.1.2-D-01: the fake is made so"])
    if body == "pass" and outcome == "errors":
        result.stdout.fnmatch_lines(["*The recorded deviation (2.1.2-D-01) is gone*"])


def test_what_a_recorded_deviation_does_to_the_disk_is_part_of_it(run) -> None:
    body = 'plug(serial="stuck", start=False); assert False, "the used index"'
    source = f'@clause("2.1.2-D-01")\ndef test_recorded(plug): {body}\n'
    result = run(source, deviations=DEVIATION.replace("VERSIONS", ">=2"))

    result.assert_outcomes(xfailed=1)


@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        ('assert False, "the used index"', "xfailed"),
        ('assert False, "something else"', "failed"),
        ("pass", "passed"),
    ],
)
def test_a_recorded_race_may_pass(run, body: str, outcome: str) -> None:
    source = f'@clause("2.1.2-D-01")\ndef test_recorded(plug): plug(start=False); {body}\n'
    result = run(source, deviations=DEVIATION.replace("VERSIONS", ">=2") + "sometimes = true\n")

    result.assert_outcomes(**{outcome: 1})


@pytest.mark.parametrize(
    ("part", "body", "outcome"),
    [
        ("front", 'assert False, "the used index"', "xfailed"),
        ("back", 'assert False, "the used index"', "failed"),
        ("back", "pass", "passed"),
    ],
)
def test_a_record_of_a_part_does_not_apply_to_a_device_without_it(
    run, part: str, body: str, outcome: str
) -> None:
    source = f'@clause("2.1.2-D-01")\ndef test_recorded(plug): plug(start=False); {body}\n'
    result = run(source, deviations=DEVIATION.replace("VERSIONS", ">=2") + f'part = "{part}"\n')

    result.assert_outcomes(**{outcome: 1})


def test_a_deviation_from_a_statement_that_the_test_is_not_about_is_refused(run) -> None:
    source = '@clause("2.4.1-D-02")\ndef test_recorded(plug): plug(start=False)\n'
    result = run(source, deviations=DEVIATION.replace("VERSIONS", ">=1"))

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*test_it.py::test_recorded is not about 2.1.2-D-01"])


def test_a_target_that_never_comes_up_ends_the_run(run) -> None:
    result = run(
        "def test_a(plug): plug(serial='impossible')\ndef test_b(plug): plug(start=False)\n"
    )

    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*stopping after 1 failures*", "*there is no QEMU*"][1:])
    assert result.ret == pytest.ExitCode.INTERRUPTED


def test_a_disk_that_does_not_come_out_is_an_error_of_its_test(run) -> None:
    result = run("def test_a(plug): plug(start=False, serial='stuck')\n")

    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["ERROR test_it.py::test_a*it does not*"])


def test_but_not_a_second_one_if_the_test_failed(run) -> None:
    run("def test_a(plug): plug(start=False, serial='stuck'); assert 1 == 2\n").assert_outcomes(
        failed=1
    )


@pytest.mark.parametrize(
    ("body", "distrusted"),
    [
        ("pass", False),
        ("pytest.skip('not here')", False),
        ("assert 1 == 2", True),
        ("raise TargetError('QEMU died')", True),
    ],
)
def test_a_target_is_told_that_a_test_has_failed(run, body: str, distrusted: bool) -> None:
    result = run(f"def test_a(plug): plug(start=False); {body}\n")

    assert ("TARGET DISTRUSTED" in result.stdout.str()) == distrusted


@pytest.mark.parametrize("seconds", ["0", "-1", "soon", "inf"])
def test_a_boot_timeout_that_is_none_is_refused(run, seconds: str) -> None:
    result = run("def test_a(): pass\n", f"--boot-timeout={seconds}")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        [f"*--boot-timeout: '{seconds}' is not a number of seconds greater than 0"]
    )


TWO = ("--target=guest-pci", "--target=other", "--target=guest-pci")


def test_every_test_runs_on_every_target_once(run, pytester: pytest.Pytester) -> None:
    result = run(
        """
@pytest.mark.parametrize("n", [1, 2])
@reads_only
def test_it(plug, n): plug(start=False)
def test_without_disk(): pass
""",
        *TWO,
        "-v",
        "--junitxml=out.xml",
        "-o",
        "junit_family=xunit1",
    )

    result.assert_outcomes(passed=5)
    result.stdout.fnmatch_lines(
        [
            "target * passed * failed * skipped *",
            "guest-pci        2        0        0        0        0 * s",
            "other            2        0        0        0        0 * s",
        ]
    )
    for name in ("guest-pci", "other"):
        result.stdout.fnmatch_lines_random([f"*::test_it[[][12]-@{name}[]] PASSED*"])
    assert result.stdout.str().count("TARGET MADE") == 2
    assert result.stdout.str().count("TARGET CLOSED") == 2
    cases = ElementTree.parse(pytester.path / "out.xml").iter("testcase")
    targets = [
        entry.get("value")
        for case in cases
        for entry in case.iter("property")
        if entry.get("name") == "target"
    ]
    assert sorted(targets) == ["guest-pci"] * 2 + ["other"] * 2


def test_one_target_does_not_show_in_the_tests_name(run) -> None:
    result = run("@reads_only\ndef test_it(plug): plug(start=False)\n", "--target=other", "-v")

    result.assert_outcomes(passed=1)
    assert "test_it.py::test_it " in result.stdout.str()
    assert "test_it.py::test_it[" not in result.stdout.str()


def test_what_a_target_is_not_is_a_skip_that_says_so(run) -> None:
    result = run('@on("pci")\n@reads_only\ndef test_it(plug): plug(start=False)\n', *TWO)

    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED*other is not pci"])


def test_a_test_that_writes_is_skipped_where_the_disk_is_not_ours(run) -> None:
    result = run("def test_it(plug): plug(start=False)\n", *TWO)

    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED*] test_it.py:*: it is somebody's"])


def test_a_property_found_missing_during_a_test_is_a_skip(run) -> None:
    result = run(
        """
from harness.targets import LacksError
@reads_only
def test_it(plug):
    plug(start=False)
    raise LacksError("its bytes are out of reach")
"""
    )

    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED*its bytes are out of reach"])


RECORD = """
[[deviation]]
clause = "2.1.2-D-01"
tests = ["test_it.py::test_plain", "test_it.py::test_many[b]"]
versions = ">=2"
seen = "seen"
why = "because"
"""


def test_a_record_is_found_whatever_the_target(run) -> None:
    result = run(
        """
pytestmark = [pytest.mark.clause("2.1.2-D-01"), pytest.mark.reads_only]
def test_plain(plug): plug(start=False); assert 0, "seen"
@pytest.mark.parametrize("n", ["a", "b"])
def test_many(plug, n): plug(start=False); assert n == "a", "seen"
""",
        *TWO,
        deviations=RECORD,
    )

    result.assert_outcomes(passed=2, xfailed=4)


def test_an_unknown_target_is_one_line_that_names_the_others(run) -> None:
    result = run("def test_it(plug): pass\n", "--target=nothing")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*unknown target 'nothing'; known: *guest-pci, *qtest-pci*"])


def test_targets_are_listed(run) -> None:
    result = run("def test_it(plug): pass\n", "--list-targets")

    assert result.ret == 0
    result.stdout.fnmatch_lines(["guest-pci  *", "qtest-mmio-legacy  *", "vhost-user:PATH  *"])
    assert "TARGET MADE" not in result.stdout.str()


def test_deviations_are_recorded_in_a_directory_of_the_user(run, pytester) -> None:
    (pytester.path / "mine").mkdir()
    (pytester.path / "mine" / "fake.toml").write_text(
        """
[[deviation]]
clause = "2.1.2-D-01"
tests = ["test_it.py::test_must"]
versions = ">=2"
seen = "known"
why = "because"
"""
    )
    source = '@clause("2.1.2-D-01")\ndef test_must(plug): plug(start=False); assert 0, "known"\n'

    run(source).assert_outcomes(failed=1)
    run(source, "--vblk-deviations=mine").assert_outcomes(xfailed=1)
    (pytester.path / "more").mkdir()
    run(source, "--vblk-deviations=mine", "--deviations=more").assert_outcomes(xfailed=1)
    missing = run(source, "--vblk-deviations=mine", "--deviations=nothing")
    missing.stderr.fnmatch_lines(["*: there is no directory nothing"])
