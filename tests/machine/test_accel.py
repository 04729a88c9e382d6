"""The choice of accelerator: KVM is used only after a trial guest has shown its prompt.

The trial runs a real QEMU through a script that replaces the kernel by a firmware and KVM by
TCG. So these tests do not depend on the host's KVM.
"""

from __future__ import annotations

import json
import shlex
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import pytest

from harness.machine import Accel, Qemu, accel, choose_accel

STAND_IN = """#!/bin/sh
echo trial >> {log}
for arg do
    shift
    [ -n "$skip" ] && skip= && continue
    case $arg in
        kvm) arg=tcg ;;
        host) arg=max ;;
        -kernel|-initrd|-append) skip=1; continue ;;
    esac
    set -- "$@" "$arg"
done
{act}
exec {qemu} -bios {bios} "$@"
"""


class Host:
    """A host whose KVM behaves as the test says; it counts the trials."""

    def __init__(self, directory: Path, qemu: Qemu, bios: Path, act: str) -> None:
        self.log = directory / "trials"
        self.cache = directory / "cache"
        self.kernel = directory / "kernel"
        path = directory / "qemu"
        text = STAND_IN.format(
            log=shlex.quote(str(self.log)),
            qemu=shlex.quote(str(qemu.path)),
            bios=shlex.quote(str(bios)),
            act=act,
        )
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)
        self.qemu = Qemu(path, qemu.version, qemu.version_text)

    def choose(self, deadline: float = 60.0, version_text: str = "") -> Accel:
        qemu = Qemu(self.qemu.path, self.qemu.version, version_text or self.qemu.version_text)
        return choose_accel("auto", qemu, self.kernel, self.kernel, self.cache, deadline)

    @property
    def trials(self) -> int:
        return len(self.log.read_text().splitlines()) if self.log.exists() else 0


class NewHost(Protocol):
    def __call__(self, says: str, act: str = "") -> Host: ...


@pytest.fixture
def new_host(
    qemu: Qemu,
    new_bios: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> NewHost:
    device = tmp_path / "kvm"
    device.touch()
    monkeypatch.setattr(accel, "DEVICE", device)
    return lambda says, act="": Host(tmp_path, qemu, new_bios(says), act)


def test_a_guest_that_boots_proves_kvm(new_host: NewHost) -> None:
    host = new_host("Linux\r\nvblk# ")
    assert host.choose().name == "kvm"
    assert "booted" in host.choose().reason
    assert host.trials == 1


def test_a_guest_that_does_not_boot(new_host: NewHost) -> None:
    host = new_host("Linux\r\n")
    chosen = host.choose(deadline=0.5)
    assert chosen == Accel("tcg", "no guest boots on KVM here: no prompt within 0.5 s")
    assert host.choose(deadline=0.5) == chosen
    assert host.trials == 1


def test_a_qemu_that_refuses_kvm_is_quoted(new_host: NewHost) -> None:
    host = new_host("", act="echo failed to initialize kvm >&2; exit 1")
    chosen = host.choose()
    assert chosen.name == "tcg"
    assert "failed to initialize kvm" in chosen.reason


def test_another_qemu_is_tried_again(new_host: NewHost) -> None:
    host = new_host("vblk# ")
    host.choose()
    host.choose(version_text="QEMU emulator version 99")
    assert host.trials == 2


def test_with_a_damaged_cache_the_trial_is_repeated(new_host: NewHost) -> None:
    host = new_host("vblk# ")
    host.choose()
    (host.cache / "accel.json").write_text('{"half')
    assert host.choose().name == "kvm"
    assert host.choose().name == "kvm"
    assert host.trials == 2


def test_many_at_once_try_once(new_host: NewHost) -> None:
    host = new_host("vblk# ")
    found: list[Accel] = []
    threads = [threading.Thread(target=lambda: found.append(host.choose())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [chosen.name for chosen in found] == ["kvm"] * 4
    assert host.trials == 1


def test_no_kvm(new_host: NewHost, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    host = new_host("vblk# ")
    monkeypatch.setattr(accel, "DEVICE", tmp_path / "absent")
    assert host.choose() == Accel("tcg", f"{tmp_path / 'absent'} does not exist")
    assert host.trials == 0


def test_kvm_not_permitted(new_host: NewHost, monkeypatch: pytest.MonkeyPatch) -> None:
    host = new_host("vblk# ")
    monkeypatch.setattr("os.access", lambda *_: False)
    chosen = host.choose()
    assert chosen.name == "tcg"
    assert "may not be opened" in chosen.reason
    assert host.trials == 0


@pytest.mark.parametrize("name", ["kvm", "tcg"])
def test_forced_is_not_tried(new_host: NewHost, name: str) -> None:
    host = new_host("")
    chosen = choose_accel(name, host.qemu, host.kernel, host.kernel, host.cache)  # type: ignore[arg-type]
    assert chosen.name == name
    assert host.trials == 0


def test_progress_hears_of_a_trial(new_host: NewHost) -> None:
    host = new_host("vblk# ")
    heard: list[str] = []
    for _ in range(2):
        choose_accel("auto", host.qemu, host.kernel, host.kernel, host.cache, progress=heard.append)
    assert len(heard) == 1
    assert "KVM" in heard[0]


@pytest.mark.parametrize("obstacle", ["a directory", "a file for its folder", "full"])
def test_a_cache_that_keeps_nothing_costs_one_trial_for_each_process(
    new_host: NewHost, obstacle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = new_host("vblk# ")
    if obstacle == "a directory":
        (host.cache / "accel.json").mkdir(parents=True)
    elif obstacle == "a file for its folder":
        host.cache.touch()
    else:
        host.cache.mkdir()
        (host.cache / "accel.json").symlink_to("/dev/full")

    assert host.choose().name == "kvm"
    assert host.choose().name == "kvm"

    assert host.trials == 1


@pytest.mark.parametrize(
    "verdict", ["[]", "7", '{"name": "kvm"}', '{"name": "warp", "reason": "fast"}', "null"]
)
def test_an_odd_verdict_in_the_cache_is_replaced(new_host: NewHost, verdict: str) -> None:
    host = new_host("vblk# ")
    host.choose()
    path = host.cache / "accel.json"
    key = next(iter(json.loads(path.read_text())))
    path.write_text(f"{{{json.dumps(key)}: {verdict}}}")

    assert host.choose().name == "kvm"

    assert host.trials == 2
    assert json.loads(path.read_text())[key]["name"] == "kvm"
