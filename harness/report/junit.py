"""Change of the file that pytest writes for --junitxml: it gets suites by section.

What else is in it depends on pytest's `junit_family`. With xunit2, pytest's
default, it is as Jenkins' schema (junit-10.xsd) has it, which knows no
properties of a test case: they are lines of its output, as
`[[PROPERTY|name=value]]`. With xunit1 they are elements, which many readers
know and no schema allows. What was kept of a failure is named as GitLab and
Jenkins find it: `[[ATTACHMENT|path]]`. A test that came to no verdict is an error, not a failure.
"""

from __future__ import annotations

import copy
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from pathlib import Path

from _pytest.junitxml import bin_xml_escape

from harness.outputs import replace_text
from harness.report.markers import Statement
from harness.virtio.catalogue import section_order
from harness.virtio.sections import section_name


def reshape(path: Path, family: str, causes: Mapping[tuple[str, str], str] | None = None) -> None:
    """Put the test cases of a file into suites by section.

    `causes` are the probable causes of failures, by class name and name of the test case. Leave a
    file without conformance tests unchanged.
    """
    tree = ElementTree.parse(path)
    root = tree.getroot()
    written = root.find("testsuite")
    if written is None:
        return
    cases = written.findall("testcase")
    for case in cases:
        _error_instead_of_failure(case)
        if cause := (causes or {}).get(_key(case)):
            _add_property(case, "cause", cause)
    sections: dict[tuple[str, str], str] = {}
    for case in cases:
        if section := _section(case):
            sections[_key(case)] = section
    if not sections:
        return
    suites: dict[str, list[ElementTree.Element]] = {}
    for case in cases:
        suites.setdefault(sections.get(_key(case), ""), []).append(case)
        if family != "xunit1":
            _properties_to_output(case)
    root.remove(written)
    for section in sorted(suites, key=lambda name: section_order(name) if name else []):
        root.append(_suite(section, suites[section], written))
    for name, value in _counts(cases).items():
        if name != "skipped":  # the schema allows it only in a suite
            root.set(name, value)
    text = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    replace_text(path, text.decode("utf-8"))


def _error_instead_of_failure(case: ElementTree.Element) -> None:
    """Make the failure of a test that came to no verdict an error, which pytest has not."""
    if case.find("properties/property[@name='verdict'][@value='error']") is None:
        return
    for failure in case.findall("failure"):
        failure.tag = "error"


def _add_property(case: ElementTree.Element, name: str, value: str) -> None:
    properties = case.find("properties")
    if properties is None:
        properties = ElementTree.SubElement(case, "properties")
    ElementTree.SubElement(properties, "property", {"name": name, "value": bin_xml_escape(value)})


def _key(case: ElementTree.Element) -> tuple[str, str]:
    return case.get("classname", ""), case.get("name", "")


def _section(case: ElementTree.Element) -> str:
    """Return the section of the first statement of a test case; empty if it has none."""
    elements = case.iterfind("properties/property")
    statement = Statement.parse(
        (element.get("name", ""), element.get("value", "")) for element in elements
    )
    return statement.sections[0] if statement else ""


def _suite(
    section: str, cases: list[ElementTree.Element], written: ElementTree.Element
) -> ElementTree.Element:
    """Return a suite with pytest's attributes and properties of the whole run."""
    name = f"{section} {section_name(section)}" if section else written.get("name", "")
    suite = ElementTree.Element("testsuite", {"name": name, **_counts(cases)})
    for attribute in ("timestamp", "hostname"):
        if attribute in written.attrib:
            suite.set(attribute, written.attrib[attribute])
    properties = written.find("properties")
    if properties is not None:
        suite.append(copy.deepcopy(properties))
    suite.extend(cases)
    return suite


def _counts(cases: list[ElementTree.Element]) -> dict[str, str]:
    counts = {
        name: str(sum(case.find(kind) is not None for case in cases))
        for name, kind in (("errors", "error"), ("failures", "failure"), ("skipped", "skipped"))
    }
    seconds = sum(float(case.get("time", 0)) for case in cases)
    return {**counts, "tests": str(len(cases)), "time": f"{seconds:.3f}"}


def _properties_to_output(case: ElementTree.Element) -> None:
    for properties in case.findall("properties"):
        for element in properties:
            value = " ".join(element.get("value", "").split())
            _say(case, f"[[PROPERTY|{element.get('name')}={value}]]")
            if element.get("name") == "artifacts":
                for file in sorted(Path(element.get("value", "")).glob("*")):
                    _say(case, f"[[ATTACHMENT|{file}]]")
        case.remove(properties)


def _say(case: ElementTree.Element, line: str) -> None:
    output = case.find("system-out")
    if output is None:
        output = ElementTree.SubElement(case, "system-out")
    output.text = "\n".join(filter(None, [output.text, line]))
