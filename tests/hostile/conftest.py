"""Runs of a small suite against peers that keep to no protocol."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from inner import DEFAULTS, HASTE, MEMORY_LIMIT, PEAK, ROOT, SUITE, Run, reports, wait_for_end


@pytest.fixture
def suite(short_dir: Path) -> Callable[..., Run]:
    """Run a small suite, with options, in a process of its own, and check what holds for any."""

    def run(*options: str, more: str = HASTE, source: str = SUITE) -> Run:
        (short_dir / "conftest.py").write_text(
            (ROOT / "conftest.py").read_text() + PEAK + DEFAULTS + more
        )
        (short_dir / "test_inner.py").write_text(source)
        (short_dir / "tmp").mkdir(exist_ok=True)
        with (short_dir / "output").open("w+") as output:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "pytest", "test_inner.py", "-p", "no:cacheprovider"),
                    *("--matrix=r.json", "--junitxml=out.xml", *options),
                ],
                cwd=short_dir,
                env={
                    **os.environ,
                    "PYTHONPATH": str(ROOT),
                    "TMPDIR": str(short_dir / "tmp"),
                },
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            wait_for_end(process)
            memory = int((short_dir / "peak").read_text())
            output.seek(0)
            text = output.read()
        left = [path.name for path in (short_dir / "tmp").iterdir()]
        assert left == [], text
        assert "INTERNALERROR" not in text, text
        assert memory < MEMORY_LIMIT, text
        result = Run(process.returncode, text, memory, *reports(short_dir))
        for counts in result.verdicts.values():
            assert counts.keys() <= {"kept", "error", "skipped"}, text
        return result

    return run
