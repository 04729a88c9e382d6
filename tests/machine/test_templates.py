"""The cache of templates: made once, checked, made again, removed. Runs without QEMU."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.machine import templates
from harness.machine.command import Saved
from harness.machine.errors import MachineError
from harness.machine.ramfile import private_copy
from harness.machine.templates import Facts, Template, TemplateError, ensure, key_of

SIZE = 8 << 20
ROOT = Path(__file__).parents[2]


class Maker:
    """Maker of templates whose RAM file is mostly a hole; it counts them."""

    def __init__(self) -> None:
        self.made = 0
        self.said: list[str] = []

    def __call__(self, saved: Saved) -> Facts:
        self.made += 1
        with saved.ram.open("wb") as file:
            file.truncate(SIZE)
            os.pwrite(file.fileno(), b"kernel", 3 << 20)
        saved.state.write_bytes(b"devices")
        return {"number": self.made}

    def ensure(self, directory: Path, key: str = "key") -> Template:
        return ensure(directory, key, self, self.said.append)


@pytest.fixture
def maker() -> Maker:
    return Maker()


def test_a_template_is_made_once_and_found_again(tmp_path: Path, maker: Maker) -> None:
    first = maker.ensure(tmp_path)
    again = maker.ensure(tmp_path)

    assert maker.made == 1
    assert first == again
    assert again.facts == {"number": 1}
    assert again.saved.state.read_bytes() == b"devices"
    assert again.intact()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["key", "lock"]


def flip_a_byte(template: Template) -> None:
    with template.saved.ram.open("r+b") as file:
        os.pwrite(file.fileno(), b"K", 3 << 20)


def write_into_a_hole(template: Template) -> None:
    with template.saved.ram.open("r+b") as file:
        os.pwrite(file.fileno(), b"x", 5 << 20)


def cut_ram_short(template: Template) -> None:
    os.truncate(template.saved.ram, SIZE - 4096)


def change_the_state(template: Template) -> None:
    template.saved.state.write_bytes(b"DEVICES")


def lose_ram(template: Template) -> None:
    template.saved.ram.unlink()


def spoil_the_manifest(template: Template) -> None:
    (template.saved.ram.parent / "template.json").write_text("{}")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip_a_byte, "ram has changed"),
        (write_into_a_hole, "ram has changed"),
        (cut_ram_short, "ram has changed"),
        (change_the_state, "state has changed"),
        (lose_ram, "ram is missing"),
        (spoil_the_manifest, "template.json is not readable"),
    ],
)
def test_a_damaged_template_is_made_again(
    tmp_path: Path, maker: Maker, damage: Callable[[Template], None], message: str
) -> None:
    template = maker.ensure(tmp_path)
    damage(template)

    assert template.intact() == (damage is spoil_the_manifest)
    again = maker.ensure(tmp_path)

    assert maker.made == 2
    assert again.facts == {"number": 2}
    assert message in "".join(maker.said)
    assert maker.ensure(tmp_path) == again


def test_zeroes_are_as_good_as_a_hole(tmp_path: Path, maker: Maker) -> None:
    """Accept a cache whose files were copied without their holes."""
    template = maker.ensure(tmp_path)
    template.saved.ram.write_bytes(template.saved.ram.read_bytes())

    assert maker.ensure(tmp_path).facts == {"number": 1}


def test_what_fails_leaves_nothing_and_is_tried_again(tmp_path: Path, maker: Maker) -> None:
    def fail(saved: Saved) -> Facts:
        maker(saved)
        raise MachineError("it does not boot")

    with pytest.raises(MachineError, match="it does not boot"):
        ensure(tmp_path, "key", fail, maker.said.append)

    assert [path.name for path in tmp_path.iterdir()] == ["lock"]
    assert maker.ensure(tmp_path).facts == {"number": 2}


def test_a_cache_that_cannot_be_written_is_no_place(tmp_path: Path, maker: Maker) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TemplateError, match=r"no template in .*file/templates: Not a directory"):
        maker.ensure(tmp_path / "file" / "templates")


def test_those_used_last_stay(
    tmp_path: Path, maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(templates, "KEPT", 2)
    for age, key in enumerate(["newer", "older", "oldest"]):
        maker.ensure(tmp_path, key)
        os.utime(tmp_path / key, (1000 - age, 1000 - age))
    maker.ensure(tmp_path, "newer")  # this counts as a use

    maker.ensure(tmp_path, "new")

    assert {path.name for path in tmp_path.iterdir()} == {"newer", "new", "lock"}


def test_a_key_is_of_every_part() -> None:
    parts = {"image": "1", "QEMU": "7.2"}
    assert key_of(parts) == key_of(dict(reversed(parts.items())))
    assert len({key_of(parts), key_of({**parts, "QEMU": "7.3"}), key_of({"image": "1"})}) == 3


MAKE = """
import sys, time
from pathlib import Path
from harness.machine.templates import ensure

