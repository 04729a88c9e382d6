"""Errors of this package."""

from __future__ import annotations

from harness.inputs import printable_lines


class MachineError(Exception):
    """The machine, or a command to it, failed.

    `str()` is one line that says what happened. `details` helps to find the cause
    (QEMU's command line and stderr, the end of the console). It is also attached
    as a note, so that a traceback shows it.
    """

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(printable_lines(message))
        # QEMU's stderr is in them, which may hold sequences for a terminal.
        details = printable_lines(details)
        self.details = details
        if details:
            self.add_note(details)


class DisconnectedError(MachineError):
    """The QMP session ended before or during its use."""


class CommandFailedError(MachineError):
    """A user's command ended by itself, with another exit status than 0."""


class UnsupportedError(MachineError):
    """Error of a program whose version cannot do what it was asked, and never will."""
