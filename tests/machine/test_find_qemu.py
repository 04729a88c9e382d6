"""The search for QEMU: each wrong file in its place gets one line that says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.machine import MachineError, find_qemu


def script(path: Path, body: str, mode: int = 0o755) -> str:
    path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    path.chmod(mode)
    return str(path)


def refused(path: str | None) -> str:
    with pytest.raises(MachineError) as caught:
        find_qemu(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)", (7, 2, 22)),
        ("QEMU emulator version 10.0.2", (10, 0, 2)),
        ("QEMU emulator version 8.1", (8, 1, 0)),
        ("QEMU emulator version 7.2.0-rc1", (7, 2, 0)),
    ],
)
def test_version_is_read(tmp_path: Path, text: str, version: tuple[int, int, int]) -> None:
    fake = script(tmp_path / "qemu", f"echo '{text}'; echo Copyright")

    found = find_qemu(fake)

    assert found.version == version
    assert found.version_text == text
    assert found.path == Path(fake)


def test_installed_qemu_is_found_on_path() -> None:
    assert find_qemu().version >= (7, 2, 0)


def test_too_old(tmp_path: Path) -> None:
    message = refused(script(tmp_path / "old", "echo QEMU emulator version 7.1.9"))
    assert "7.1.9" in message
    assert "7.2 or newer" in message


def test_missing_names_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "apt-get install qemu-system-x86" in refused(None)
    assert "apt-get install qemu-system-x86" in refused(str(tmp_path / "nowhere"))


def test_not_executable(tmp_path: Path) -> None:
    assert "not executable" in refused(script(tmp_path / "plain", "", mode=0o644))


def test_directory(tmp_path: Path) -> None:
    assert "is a directory" in refused(str(tmp_path))


def test_something_else(tmp_path: Path) -> None:
    assert "is not QEMU" in refused(script(tmp_path / "other", "echo GNU bash, version 5.2"))


def test_one_that_fails(tmp_path: Path) -> None:
    assert "status 127" in refused(script(tmp_path / "broken", "echo no lib >&2; exit 127"))


def test_not_a_program(tmp_path: Path) -> None:
    path = tmp_path / "garbage"
    path.write_bytes(b"\x7fELF and then nothing")
    path.chmod(0o755)
    assert "does not run" in refused(str(path))


def test_an_empty_path_is_not_the_qemu_on_path() -> None:
    with pytest.raises(MachineError, match="an empty path names no QEMU"):
        find_qemu("")


@pytest.mark.parametrize("stream", ["", " >&2"])
def test_a_version_without_end_is_refused(tmp_path: Path, stream: str) -> None:
    path = tmp_path / "qemu"
    path.write_text(f"#!/bin/sh\nyes 'QEMU emulator version 9.0.0'{stream}\n")
    path.chmod(0o755)

    with pytest.raises(MachineError, match="--version writes more than 65536 bytes"):
        find_qemu(str(path))
