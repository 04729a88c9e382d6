"""Debian packages by name, through apt, from the sources that this machine is configured with.

apt uses a private state directory. So it runs as an ordinary user, needs no `apt-get update`
before, and does not change the machine's package lists. Nothing is installed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from images.errors import ImageError, no_space

_UPDATE_DEADLINE = 300.0  # seconds
_QUERY_DEADLINE = 60.0
_DOWNLOAD_DEADLINE = 900.0

# Read after the machine's own configuration, so these settings win. The hooks that are cleared
# here would change the machine's package lists.
_CONFIG = """\
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
APT::Architecture "amd64";
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled "false";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
Acquire::Retries "2";
"""


ARCHITECTURE = "amd64"

_FIRST_LINE = _CONFIG.partition("\n")[0]


@dataclass(frozen=True, order=True)
class Package:
    """A version of a package, as the archive describes it."""

    name: str
    version: str
    sha256: str


class Apt:
    """Access to the machine's package sources, with a private state in the directory `top`."""

    def __init__(
        self,
        top: Path,
        archive: str = "",
        suites: Sequence[str] = (),
        architecture: str = ARCHITECTURE,
    ) -> None:
        """Use the machine's sources, or `suites` of the archive at an address.

        ImageError if this machine has no apt, OSError if `top` cannot be written.
        """
        if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
            raise ImageError(
                "apt-get and dpkg-deb not found: the guest image is made from Debian packages; "
                "build it on Debian 12 and copy its cache directory here"
            )
        for part in ("state/lists/partial", "cache/archives/partial"):
            (top / part).mkdir(parents=True, exist_ok=True)
        (top / "state/status").touch()
        self._top = top
        self._config = top / "apt.conf"
        if self._config.exists() and not self._config.read_text().startswith(_FIRST_LINE):
            raise ImageError(
                f"{self._config} is a file of yours: set VBLK_CACHE to a directory for this alone"
            )
        self._config.write_text(_CONFIG.replace(ARCHITECTURE, architecture))
        self._complaints = ""
        if archive:
            sources = top / "sources.list"
            lines = (f"deb {archive} {suite} main\n" for suite in suites)
            sources.write_text("".join(lines))
            with self._config.open("a") as file:
                file.write(f'Dir::Etc::SourceList "{sources}";\nDir::Etc::SourceParts "-";\n')

    def archive(self) -> str:
        """Return the address of the archive that this machine has Debian's packages from."""
        self.refresh()  # apt names no source before it has its lists
        form = "$(LABEL) $(COMPONENT) $(REPO_URI)"
        listed = self._run(
            "apt-get",
            ["indextargets", "--format", form, "Created-By: Packages"],
            _QUERY_DEADLINE,
            check=False,
        ).stdout
        found = re.search(r"^Debian main (\S+)$", listed, re.MULTILINE)
        if not found:
            raise ImageError(
                f"this machine's apt sources name no archive of Debian{self.complaint()}"
            )
        return found[1]

    def closure(self, names: Iterable[str], suite: str, only: Sequence[str] = ()) -> list[Package]:
        """Return the named packages of a suite, with all that they depend on.

        If `only` has patterns, these are the packages whose names match one of them.
        """
        wanted = list(names)
        options = ["--simulate", "--no-install-recommends", "--target-release", suite]
        simulation = self._run("apt-get", [*options, "install", *wanted], _QUERY_DEADLINE).stdout
        chosen = dict(re.findall(r"^Inst (\S+) \((\S+) ", simulation, re.MULTILINE))
        if only:
            chosen = {
                name: version
                for name, version in chosen.items()
                if any(fnmatchcase(name, pattern) for pattern in only)
            }
        found = [
            package
            for package in self.offered(chosen)
            if chosen.get(package.name) == package.version
        ]
        if missing := set(chosen) - {package.name for package in found}:
            raise ImageError(f"{suite} does not describe {', '.join(sorted(missing))}")
        return sorted(found)

    def refresh(self) -> None:
        """Fetch the package lists.

        A source that fails is no error, because we may not need it: see `complaint`.
        """
        done = self._run("apt-get", ["update"], _UPDATE_DEADLINE, check=False)
        self._complaints = done.stderr

    def offered(self, names: Iterable[str]) -> dict[Package, dict[str, str]]:
        """Return all versions of the named packages that the sources offer, with their fields."""
        arguments = ["show", "--all-versions", *names]
        return _stanzas(self._run("apt-cache", arguments, _QUERY_DEADLINE, check=False).stdout)

    def candidate(self, name: str) -> tuple[Package, dict[str, str]]:
        """Return the version that apt would install on an empty Debian, with its fields."""
        arguments = ["show", "--no-all-versions", name]
        stanzas = _stanzas(self._run("apt-cache", arguments, _QUERY_DEADLINE, check=False).stdout)
        if not stanzas:
            raise ImageError(f"this machine's apt sources have no package {name}{self.complaint()}")
        return next(iter(stanzas.items()))

    def complaint(self) -> str:
        """Return the first failure of the last refresh, as the end of a sentence; "" for none."""
        failures = re.findall(r"^[WE]: (.*)$", self._complaints, re.MULTILINE)
        return f" (apt: {failures[0]})" if failures else ""

    def download(self, package: Package, into: Path) -> Path:
        """Download a package into an empty directory. apt checks its hash."""
        self._run(
            "apt-get", ["download", f"{package.name}={package.version}"], _DOWNLOAD_DEADLINE, into
        )
        return next(into.glob("*.deb"))

    def _run(
        self,
        program: str,
        arguments: list[str],
        deadline: float,
        cwd: Path | None = None,
        *,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        # On the command line, because apt's files have no way to write a quotation mark.
        places = {
            "Dir::State": self._top / "state",
            "Dir::State::status": self._top / "state/status",
            "Dir::Cache": self._top / "cache",
        }
        options = [word for name, path in places.items() for word in ("-o", f"{name}={path}")]
        command = [program, "-q", "-c", str(self._config), *options, *arguments]
        environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
        try:
            done = subprocess.run(
                command,
                env=environment,
                cwd=cwd or self._top,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=deadline,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise ImageError(
                f"{program} {arguments[0]} gave no result in {deadline:.0f} s: "
                "is the package archive reachable?"
            ) from None
        if re.search("No space left on device|enough free space", done.stderr):
            raise no_space(self._top)
        if check and done.returncode != 0:
            lines = done.stderr.strip().splitlines() or ["no message"]
            raise ImageError(f"{program} {' '.join(arguments)} failed: {lines[-1]}")
        return done


def _stanzas(text: str) -> dict[Package, dict[str, str]]:
    result = {}
    for block in text.split("\n\n"):
        fields = dict(re.findall(r"^([A-Za-z0-9-]+): (.*)$", block, re.MULTILINE))
        if {"Package", "Version", "SHA256"} <= fields.keys():
            package = Package(fields["Package"], fields["Version"], fields["SHA256"])
            result[package] = fields
    return result
