"""All calls that remove or overwrite a file are listed, each with the reason why it may.

What is removed, this process made or it carries our mark. A new call fails here until it is
listed; a listed call that is gone fails too.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

RUN = "in the run directory of this process"
WANTED = "the file that the user named for this, or its temporary neighbour made here"
DEVICE = "a device node or a register of the kernel's, nothing that is stored"
CACHE = "a file of the cache with a name of its own, checked to be ours"
MADE = "made here, in a directory made here"
GUEST = "in the guest"

KNOWN = {
    "harness/cli/main.py::main: os.open": DEVICE,
    "harness/cli/export.py::export: write_text": "in a temporary directory made here",
    "harness/cli/running.py::Running.announce: write_text": RUN,
    "harness/cli/running.py::Running.announce: rename": RUN,
    "harness/driver/bus/linux_mmio.py::LinuxMmio.__init__: os.open": GUEST,
    "harness/driver/bus/linux_pci.py::HugePage.__init__: os.open": "O_EXCL: made here",
    "harness/driver/bus/linux_pci.py::HugePage.__init__: ftruncate": "made here",
    "harness/driver/bus/linux_pci.py::HugePage.__init__: unlink": "made here",
    "harness/driver/bus/linux_pci.py::LinuxPci._open: os.open": DEVICE,
    "harness/driver/bus/linux_sysfs.py::Binding._claim: os.open": DEVICE,
    "harness/driver/bus/linux_sysfs.py::Binding._bind: write_text": DEVICE,
    "harness/driver/bus/linux_sysfs.py::Binding._bound: write_text": DEVICE,
    "harness/driver/bus/linux_sysfs.py::Binding.release: write_text": DEVICE,
    "harness/driver/bus/linux_vfio.py::_Region.__init__: ftruncate": "memory without a name",
    "harness/driver/bus/linux_vfio.py::LinuxVfio._open: os.open": DEVICE,
    "harness/driver/bus/qtest.py::_QtestBus.__init__: open": RUN,
    "harness/driver/bus/vfio_user.py::VfioUser.__init__: truncate": "memory without a name",
    "harness/driver/transport/vhost_user.py::VhostUser.__init__: truncate": "memory without a name",
    "harness/cli/serve.py::_serve: unlink": (
        "the sockets of the model, in a place that was free; a stream that was begun here"
    ),
    "harness/drivers/base.py::Place.fill: open": "the disk of a scenario, in a run directory",
    "harness/drivers/base.py::add_events: open": RUN,
    "harness/drivers/userland.py::write: open": RUN,
    "harness/guest/agent.py::_claim_standard_streams: os.open": GUEST,
    "harness/guest/agent.py::_renew: os.open": GUEST,
    "harness/machine/accel.py::_kept: open": CACHE,
    "harness/machine/accel.py::_kept: truncate": CACHE,
    "harness/machine/drive.py::Backing.write: open": (
        "the disk under test; one of the user's only with --destructive"
    ),
    "harness/machine/file_server.py::Files.truncate: truncate": RUN,
    "harness/machine/machine.py::Machine.start: ftruncate": "memory without a name",
    "harness/machine/machine.py::Machine.start: write_bytes": RUN,
    "harness/machine/machine.py::Machine.remove_disk: unlink": RUN,
    "harness/machine/machine.py::Machine._add: unlink": RUN,
    "harness/machine/process.py::_spawn: open": RUN,
    "harness/machine/ramfile.py::private_copy: ftruncate": "memory without a name",
    "harness/machine/rundir.py::RunDir._make: write_bytes": MADE,
    "harness/machine/served_files.py::ServedFiles.__init__: open": RUN,
    "harness/machine/rundir.py::RunDir.remove: rmtree": MADE,
    "harness/machine/rundir.py::_sweep: rmtree": "it has our mark, and its owner is gone",
    "harness/machine/storage_daemon.py::StorageDaemon.add_export: unlink": RUN,
    "harness/machine/storage_daemon.py::StorageDaemon.remove_export: unlink": RUN,
    "harness/machine/drive.py::make_raw: open": RUN,
    "harness/machine/drive.py::make_raw: truncate": RUN,
    "harness/machine/drive.py::make_raw: unlink": RUN,
    "harness/machine/qcow2.py::make_qcow2: open": RUN,
    "harness/machine/qcow2.py::make_qcow2: truncate": RUN,
    "harness/machine/qcow2.py::make_qcow2: unlink": RUN,
    "harness/machine/templates.py::_make: touch": MADE,
    "harness/machine/templates.py::_make: write_text": MADE,
    "harness/machine/templates.py::_make: rename": "to and from a directory made here",
    "harness/machine/templates.py::_prune: rmtree": "a template: it has our manifest",
    "harness/model/defects/requests.py::read_only_written: os.open": RUN,
    "harness/model/main.py::serve: unlink": "the socket that it listened on",
    "harness/model/main.py::Listener.close: unlink": "the socket that it listened on",
    "harness/model/observer.py::Lines.__init__: open": WANTED,
    "harness/model/storage.py::Storage.__init__: os.open": RUN,
    "harness/model/storage.py::Storage.resize: ftruncate": RUN,
    "harness/model/vhost.py::Connection._get_inflight_fd: truncate": "memory without a name",
    "harness/outputs.py::replace_text: os.open": "O_EXCL: made here",
    "harness/outputs.py::replace_text: replace": WANTED,
    "harness/outputs.py::replace_text: unlink": "made here",
    "harness/outputs.py::mark: write_text": MADE,
    "harness/outputs.py::remove_leftovers: rmtree": "it has our mark, with its name",
    "harness/cli/main.py::main: open": DEVICE,
    "harness/pytestplugin/lost.py::discard: os.open": DEVICE,
    "harness/pytestplugin/entry.py::pytest_load_initial_conftests: open": DEVICE,
    "harness/proof/alarms.py::run: unlink": "results of an earlier run, read and found to be such",
    "harness/proof/alarms.py::run: open": "mode x: made here",
    "harness/proof/shapes.py::main.each: open": WANTED,
    "harness/proof/shapes.py::main.report: write_text": WANTED,
    "harness/proof/witnessed.py::trace_of: write_text": "in a temporary directory made here",
    "harness/random/saved.py::save: open": "mode x: made here",
    "harness/report/artifacts.py::_write: unlink": "named in our mark as written by us",
    "harness/targets/guest/disk.py::StartedDisk.serves: open": RUN,
    "harness/targets/guest/disk.py::StartedDisk.serves: truncate": RUN,
    "harness/targets/model.py::ModelProcess.add: unlink": RUN,
    "harness/targets/model.py::ModelProcess.remove: unlink": RUN,
    "harness/targets/model.py::ModelProcess.restart: unlink": RUN,
    "harness/targets/owned_model.py::_fill: open": RUN,
    "harness/channel/console.py::open_terminal: os.open": DEVICE,
    "harness/targets/guest/vmm.py::VmmTarget._boot: write_bytes": RUN,
    "harness/targets/guest/vmm.py::VmmTarget._end: unlink": RUN,
    "harness/targets/guest/vmm.py::VmmTarget._remove: unlink": RUN,
    "harness/targets/guest/vmm.py::VmmTarget._serves: truncate": RUN,
    "harness/targets/started.py::StartedTarget._make: truncate": RUN,
    "harness/targets/started.py::StartedTarget._make: write_bytes": RUN,
    "harness/targets/started.py::StartedTarget._remove: unlink": RUN,
    "harness/targets/started.py::StartedTarget._start: unlink": RUN,
    "images/apt.py::Apt.__init__: open": CACHE,
    "images/apt.py::Apt.__init__: touch": "changes no contents",
    "images/apt.py::Apt.__init__: write_text": CACHE,
    "images/cache.py::_build: open": MADE,
    "images/cache.py::_build: rename": "to and from a directory made here",
    "images/cache.py::_build: write_text": MADE,
    "images/cache.py::_build: rmtree": "an image: it has our manifest",
    "images/cache.py::fetch: rename": "from a directory made here, to a name that is a digest",
    "images/foreign.py::_unpack: rename": "to and from a directory made here; the name is a digest",
    "images/foreign.py::_unpack: touch": MADE,
    "images/foreign.py::_unpack: write_text": MADE,
    "images/foreign.py::update: write_text": "the lock file, which the command is there to write",
    "images/guest/bootstrap.py::open_stream: os.open": GUEST,
    "images/guest/bootstrap.py::main: open": GUEST,
    "images/recipe.py::build: open": MADE,
    "images/recipe.py::_add_kernel: write_bytes": MADE,
    "images/recipe.py::_add_host_made: symlink_to": MADE,
    "images/recipe.py::_add_host_made: write_bytes": MADE,
    "images/ssh.py::_save: unlink": "a temporary name in the cache's directory of keys",
    "images/ssh.py::_save: os.open": "O_EXCL: made here",
    "images/ssh.py::_save: replace": "a key that cannot be read, in the cache's directory of keys",
    "images/store.py::exclusive: open": CACHE,
    "images/store.py::exclusive: truncate": CACHE,
}
"""Place and call -> why it touches nothing of the user's."""