def make(saved):
    with (Path(sys.argv[1]) / "made").open("a") as file:
        file.write("once ")
    end = time.monotonic() + 60
    while not (Path(sys.argv[1]) / "waited").exists() and time.monotonic() < end:
        time.sleep(0.01)
    saved.ram.write_bytes(b"ram")
    saved.state.write_bytes(b"state")
    return {}

def say(line):
    assert "to make a template" in line
    (Path(sys.argv[1]) / "waited").touch()

template = ensure(Path(sys.argv[1]), "key", make, say)
assert template.saved.state.read_bytes() == b"state"
"""


def test_of_several_processes_one_makes_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", MAKE, str(tmp_path)]
    processes = [subprocess.Popen(command, cwd=ROOT) for _ in range(4)]

    assert [process.wait(100) for process in processes] == [0] * 4
    assert (tmp_path / "made").read_text() == "once "
    assert (tmp_path / "waited").exists()


def test_a_private_copy_has_the_contents_and_none_of_the_holes(tmp_path: Path) -> None:
    ram = tmp_path / "ram"
    with ram.open("wb") as file:
        file.truncate(SIZE)
        os.pwrite(file.fileno(), b"begin", 0)
        os.pwrite(file.fileno(), b"middle", (5 << 20) + 100)

    copy = private_copy(ram)
    try:
        assert os.pread(copy, SIZE, 0) == ram.read_bytes()
        assert os.fstat(copy).st_blocks * 512 < 1 << 20
        os.pwrite(copy, b"ours", 0)
    finally:
        os.close(copy)

    assert ram.read_bytes()[:5] == b"begin"


def test_whatever_the_umask_is_others_cannot_read_a_template(tmp_path: Path, maker: Maker) -> None:
    before = os.umask(0)
    try:
        template = maker.ensure(tmp_path / "new" / "templates")
    finally:
        os.umask(before)

    for path in (template.saved.ram, template.saved.state):
        assert path.stat().st_mode & 0o777 == 0o600
    for directory in (template.saved.ram.parent, tmp_path / "new" / "templates", tmp_path / "new"):
        assert directory.stat().st_mode & 0o077 == 0


def test_directories_of_the_user_stay(tmp_path: Path, maker: Maker) -> None:
    for name in (*(f"album{number}" for number in range(20)), ".make-up"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "photo").write_text("")
        os.utime(tmp_path / name, (1, 1))

    maker.ensure(tmp_path)

    assert len(list(tmp_path.glob("album*/photo"))) == 20
    assert (tmp_path / ".make-up" / "photo").exists()


def test_a_lock_that_is_a_file_of_the_user_is_left_alone(tmp_path: Path, maker: Maker) -> None:
    (tmp_path / "lock").write_text("my own notes")

    with pytest.raises(TemplateError, match="lock is a file of yours"):
        maker.ensure(tmp_path)

    assert (tmp_path / "lock").read_text() == "my own notes"


@pytest.mark.parametrize("name", ["ram", "state", "template.json"])
def test_a_fifo_in_place_of_a_file_is_made_again(tmp_path: Path, maker: Maker, name: str) -> None:
    maker.ensure(tmp_path)
    (tmp_path / "key" / name).unlink()
    os.mkfifo(tmp_path / "key" / name)

    assert maker.ensure(tmp_path).facts == {"number": 2}
