"""A script of Python's standard library that repeats a trace on a vhost-user back-end."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from importlib.resources import files
from typing import Any

from harness.reproducers.commands import RUN, comments, nodes, runs
from harness.reproducers.steps import (
    Access,
    Calls,
    Check,
    Command,
    Fill,
    Kick,
    NotPossibleError,
    Pause,
    Plan,
    Send,
    Step,
    Until,
    Write,
)
from harness.virtio.vhost_user import MEMORY, REGION, FrontEndRequest
from harness.witness.events import Event, Made, message_name

STARTS = """\
# Needs nothing but Python and qemu-storage-daemon:
#     python3 {name}   (or DAEMON=/path/to/qemu-storage-daemon python3 {name})"""

CONNECTS = """\
# Needs nothing but Python, and the back-end. It writes to the disk of the back-end:
#     SOCKET=/path/to/the/socket python3 {name}"""


def script(plan: Plan, name: str) -> str:
    """Return the script. NotPossibleError for a trace of another kind of device."""
    if plan.dies:
        raise NotPossibleError("the end of a daemon is nothing that --as python can check")
    part, (base, length) = plan.parts.get("export"), _memory(plan)
    if not part and not any(isinstance(step, Send) for step in plan.steps):
        raise NotPossibleError(f"{plan.about.target} is no vhost-user back-end; try --as qtest")
    if not part and plan.contents:
        raise NotPossibleError("the test writes to the file of the disk, which is not ours")
    lines = "".join(_lines(plan))
    text = files(__package__).joinpath("front_end.py.txt").read_text(encoding="utf-8")
    values = {
        "HEAD": comments(plan),
        "NEEDS": (STARTS if part else CONNECTS).format(name=name),
        "COMMAND": _command(part) if part else "",
        "SIZE": str(part["size"] if part else 0),
        "CONTENTS": "".join(f"    ({sector}, {data.hex()!r}),\n" for sector, data in plan.contents),
        "MEMORY": str(length),
        "BASE": f"{base:#x}",
        "SEEN": repr(plan.failed.seen),
        "STEPS": lines,
    }
    for key, value in values.items():
        text = text.replace(f"@{key}@", value)
    return text


def starts_the_device(events: Sequence[Event]) -> bool:
    """Return True if the script of a trace starts the daemon, False if the daemon has to run."""
    return any(isinstance(event, Made) and event.part == "export" for event in events)


def _memory(plan: Plan) -> tuple[int, int]:
    """Return the address for the device and the bytes of the only region of memory."""
    regions = set()
    for step in plan.steps:
        if not isinstance(step, Send):
            continue
        if step.request == FrontEndRequest.ADD_MEM_REG and len(step.payload) == REGION.size:
            regions.add(REGION.unpack(step.payload)[:2])
        elif step.request == FrontEndRequest.SET_MEM_TABLE and len(step.payload) == MEMORY.size:
            regions.add(MEMORY.unpack(step.payload)[1:3])
    if len(regions) > 1:
        raise NotPossibleError("the memory has several regions")
    return regions.pop() if regions else (0, 1 << 20)


def _command(part: dict[str, Any]) -> str:
    """Return the lines with the arguments of the storage daemon."""
    arguments: list[tuple[str, dict[str, Any]]] = []
    arguments += (("--object", options) for options in part["objects"])
    arguments += (("--blockdev", options) for options in nodes(part))
    export = {**part["export"], "addr": {"type": "unix", "path": "@SOCKET"}}
    arguments.append(("--export", export))
    lines = []
    for option, options in arguments:
        if "filename" in options:
            options = {**options, "filename": "@FILE"}
        lines.append(f"    {option!r}, {json.dumps(options)!r},\n")
    return "".join(lines)


def _lines(plan: Plan) -> Iterator[str]:
    for step in plan.steps:
        for line in _step(step):
            words, comment, name = line.partition("  # ")
            yield f"    {words},{comment}{name}\n"


def _step(step: Step) -> Iterator[str]:
    match step:
        case Write():
            for address, data in runs(step.address, step.data):
                if len(data) >= RUN and len(set(data)) == 1:
                    yield f'("fill", {address:#x}, {len(data)}, {data[0]:#x})'
                else:
                    yield f'("write", {address:#x}, "{data.hex()}")'
        case Fill():
            yield f'("fill", {step.address:#x}, {step.length}, {step.byte:#x})'
        case Check():
            if step.marked:
                yield f'("check", {step.address:#x}, "{step.data.hex()}", {step.words!r})'
        case Until():
            yield f'("until", {step.address:#x}, "{step.data.hex()}")'
        case Kick():
            yield f'("kick", {step.queue})'
        case Calls():
            wanted = f", {step.count}, {step.words!r}" if step.marked else ""
            yield f'("calls", {step.queue}{wanted})'
        case Pause():
            yield f'("sleep", {step.seconds:.2f})'
        case Send():
            answer = "None" if step.answer is None else repr(step.answer.hex())
            name = message_name(step.request)
            more = f", {step.words!r}" if step.marked else ""
            payload = step.payload.hex()
            yield f'("send", {step.request}, {step.flags}, "{payload}", {answer}{more})  # {name}'
        case Command() | Access():
            raise NotPossibleError("a QMP command or a register in the trace of a daemon")
