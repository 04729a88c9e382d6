"""The stream of what crosses the model's border, for the witness of drivers.

Each part of the model has an `observer`, which is None unless somebody observes. It is called with
the name of an event and plain values; `harness/witness/events.py` has the events as types.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

MAX_EVENTS = 1_000_000
"""Events of a file at most; one "cut" follows, and the rest is not written."""

SHOWN = 4096
"""Bytes of a message or of a request's data that are recorded at most."""


class Observer(Protocol):
    """A receiver of events."""

    def __call__(self, event: str, **values: Any) -> None:
        """Take one event. It is called when the event happens."""


class Lines:
    """A file of events as JSON lines, in their order. `connection` numbers the peers in it."""

    def __init__(self, path: Path) -> None:
        """Make the file. OSError if that fails, or if there is such a file."""
        self._file = path.open("x", encoding="utf-8", buffering=1)
        self._left = MAX_EVENTS
        self._connections = 0

    def connection(self, label: str = "") -> Observer:
        """Return the observer of a new connection. The event "device" gets the `label`."""
        number = self._connections
        self._connections += 1

        def observe(event: str, **values: Any) -> None:
            more = {"label": label} if event == "device" and label else {}
            self._write({"event": event, "connection": number, **values, **more})

        return observe

    def _write(self, event: dict[str, Any]) -> None:
        if self._left > 0:
            self._left -= 1
            line = event if self._left else {"event": "cut", "connection": event["connection"]}
            self._file.write(json.dumps(line, separators=(",", ":")) + "\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()
