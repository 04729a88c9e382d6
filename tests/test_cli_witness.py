"""`vblk witness` serves a disk, shows what a driver does, and judges it at Ctrl-C."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.cli import main
from harness.driver.block import BlockDriver
from harness.driver.bus.vfio_user import VfioUser
from harness.driver.interface import Request
from harness.driver.transport.pci import PciModern
from harness.driver.transport.vhost_user import VhostUser
from harness.machine.errors import MachineError
from harness.machine.foreign import ForeignDaemon, listens
from harness.virtio.blk import RequestType

DEADLINE = 60.0
PROGRAM = "import sys; from harness.cli import main; sys.exit(main())"
VBLK = [sys.executable, "-c", PROGRAM]


def start(place: Path, *arguments: str, program: str = PROGRAM) -> subprocess.Popen[bytes]:
    """Start `vblk witness` in a directory, and wait until a driver can connect."""
    with (place / "output").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", program, "witness", *arguments],
            cwd=place,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    wait(place, process, lambda: listens(place / "s", False))
    return process


def wait(place: Path, process: subprocess.Popen[bytes], done: Callable[[], bool]) -> None:
    """Wait until something is so. The process must not end before."""
    until = time.monotonic() + DEADLINE
    while not done():
        assert process.poll() is None, (place / "output").read_text()
        assert time.monotonic() < until, (place / "output").read_text()
        time.sleep(0.02)


def end(place: Path, process: subprocess.Popen[bytes]) -> str:
    """Send Ctrl-C, and return the output. The exit status must be 0 or 1."""
    process.send_signal(signal.SIGINT)
    process.wait(timeout=DEADLINE)
    output = (place / "output").read_text()
    assert process.returncode in (0, 1), output
    return output


def use(driver: BlockDriver, broken: bool) -> None:
    """Write a sector, and break a MUST if asked to: read beyond the end of the disk."""
    driver.start()
    driver.request(Request(RequestType.OUT, 0, b"a" * 512))
    if broken:
        driver.request(Request(RequestType.IN, 1 << 40, receive=512))
    driver.close()


@pytest.mark.parametrize(("way", "destructive"), [("vhost-user", False), ("vfio-user", True)])
def test_a_driver_is_judged_and_the_disk_is_written_only_if_allowed(
    tmp_path: Path, way: str, destructive: bool
) -> None:
    (tmp_path / "d").write_bytes(bytes(1 << 20))
    extra = ["--destructive"] if destructive else []
    process = start(
        tmp_path, f"--{way}", "s", "--disk", "d", "--matrix", "m.json", "--matrix", "m.html", *extra
    )
    wait(tmp_path, process, lambda: "Ctrl-C ends." in (tmp_path / "output").read_text())
    socket = str(tmp_path / "s")
    driver = BlockDriver(
        VhostUser(socket, 64) if way == "vhost-user" else PciModern(VfioUser(socket))
    )
    use(driver, broken=destructive)
    output = end(tmp_path, process)

    assert ("vhost-user-blk-pci" if way == "vhost-user" else "vfio-user-pci") in output
    assert "requests: 1 of type 1" in output
    assert "KEPT  5.2.6.1-R-06 MUST" in output
    assert process.returncode == int(destructive)
    assert ("BROKEN  5.2.6.1-R-02 MUST NOT" in output) == destructive
    assert (tmp_path / "d").read_bytes()[:512] == (b"a" * 512 if destructive else bytes(512))
    results = json.loads((tmp_path / "m.json").read_text())
    verdicts = {row["id"]: row["verdicts"]["your driver"] for row in results["statements"]}
    assert verdicts["5.2.6.1-R-02"] == ("broken" if destructive else "kept")
    assert "block driver: conformance" in (tmp_path / "m.html").read_text()
    assert not (tmp_path / "s").exists()

    judged = subprocess.run(
        [*VBLK, "witness", "judge", "witness.jsonl"], cwd=tmp_path, capture_output=True, text=True
    )
    assert judged.returncode == int(destructive)
    assert judged.stdout.splitlines()[-1] in output


def test_events_of_a_driver_that_was_quicker_than_the_first_line_are_kept(tmp_path: Path) -> None:
    (tmp_path / "d").write_bytes(bytes(1 << 20))
    late = (
        "import sys, time; from harness.cli import main; from harness.machine import foreign;"
        "foreign.listens = lambda socket, unknown: time.sleep(600); sys.exit(main())"
    )
    process = start(tmp_path, "--vhost-user", "s", "--disk", "d", program=late)
    use(BlockDriver(VhostUser(str(tmp_path / "s"), 64)), broken=False)
    output = end(tmp_path, process)

    assert "The disk is on" not in output
    assert "requests: 1 of type 1" in output
    assert "the stream is in witness.jsonl" in output


INTERRUPTED = """
import os, signal, sys
from pathlib import Path
from harness.cli import main, serve
from harness.machine import foreign