METHODS = {
    *("rmtree", "unlink", "rmdir", "removedirs", "rename", "renames", "symlink_to"),
    *("hardlink_to", "touch", "write_text", "write_bytes", "truncate", "ftruncate"),
}
FUNCTIONS = {
    *(("os", "remove"), ("os", "replace"), ("shutil", "move"), ("shutil", "copy")),
    *(("shutil", "copyfile"), ("shutil", "copytree")),
}


def call_of(call: ast.Call) -> str:
    """Return the name of a call that can remove or overwrite a file; "" for others."""
    function = call.func
    if isinstance(function, ast.Name):
        base, name = "", function.id
    elif isinstance(function, ast.Attribute):
        base = function.value.id if isinstance(function.value, ast.Name) else ""
        name = function.attr
    else:
        return ""
    if (base, name) == ("os", "open"):
        flags = ast.unparse(call)
        writing = any(flag in flags for flag in ("O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC"))
        return "os.open" if writing else ""
    if name == "open":
        words = [*call.args, *(word.value for word in call.keywords if word.arg == "mode")]
        modes = [word.value for word in words if isinstance(word, ast.Constant)]
        writing = any(isinstance(mode, str) and set(mode) & set("wax+") for mode in modes)
        return name if writing and isinstance(modes[-1], str) else ""
    if (base, name) in FUNCTIONS:
        return f"{base}.{name}"
    if name == "replace":  # that of a string takes two arguments, that of dataclasses has names
        return name if len(call.args) == 1 and not call.keywords else ""
    return name if name in METHODS and base != "self" else ""


