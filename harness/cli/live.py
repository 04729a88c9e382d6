"""`vblk resize` and `vblk ssh`: access to a running guest from another terminal."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
from pathlib import Path

import paramiko

from harness.channel.stream import ChannelError
from harness.cli import running, sizes
from harness.cli.errors import UsageError
from harness.cli.means import say
from harness.machine.visitor import visit

_CONNECT_DEADLINE = 15.0  # seconds


def resize(arguments: argparse.Namespace) -> int:
    """Change a disk's size while the guest runs."""
    if not sizes.looks_like_size(arguments.size):
        sizes.parse(arguments.size)  # check the size first, before anything is searched
    # A socket that the user names may belong to any machine.
    socket = arguments.qmp or running.find(None).qmp
    if not arguments.at_once:
        running.wait_until_booted(socket, say)
    with visit(Path(socket)) as visitor:
        drives = visitor.drives()
        if arguments.disk not in drives:
            known = ", ".join(f"{name} ({size} bytes)" for name, size in drives.items())
            raise UsageError(
                f"there is no disk {arguments.disk}; the machine has: {known or 'none'}"
            )
        before = drives[arguments.disk]
        size = sizes.parse(arguments.size, now=before)
        file = visitor.files().get(arguments.disk, "")
        # The files that we make for disks are beside the socket.
        ours = not file or str(Path(socket).absolute().parent) in file
        if size < before and not ours and not arguments.shrink:
            raise UsageError(
                f"{arguments.disk} is {file}, and {size} bytes would cut off its end, which cannot"
                " be undone; with --shrink it is done"
            )
        visitor.resize(arguments.disk, size)
    print(f"{arguments.disk}: {before} -> {size} bytes")
    return 0


def ssh(arguments: argparse.Namespace) -> int:
    """Replace this process with the system's ssh client, or run the command through paramiko."""
    guest = running.find(arguments.qmp)
    # The remote shell gets one line. A single word is that line; several words stay separate.
    words: list[str] = arguments.command
    command = words[0] if len(words) == 1 else shlex.join(words)
    client = shutil.which("ssh")
    if client:
        sys.stdout.flush()
        os.execv(client, [*guest.ssh_command(), *([command] if command else [])])
    if not command:
        raise UsageError("a shell needs an ssh client; install it: apt-get install openssh-client")
    return _run(guest, command)


def _run(guest: running.Running, command: str) -> int:
    with paramiko.SSHClient() as client:
        try:
            client.load_host_keys(str(guest.known_hosts))
            client.connect(
                "127.0.0.1",
                guest.ssh_port,
                "root",
                key_filename=guest.ssh_key,
                timeout=_CONNECT_DEADLINE,
                banner_timeout=_CONNECT_DEADLINE,
                allow_agent=False,
                look_for_keys=False,
            )
            transport = client.get_transport()
            assert transport
            channel = transport.open_session(timeout=_CONNECT_DEADLINE)
            channel.set_combine_stderr(True)
            channel.exec_command(command)
            shutil.copyfileobj(channel.makefile("rb"), sys.stdout.buffer)
            return channel.recv_exit_status()
        except (paramiko.SSHException, OSError) as error:
            raise ChannelError(
                f"cannot connect to the guest over SSH, port {guest.ssh_port}: {error}"
            ) from error
