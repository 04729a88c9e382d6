"""Scripts: a written script is read back unchanged, and a mistake is one line."""

import os

import pytest

from harness.random.operations import (
    Burst,
    Collect,
    Discard,
    PauseMachine,
    Plug,
    QueueReset,
    Read,
    Resize,
    Send,
    Start,
    Suppress,
    Write,
    WriteZeroes,
)
from harness.random.script import ScriptError, load, parse, text_of

SCRIPT = [
    Plug(capacity=2048, packed=True, serial='it\'s "one"'),
    Start(features=("VERSION_1", "RING_PACKED"), sizes=(8,), vectors=2),
    Send(
        asks=(
            Read(sector=3, count=2, readable=(1, 15), writable=(1024, 1), indirect=True),
            Write(sector=0, count=1),
            Discard(segments=((1, 2), (5, 1))),
            WriteZeroes(segments=((9, 9),), unmap=True),
        ),
        queue=1,
    ),
    Collect(count=4),
    Resize(capacity=64),
    QueueReset(size=4),
    Suppress(enabled=True),
    Burst(sector=4, count=100, span=2, together=3, queue=1),
    PauseMachine(milliseconds=10),
]


def test_a_script_reads_back_as_it_was_written(tmp_path):
    path = tmp_path / "one.script"
    path.write_text(text_of(SCRIPT, ["found somewhere", "two\nlines"]))

    assert load(path) == SCRIPT


def test_what_is_usual_is_left_out_of_a_script():
    assert text_of(SCRIPT[3:4]) == "Collect(count=4)\n"
    assert text_of([Send(asks=(Read(sector=0, count=1),))]) == (
        "Send(asks=(Read(sector=0, count=1),))\n"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Plug(capacity=8)\nExplode()", "line 2: unknown operation Explode"),
        ("Plug(capacity=8)\n\nCollect(4)", "line 3: "),
        ("Plug(capacity=8)\nCollect(count=", "line 2: "),
        ("Plug(capacity=8)\nCollect(amount=3)", "line 2: .*amount"),
        ("Plug(capacity=8)\nCollect(count=__import__('os').getpid())", "line 2: "),
        ("Collect(count=1)", "line 1: a script is one Plug"),
        ("Plug(capacity=8)\nPlug(capacity=8)", "line 2: a script is one Plug"),
        ("# nothing", "bad has no operations"),
        ("Plug(capacity='8')", "line 1: capacity: expected a whole number, not '8'"),
        ("Plug(capacity=True)", "line 1: capacity: expected a whole number, not True"),
        ("Plug(capacity=0)", "line 1: capacity: expected 1 to 262144, not 0"),
        (f"Plug(capacity={1 << 60})", "line 1: capacity: expected 1 to 262144"),
        (f"Plug(capacity={'9' * 5000})", "line 1: "),
        (f"Plug(capacity=8)\nCollect(count={'(' * 5000}", "line 2: "),
        (f"Plug(capacity=8)\nCollect(count={'-' * 50_000}1)", "line 2: nested too deeply"),
        ("Plug(capacity=8, serial='\\x1b[2J')", "line 1: serial: expected up to 20"),
        ("Plug(capacity=8)\nStart(features=('NONE',), sizes=(8,))", "name of a feature"),
        ("Plug(capacity=8)\nStart(features=(), sizes=())", "sizes: expected 1 to 256 sizes"),
        ("Plug(capacity=8)\nStart(features=(), sizes=(8,), vectors='x')", "line 2: vectors: "),
        ("Plug(capacity=8)\nSend(asks=(Read(sector=-1, count=1),))", "sector: expected 0 to"),
        ("Plug(capacity=8)\nSend(asks=(Read(sector=0, count=99999999999),))", "count: expected 1"),
        ("Plug(capacity=8)\nSend(asks=(3,))", r"asks\[0\]: expected"),
        ("Plug(capacity=8)\nSend(asks=({},))", "line 2: {} is no number"),
        ("Plug(capacity=8)\nPokeConfig(offset=0, width=1, value=256)", "does not fit into 1 byte"),
        ("Plug(capacity=8)\nScribble(place=('own', 0), value=1)", r"place\[0\]: expected one of"),
        ("Plug(capacity=8)\nKick()\nCollect(count=1)", "line 3: .* has no requests"),
        ("Plug(capacity=8)\n" + "Collect(count=0)\n" * 10_000, "more than 10000 operations"),
    ],
)
def test_a_mistake_in_a_script_is_named_with_its_line(text, message):
    with pytest.raises(ScriptError, match=message):
        parse(text, "bad")


def test_a_script_that_is_no_regular_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for name, words in {"fifo": "is a FIFO", ".": "is a directory"}.items():
        with pytest.raises(ScriptError, match=words):
            load(tmp_path / name)


def test_a_script_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(ScriptError, match="No such file"):
        load(tmp_path / "none.script")
