"""The lock file: the version and SHA-256 of each package that the image is built from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.inputs import InputError, WrongValueError, build, json_of, read_text
from harness.outputs import replace_text
from images import recipe
from images.apt import Apt, Package
from images.errors import ImageError

PATH = Path(__file__).parent / "packages.lock.json"


@dataclass
class _LockFile:
    packages: list[Package]


def read(path: Path) -> list[Package]:
    """Return the locked packages, by name. Raises ImageError for a missing or malformed file."""
    try:
        return sorted(build(_LockFile, json_of(path, read_text(path))).packages)
    except (InputError, WrongValueError) as error:
        raise ImageError(
            f"{path} can't be read ({error}): restore it, or make a new "
            "one with `vblk image update`"
        ) from None


def write(path: Path, packages: Sequence[Package]) -> None:
    """Replace the lock file."""
    items = [
        {"name": package.name, "version": package.version, "sha256": package.sha256}
        for package in sorted(packages)
    ]
    replace_text(path, json.dumps({"packages": items}, indent=2) + "\n")


def resolve(apt: Apt) -> list[Package]:
    """Return the packages of the recipe, in the versions that this machine's sources offer now."""
    _, fields = apt.candidate(recipe.KERNEL_METAPACKAGE)
    kernel = fields.get("Depends", "").split(" ")[0]
    if not kernel.startswith("linux-image-"):
        raise ImageError(f"{recipe.KERNEL_METAPACKAGE} names no kernel: {fields.get('Depends')!r}")
    return sorted(apt.candidate(name)[0] for name in (kernel, *recipe.PACKAGES))