def calls(node: ast.AST, where: str = "") -> Iterator[str]:
    """Yield the calls below a node that can remove or overwrite a file, with their function."""
    for child in ast.iter_child_nodes(node):
        inside = where
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            inside = f"{where}.{child.name}".removeprefix(".")
        if isinstance(child, ast.Call) and (name := call_of(child)):
            yield f"{where}: {name}"
        yield from calls(child, inside)


def found() -> set[str]:
    """Return all such calls in harness/ and images/."""
    files = [*(ROOT / "harness").rglob("*.py"), *(ROOT / "images").rglob("*.py")]
    return {
        f"{path.relative_to(ROOT)}::{call}"
        for path in files
        for call in calls(ast.parse(path.read_text(encoding="utf-8")))
    }


def test_each_call_that_removes_or_overwrites_is_listed_with_its_reason() -> None:
    assert found() - set(KNOWN) == set(), "touch what we made only, and list the call with why"
    assert set(KNOWN) - found() == set(), "these calls are gone: take them off the list"
    assert all(KNOWN.values())


@pytest.mark.parametrize(
    "source",
    [
        "def f(p): p.unlink()",
        "def f(p): shutil.rmtree(p)",
        "def f(p): p.open('w')",
        "def f(p): open(p, mode='ab')",
        "def f(p): p.write_text('x')",
        "def f(p): p.replace(q)",
        "def f(p): os.replace(p, q)",
        "def f(p): os.open(p, os.O_RDWR)",
        "class C:\n    def f(self): self.path.rename(q)",
    ],
)
def test_a_call_that_is_not_listed_is_found(source: str) -> None:
    assert Counter(calls(ast.parse(source))).total() == 1


@pytest.mark.parametrize(
    "source",
    ["'a'.replace('b', 'c')", "replace(spec, capacity=1)", "p.open()", "p.open('rb')"],
)
def test_what_writes_nothing_is_not_found(source: str) -> None:
    assert not list(calls(ast.parse(source)))
