"""The command `vblk replay` with invalid scripts: one line, and no finding."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.cli import main

DISK = "Plug(capacity=64)"
START = "Start(features=('VERSION_1',), sizes=(8,))"


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["Collect(count=0)"], "operation 2, Collect: no Start has set up a virtqueue"),
        ([START.replace("8,", "7,")], "operation 2, Start: a virtqueue cannot have such a size"),
        ([START.replace("8,", "8, 8")], "operation 2, Start: the device has 1 virtqueues"),
        ([START.replace("'VERSION_1',", "")], "operation 2, Start: these features are not offered"),
        ([START, "Send(asks=(Flush(),), queue=3)"], "operation 3, Send: no Start has set up"),
        ([START, "Send(asks=(Read(sector=64, count=1),))"], "Send: the disk has 64 sectors"),
        ([START, "Send(asks=(Read(sector=0, count=99999),))"], "Send: the disk has 64 sectors"),
        (
            [START, "Send(asks=(Read(sector=0, count=1, readable=(3, 4)),))"],
            "operation 3, Send: readable has 7 bytes in all, not 16",
        ),
        ([START, "Send(asks=(Read(sector=0, count=1),) * 9)"], "line 3: "),
        ([START, f"Send(asks=({'GetId(), ' * 9}))"], "operation 3, Send: "),
    ],
)
def test_what_no_legal_driver_does_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], lines: list[str], words: str
) -> None:
    script = tmp_path / "a.script"
    script.write_text("\n".join([DISK, *lines]))

    assert main(["replay", str(script), "--target", "model"]) == 2

    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith(f"vblk: {script}")
    assert words in output.err
    assert output.err.count("\n") == 1


def test_a_legal_script_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "a.script"
    request = "Send(asks=(Read(sector=0, count=1, readable=(1, 15)),))"
    script.write_text("\n".join([DISK, START, request, "Collect(count=1)", "Resize(capacity=8)"]))

    assert main(["replay", str(script), "--target", "model"]) == 0

    assert capsys.readouterr().out == "4 operations, 1 times: no finding\n"


@pytest.mark.parametrize("times", ["0", "-1"])
def test_no_replay_at_all_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], times: str
) -> None:
    script = tmp_path / "a.script"
    script.write_text(DISK)

    assert main(["replay", str(script), "--target", "model", "--times", times]) == 2
    assert f"--times {times}: 1 or more" in capsys.readouterr().err


def test_a_place_for_findings_that_cannot_be_is_refused_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.write_text("mine")

    for place in (file, file / "below"):
        assert main(["random", "--target", "model", "--artifacts", str(place)]) == 2
        assert capsys.readouterr().err == f"vblk: --artifacts {place}: Not a directory\n"
    assert file.read_text() == "mine"
