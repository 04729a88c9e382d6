"""Variants of a board share a template only if their machines are equal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from harness.machine import MachineConfig
from harness.machine.accel import Accel
from harness.machine.command import Paths, command_line
from harness.machine.qemu import Qemu
from harness.machine.templates import key_of
from harness.targets.guest import template
from harness.targets.guest.guest import Means
from harness.targets.guest.template import _parts, shared
from harness.targets.guest.variants import VARIANTS, Variant
from images.cache import Image

OTHERS = {
    f"{name} {interface}": replace(variant, interface=interface)
    for name, variant in VARIANTS.items()
    for interface in ("modern", "transitional")
}


def line(variant: Variant) -> list[str]:
    """Return the command line of a machine without disks."""
    config = MachineConfig(
        Qemu(Path("qemu"), (9, 0, 0), ""),
        kernel=Path("kernel"),
        kernel_args=variant.kernel_args,
        board=variant.board,
        interface=variant.interface,
    )
    return command_line(config, Paths(Path("run")))


@pytest.mark.parametrize("variant", (VARIANTS | OTHERS).values(), ids=(VARIANTS | OTHERS).keys())
def test_the_machine_of_a_shared_template_is_the_variants_own(variant: Variant) -> None:
    assert line(shared(variant)) == line(variant)


@pytest.mark.parametrize("name", ["board", "kernel_args"])
def test_another_machine_has_a_template_of_its_own(name: str) -> None:
    known = VARIANTS["guest-pci"]
    other = replace(known, **{name: "another"})

    assert shared(other) == other != shared(known)


def test_a_template_depends_on_its_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("qemu", "key"):
        (tmp_path / name).write_text("")
    image = Image("key", Path("kernel"), Path("initrd"), "6.1", tmp_path / "key", "ssh-ed25519")
    means = Means(Qemu(tmp_path / "qemu", (9, 0, 0), ""), image, Accel("tcg", ""))
    known = VARIANTS["guest-pci"]

    def key() -> str:
        return key_of(_parts(means, "serial", known))

    before = key()
    assert key() == before
    monkeypatch.setattr(
        template, "command_line", lambda *given: [*command_line(*given), "-another-device"]
    )
    assert key() != before


def test_a_legacy_interface_of_microvm_has_a_template_of_its_own() -> None:
    modern = VARIANTS["guest-mmio"]
    legacy = replace(modern, interface="transitional")

    assert shared(legacy) == legacy != shared(modern)
    assert shared(VARIANTS["guest-pci-legacy"]) == shared(VARIANTS["guest-pci"])
