"""The JUnit report: valid by Jenkins' schema, and readable by two programs.

junit-10.xsd is from Jenkins' xunit plugin (MIT licence, its notice is in the file). GitLab
publishes no schema; the elements that its documentation names are in this schema.
"""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import junitparser
import pytest
import xmlschema

pytest_plugins = ["pytester"]

SCHEMA = Path(__file__).with_name("junit-10.xsd")

SUITE = """
@clause("2.4.1-D-02", "2.1.2-D-01")
def test_kept(plug): plug(start=False)

@clause("2.2.2-D-01")
def test_broken(plug): plug(start=False); assert 513 <= 1, "\\x1b[31m <used>"

@clause("2.2.2-D-03")
@pytest.mark.parametrize("n", [1, 2])
def test_trouble(plug, n): plug(start=False); raise TargetError("QEMU died")

@clause("2.1.2-D-02")
def test_should(plug): plug(start=False); assert 1 == 2, "no needs_reset"

@clause("2.4.1-D-01")
def test_deviates(plug): plug(start=False); assert 1 == 2, "known"

@described("5.2.6-P-07")
def test_lacking(plug): plug(needs=[Feature.BLK_DISCARD])

@clause("2.5.2-D-01")
def test_stuck(plug): plug(start=False, serial="stuck")

@clause("2.7.4.1-D-01")
def test_fails_and_is_stuck(plug): plug(start=False, serial="stuck"); assert 0

@clause("2.10.2-D-01")
def test_late_section(plug): plug(start=False)

def test_of_nothing(plug): plug(start=False)
"""

DEVIATION = """
[[deviation]]
clause = "2.4.1-D-01"
tests = ["test_it.py::test_deviates"]
versions = ">=2"
seen = "known"
why = "because it <does>"
"""


@pytest.fixture
def report(run, pytester: pytest.Pytester):
    """Function that runs a suite and returns the path of its report."""

    def report(*options: str, source: str = SUITE) -> Path:
        run(source, "--junitxml=out.xml", *options, deviations=DEVIATION)
        return pytester.path / "out.xml"

    return report


@pytest.mark.parametrize("options", [(), ("--target=guest-pci", "--target=other")])
def test_it_is_as_the_schema_says(report, options: tuple[str, ...]) -> None:
    xmlschema.XMLSchema(SCHEMA).validate(report(*options))


def test_suites_are_sections_in_their_order(report) -> None:
    suites = ElementTree.parse(report()).getroot().findall("testsuite")

    numbers = {
        suite.get("name"): [
            int(suite.get(name)) for name in ("tests", "failures", "errors", "skipped")
        ]
        for suite in suites
    }
    assert numbers == {
        "pytest": [1, 0, 0, 0],
        "2.1.2 Device status": [1, 0, 0, 1],
        "2.2.2 Feature bits": [3, 1, 2, 0],
        "2.4.1 Device reset": [2, 0, 0, 1],
        "2.5.2 Configuration space": [1, 0, 1, 0],
        "2.7.4.1 Framing": [1, 1, 0, 0],
        "2.10.2 Shared memory regions": [1, 0, 0, 0],
        "5.2.6 Its operation": [1, 0, 0, 1],
    }
    assert list(numbers) == [suite.get("name") for suite in suites]
    for suite in suites:
        facts = {
            element.get("name"): element.get("value")
            for element in suite.iterfind("properties/property")
        }
        assert facts == {"specification": "virtio 1.4", "qemu": "a fake", "guest-kernel": "none"}
        seconds = sum(float(case.get("time")) for case in suite.iterfind("testcase"))
        assert float(suite.get("time")) == pytest.approx(seconds, abs=0.001)
        assert suite.get("timestamp") and suite.get("hostname")


def test_properties_are_lines_of_the_output(report) -> None:
    cases = {case.get("name"): case for case in ElementTree.parse(report()).iter("testcase")}

    assert cases["test_kept"].findtext("system-out").splitlines() == [
        "[[PROPERTY|target=guest-pci]]",
        "[[PROPERTY|channel=serial]]",
        "[[PROPERTY|clause=2.4.1-D-02]]",
        "[[PROPERTY|clause=2.1.2-D-01]]",
        "[[PROPERTY|level=MUST NOT]]",
    ]


def test_properties_are_elements_for_who_asks(report) -> None:
    path = report("-o", "junit_family=xunit1")
    cases = {case.get("name"): case for case in ElementTree.parse(path).iter("testcase")}

    properties = [
        (element.get("name"), element.get("value"))
        for element in cases["test_kept"].iter("property")
    ]
    assert ("clause", "2.4.1-D-02") in properties and ("level", "MUST NOT") in properties
    assert cases["test_kept"].get("file") == "test_it.py"
    assert len(ElementTree.parse(path).getroot().findall("testsuite")) == 8


def test_a_report_of_other_tests_is_left_alone(report) -> None:
    suites = ElementTree.parse(report(source="def test_it(): pass\n")).getroot()

    assert [suite.get("name") for suite in suites] == ["pytest"]


def test_one_reader(report) -> None:
    suites = list(
        junitparser.JUnitXml.fromfile(str(report("--target=guest-pci", "--target=other")))
    )

    cases = {case.name: case for suite in suites for case in suite}
    assert len(cases) == 22
    (skip,) = cases["test_deviates[@guest-pci]"].result
    assert isinstance(skip, junitparser.Skipped)
    assert skip.message == "deviation: 2.4.1-D-01: because it <does>"
    (skip,) = cases["test_should[@guest-pci]"].result
    assert skip.message == "advisory: SHOULD: no needs_reset"
    (skip,) = cases["test_kept[@other]"].result
    assert skip.message == "it is somebody's"
    (failure,) = cases["test_broken[@guest-pci]"].result
    assert isinstance(failure, junitparser.Failure)
    assert "vblk# panic" in failure.text  # the evidence


def test_another_reader_makes_a_page_of_it(report, tmp_path: Path) -> None:
    page = tmp_path / "report.html"

    subprocess.run(
        [sys.executable, "-m", "junit2htmlreport", report(), page], check=True, timeout=60
    )

    text = page.read_text()
    assert "2.4.1 Device reset" in text
    assert "test_deviates" in text
    assert "because it &lt;does&gt;" in text
