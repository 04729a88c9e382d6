"""Events as JSON lines, and sessions."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.cli import main
from harness.inputs import InputError
from harness.witness.events import Chain, Device, Event, Features, Reset, Status, dumped, read
from harness.witness.sessions import sessions

DEVICE = Device(transport="pci, modern", offered=1)
EVENTS: list[Event] = [
    DEVICE,
    Status(value=1),
    Status(value=0, before=1),
    Reset(),
    Features(chosen=1),
    Chain(queue=0, descriptors=[(0, 1, 2, 3, 4)], table=[]),
    Reset(),
]


def saved(path: Path, events: list[Event]) -> Path:
    path.write_text("".join(dumped(event) + "\n" for event in events))
    return path


def test_events_are_read_as_they_were_written(tmp_path: Path) -> None:
    assert read(saved(tmp_path / "it.jsonl", EVENTS)) == EVENTS


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[]", "no event; known events: device, "),
        ('{"event": "resets"}', "no event; known events: device, "),
        ('{"event": "status", "value": 256}', "value"),
        ('{"event": "status"}', "value"),
        ('{"event": "reset", "more": 1}', "more"),
        ("{", "line 2: "),
        ("[" * 100000, "line 2: "),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "it.jsonl"
    path.write_text(f'{{"event": "reset"}}\n{line}\n')

    with pytest.raises(InputError, match=r"it\.jsonl, line 2: .*") as caught:
        read(path)
    assert message in str(caught.value)


def test_a_stream_is_cut_at_resets() -> None:
    first, second = sessions(EVENTS)

    assert (first.reset, first.events) == (False, (Status(value=1),))
    assert (second.reset, second.events) == (True, tuple(EVENTS[2:6]))
    assert first.device == second.device == DEVICE


def test_peers_have_sessions_of_their_own() -> None:
    mixed = [DEVICE, Device(transport="x", offered=2, connection=1), Status(value=1)]
    mixed.append(Status(value=2, connection=1))

    assert [session.device.offered for session in sessions(mixed)] == [1, 2]


def test_the_table_names_what_is_broken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = [DEVICE, Reset(), Status(value=1), Status(value=2, before=1)]

    assert main(["witness", "judge", str(saved(tmp_path / "it.jsonl", events))]) == 1
    out = capsys.readouterr().out
    assert "2.1.1-R-02       MUST NOT   broken" in out
    assert "wrote 0x2 to a device status of 0x1: ACKNOWLEDGE is cleared" in out
    assert "204 statements: 0 kept, 1 broken, 203 not exercised" in out


def test_a_missing_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["witness", "judge", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
