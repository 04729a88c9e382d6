"""Contents of a cache directory: made once under a lock, and checked on every use."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from harness.inputs import InputError, MissingFileError, WrongValueError, build, json_of, read_text
from images.private import private_directory

Progress = Callable[[str], None]

POLL = 0.1
"""Seconds between two looks at a lock that another process holds."""

T = TypeVar("T")


class StoreError(Exception):
    """The directory cannot be used. The message is one line that says what to do."""


class DamagedError(Exception):
    """Cached contents differ from what was made; the message says how."""


def ensure(
    load: Callable[[], T],
    make: Callable[[], None],
    lock: Callable[[], contextlib.AbstractContextManager[None]],
    name: str,
    say: Progress,
) -> T:
    """Return what `load` returns; call `make` first if that is missing or damaged.

    `load` checks the contents, and raises FileNotFoundError or DamagedError. `make` is called with
    the `lock` held: if several processes ask at the same time, one makes it and the others wait.
    `name` is that of the contents in messages. Raises StoreError, and the errors of the others.
    """
    with contextlib.suppress(DamagedError, FileNotFoundError):
        return load()
    with lock():
        try:
            return load()  # another process may have made it meanwhile
        except FileNotFoundError:
            pass
        except DamagedError as damage:
            say(f"the cached {name} is damaged ({damage}): making it again")
        make()
        try:
            return load()
        except (DamagedError, FileNotFoundError) as error:
            raise StoreError(f"the {name} was damaged while made: {error}") from None


@contextlib.contextmanager
def exclusive(directory: Path, seconds: float, task: str, say: Progress) -> Iterator[None]:
    """Hold the lock of a directory, which is made; the kernel releases it when the process ends.

    `task` says what the holder does, like "build the guest image". Raises StoreError if another
    process holds it for `seconds`.
    """
    private_directory(directory)
    with (directory / "lock").open("a+") as file:
        deadline = time.monotonic() + seconds
        waiting = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                file.seek(0)
                holder = f"process {file.read().strip() or '(unknown)'}"
            if not waiting:
                say(f"waiting for {holder} to {task}")
                waiting = True
            if time.monotonic() > deadline:
                raise StoreError(
                    f"{holder} takes more than {seconds:.0f} s to {task} in {directory}: end it,"
                    " then try again"
                )
            time.sleep(POLL)
        file.seek(0)
        if not re.fullmatch(r"\d{0,10}\s?", file.read(16)):
            raise StoreError(
                f"{directory / 'lock'} is a file of yours: set VBLK_CACHE to a directory for this"
                " alone"
            )
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def manifest(path: Path, kind: type[T]) -> T:
    """Return a manifest's contents. FileNotFoundError if it is missing, DamagedError if damaged."""
    try:
        return build(kind, json_of(path, read_text(path)), extra=True)
    except MissingFileError as error:
        raise FileNotFoundError(errno.ENOENT, str(error), str(path)) from None
    except (InputError, WrongValueError):
        raise DamagedError(f"{path.name} is not readable") from None


def has_manifest(path: Path, kind: type[T]) -> bool:
    """Return True if there is an undamaged manifest: its directory is one that we made."""
    try:
        return bool(manifest(path, kind))
    except (OSError, DamagedError):
        return False
