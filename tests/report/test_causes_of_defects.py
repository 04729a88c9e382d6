"""Probable causes of planted defects of the model, in the terminal, on the page and in JUnit."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[2]

CAUSES = {
    "unaligned-requests-fail": "IN and OUT requests with buffers that are not aligned to 512 bytes"
    " end with IOERR",
    "dies-at-get-id": "GET_ID requests end the device, or its connection",
    "flush-fails-on-other-queues": "FLUSH requests on queues other than 0 end with IOERR",
    "used-length-one-too-large": "requests of every type have a used length that is always 1 larger"
    " than their device-writable buffers",
}
TESTS = (
    "test_requests.py",
    "test_addresses.py::test_buffers_may_lie_at_any_address",
    "test_every_request.py::test_every_request_on_every_queue",
    "test_both_rings.py::test_the_used_length_covers_only_bytes_that_were_written",
)


def test_one_defect_is_one_cause(tmp_path: Path) -> None:
    page, junit = tmp_path / "page.html", tmp_path / "junit.xml"
    run = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--tb=no"),
            *(f"--vblk-target=model+{defect}" for defect in CAUSES),
            *("--vblk-matrix", page, f"--junitxml={junit}", "-o", "junit_family=xunit1"),
            *(f"conformance/{test}" for test in TESTS),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    causes = defaultdict(list)
    for case in ElementTree.parse(junit).iter("testcase"):
        if case.find("failure") is not None or case.find("error") is not None:
            of = {item.get("name"): item.get("value") for item in case.iter("property")}
            causes[of["target"]].append(of.get("cause"))
    html = page.read_text(encoding="utf-8")

    for defect, cause in CAUSES.items():
        found = causes[f"model+{defect}"]
        assert found == [cause] * len(found)
        title = f"model+{defect}: {len(found)} failures, probably 1 cause:"
        assert f"{title}\n  {len(found)}: {cause}; " in run.stdout
        assert f"<p>{title}</p><ul><li>{len(found)} tests: {cause};" in html
