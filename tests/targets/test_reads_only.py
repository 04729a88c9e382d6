"""Runs without --destructive send requests to a user's device that leave its contents alone."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.targets.external import READING

ROOT = Path(__file__).parents[2]

DEVICE = """
import socket, sys
from harness.diskspec import DiskSpec
from harness.model.block import Block
from harness.model.loop import Loop
from harness.model.main import Export, accept
from harness.model.storage import Storage

path, disk, log = sys.argv[1:]
seen = set()
serve = Block.serve

def noted(self, request):
    if request.type not in seen:
        seen.add(request.type)
        with open(log, "a") as file:
            file.write(f"{request.type}\\n")
    return serve(self, request)

Block.serve = noted
loop = Loop()
spec = DiskSpec(capacity=2048)
Export(loop, path, Block(spec, Storage(disk, False, ())), accept("vhost-user", None))
print("ready", flush=True)
loop.run()
"""
"""A back-end that writes down the types of the requests that it gets."""


@pytest.fixture
def device(short_dir: Path) -> Iterator[Path]:
    (short_dir / "disk").write_bytes(bytes(range(256)) * 2 * 2048)
    command = [
        sys.executable,
        "-c",
        DEVICE,
        *(str(short_dir / name) for name in ("s", "disk", "log")),
    ]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout and process.stdout.readline() == b"ready\n"
            yield short_dir
        finally:
            process.kill()


def test_a_run_that_only_reads_sends_no_other_request(device: Path) -> None:
    before = (device / "disk").read_bytes()

    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "conformance"),
            *("--ignore", "conformance/drivers", "--target", f"vhost-user:{device / 's'}"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )

    assert done.returncode in (0, 1), done.stdout + done.stderr
    types = {int(line) for line in (device / "log").read_text().splitlines()}
    assert types
    assert types <= set(READING)
    assert (device / "disk").read_bytes() == before