foreign.listens = lambda socket, unknown: Path("used").exists()
original = serve.NAME

def interrupted(given):
    if "WORDS" in repr(given) and not Path("interrupted").exists():
        Path("interrupted").touch()
        os.kill(os.getpid(), signal.SIGINT)
    return original(given)

serve.NAME = interrupted
sys.exit(main())
"""
"""`vblk` that looks at the stream once the driver has gone, and gets Ctrl-C in a function."""


@pytest.mark.parametrize(
    ("name", "words"),
    [("parsed", "request"), ("judge", "Request"), ("printable", "requests: 1")],
    ids=["read", "judged", "printed"],
)
def test_ctrl_c_while_events_are_read_judged_or_printed_loses_nothing(
    tmp_path: Path, name: str, words: str
) -> None:
    (tmp_path / "d").write_bytes(bytes(1 << 20))
    program = INTERRUPTED.replace("NAME", name).replace("WORDS", words)
    process = start(tmp_path, "--vhost-user", "s", "--disk", "d", program=program)
    use(BlockDriver(VhostUser(str(tmp_path / "s"), 64)), broken=True)
    (tmp_path / "used").touch()
    process.wait(timeout=DEADLINE)
    output = (tmp_path / "output").read_text()

    assert (tmp_path / "interrupted").exists()
    assert process.returncode == 1, output
    assert "requests: 1 of type 1, 1 of type 0" in output
    assert "KEPT  5.2.6.1-R-06 MUST" in output
    assert "BROKEN  5.2.6.1-R-02 MUST NOT" in output


def test_ctrl_c_while_the_model_is_started_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "d").write_bytes(bytes(1024))
    program = (
        "import os, signal, sys, time\n"
        "from pathlib import Path\n"
        "from harness.cli import main, serve\n"
        "original = serve.ForeignDaemon\n"
        "def interrupted(*given):\n"
        "    process = original(*given)\n"
        "    while not Path('s').is_socket(): time.sleep(0.01)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    return process\n"
        "serve.ForeignDaemon = interrupted\n"
        "sys.exit(main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "witness", "--vhost-user", "s", "--disk", "d"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )

    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_a_file_in_the_place_of_the_sockets_is_kept(tmp_path: Path) -> None:
    (tmp_path / "s.control").write_bytes(bytes(1024))

    done = subprocess.run(
        [*VBLK, "witness", "--vhost-user", "s", "--disk", "s.control"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )

    assert done.returncode == 2
    assert "s.control: a socket cannot be made there" in done.stderr
    assert (tmp_path / "s.control").read_bytes() == bytes(1024)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --disk and one of --vhost-user, --vfio-user, --vfio-user-transitional"),
        (["--vhost-user", "s", "--vfio-user", "t", "--disk", "d"], "give --disk and one of"),
        (["--vhost-user", "s", "--disk", "none"], "no file of at least one sector"),
        (["--vhost-user", "d", "--disk", "d"], "d: a socket cannot be made there"),
        (["--vhost-user", "none/s", "--disk", "d"], "none/s: a socket cannot be made there"),
        (["--vhost-user", "s", "--disk", "d", "--whim", "none"], "no whim 'none'"),
        (
            ["--vhost-user", "s", "--disk", "d", "--stream", "d"],
            "this file exists; choose another name",
        ),
        (["--vhost-user", "s", "--disk", "d", "--option", "none=1"], "no property 'none'"),
    ],
)
def test_a_wrong_call_is_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "d").write_bytes(bytes(1024))
    done = subprocess.run(
        [*VBLK, "witness", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )

    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "d").read_bytes() == bytes(1024)
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_a_model_that_does_not_start_leaves_no_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(process: ForeignDaemon, *given: object) -> None:
        deadline = time.monotonic() + DEADLINE
        while not (tmp_path / "witness.jsonl").exists():
            assert time.monotonic() < deadline, "the model begins no stream"
            time.sleep(0.02)
        raise MachineError("the model does not start")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ForeignDaemon, "wait_until_ready", fail)
    (tmp_path / "d").write_bytes(bytes(1024))

    assert main(["witness", "--vhost-user", "s", "--disk", "d"]) == 2
    assert "the model does not start" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["d"]
