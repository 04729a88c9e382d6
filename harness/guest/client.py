"""The host's side of the agent in a guest: its drivers as `Driver` objects.

A call may take the seconds of its own `timeout` argument, plus a margin for the
line. So no call waits for ever, even if the guest hangs.
"""

from __future__ import annotations

import functools
import inspect
import io
import secrets
import time
import zipfile
from collections.abc import Callable, Iterable
from modulefinder import ModuleFinder
from pathlib import Path
from typing import Any, cast

import harness
from harness.channel.stream import ChannelError, Check, Stream
from harness.driver.errors import ERRORS, DriverError
from harness.driver.interface import Driver
from harness.guest import codec
from harness.guest.link import Link, LinkTimeoutError
from harness.guest.wire import PROTOCOL

CALL_TIMEOUT = 20.0
"""Seconds for a call without a `timeout` argument."""

ENTROPY = 64
"""Bytes of entropy for a cloned guest: twice the state of the kernel's generator."""

_ENTRIES = ("harness.guest.agent", "harness.driver.attach")


class AgentError(Exception):
    """A call failed in the agent with an error that is not a DriverError.

    `details` has the guest's traceback, or the console's last text.
    """

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.details = details


class AgentLostError(AgentError):
    """The agent does not answer any more; the test needs a new guest."""


class Agent:
    """The agent at the other end of `stream`. This object owns and closes the stream.

    `check` is called during waits and raises if the machine has ended. After a call
    without an answer the state of the guest is unknown, so every later call
    raises AgentLostError with the first reason.
    """

    def __init__(self, stream: Stream, check: Check = lambda: None) -> None:
        self._stream = stream
        self._link = Link(stream, check)
        self._lost: str | None = None

    def hello(self) -> dict[str, Any]:
        """Return facts on the guest: protocol, python, kernel, cpu, memory (bytes).

        Raises AgentError if the agent has another protocol version.
        """
        answer: dict[str, Any] = self.call(None, "hello", (), {}, CALL_TIMEOUT)
        if answer["protocol"] != PROTOCOL:
            raise AgentError(f"the agent speaks protocol {answer['protocol']}, not {PROTOCOL}")
        return answer

    def renew(self) -> None:
        """Set the clock of a cloned guest, and give it entropy."""
        self.call(None, "renew", (time.time(), secrets.token_bytes(ENTROPY)), {}, CALL_TIMEOUT)

    def ping(self) -> None:
        """Return when the agent answers; this needs a few bytes only."""
        self.call(None, "ping", (), {}, CALL_TIMEOUT)

    def listen(self, port: int) -> None:
        """Let the agent also serve a connection to `port` of the guest's 127.0.0.1.

        While there is one, the agent doesn't read this stream.
        """
        self.call(None, "listen", (port,), {}, CALL_TIMEOUT)

    def memory(self) -> dict[str, int]:
        """Return the guest's /proc/meminfo, in bytes."""
        return cast(dict[str, int], self.call(None, "memory", (), {}, CALL_TIMEOUT))

    def remains(self) -> dict[str, Any]:
        """Return what tests may have left in the guest; equal values mean that nothing was left."""
        return cast(dict[str, Any], self.call(None, "remains", (), {}, CALL_TIMEOUT))

    def disks(self) -> list[tuple[str, str]]:
        """Return kind and address of each virtio block device of the guest, for `attach`."""
        return cast(list[tuple[str, str]], self.call(None, "disks", (), {}, CALL_TIMEOUT))

    def attach(self, kind: str, address: str, timeout: float = 10.0) -> Driver:
        """Attach a driver to the guest's device at `address`; its `close` detaches it.

        The device may take `timeout` seconds to appear. Raises DriverError if the
        driver cannot use it.
        """
        handle: int = self.call(None, "attach", (kind, address, timeout), {}, timeout)
        return _RemoteDriver(self, handle)

    def close(self) -> None:
        """Close the stream. The agent then detaches all drivers; no call is possible any more."""
        self._lost = self._lost or "it was closed"
        self._stream.close()

    def call(
        self,
        handle: int | None,
        method: str,
        arguments: tuple[Any, ...],
        keywords: dict[str, Any],
        timeout: float,
    ) -> Any:
        """Call a method of a driver, or of the agent itself if `handle` is None.

        Raises the DriverError of the method, AgentError for its other exceptions,
        AgentLostError if no answer comes, and the errors of `check`.
        """
        if self._lost is not None:
            raise AgentLostError(f"the agent in the guest is lost: {self._lost}")
        message = codec.encode((handle, method, arguments, keywords))
        try:
            return _outcome(method, codec.decode(self._link.call(message, timeout)))
        except (DriverError, AgentError):
            raise
        except LinkTimeoutError as error:
            self._lost = f"{error} to {method}"
            raise AgentLostError(f"the guest gave {self._lost}") from None
        except ChannelError as error:
            self._lost = str(error)
            raise AgentLostError(f"during {method}: {error}", error.details) from error
        except (codec.CodecError, ValueError) as error:
            self._lost = f"its answer to {method} makes no sense ({error})"
            raise AgentLostError(self._lost) from error
        except BaseException as error:  # also Ctrl-C: the answer may still come
            self._lost = f"{method} was given up: {error!r}"
            raise


def _outcome(method: str, result: Any) -> Any:
    """Return the value in the agent's result, or raise its exception."""
    match result:
        case ("ok", value):
            return value
        case ("driver-error", str(name), str(message), dict(state)) if name in ERRORS:
            raise ERRORS[name](message, state)
        case ("error", str(text)):
            reason = (text.strip().splitlines() or ["no reason"])[-1]
            raise AgentError(f"{method} failed in the guest: {reason}", text)
    raise codec.CodecError(f"not a result: {result!r:.80}")


def _forward(name: str) -> Callable[..., Any]:
    """Return a method that sends the call, with the deadline of its own `timeout` argument."""
    original = getattr(Driver, name)
    signature = inspect.signature(original)

    @functools.wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        timeout = bound.arguments.get("timeout", CALL_TIMEOUT)
        return self._agent.call(self._handle, name, args, kwargs, timeout)

    # functools.wraps also copies the mark of an abstract method
    method.__isabstractmethod__ = False  # type: ignore[attr-defined]
    return method


class _RemoteDriverBase(Driver):
    """A driver in a guest; its other methods are created from those of `Driver`."""

    def __init__(self, agent: Agent, handle: int) -> None:
        self._agent = agent
        self._handle = handle
        self._closed = False

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._agent.call(None, "detach", (self._handle,), {}, CALL_TIMEOUT)


_RemoteDriver: Callable[[Agent, int], Driver] = type(
    "RemoteDriver",
    (_RemoteDriverBase,),
    {name: _forward(name) for name in sorted(Driver.__abstractmethods__ - {"close"})},
)


def payload() -> bytes:
    """Return the agent's code as a zip file; the same sources give the same bytes.

    It has only the modules that the agent and `harness.driver.attach` import, at
    start or later, because a serial port is slow.
    """
    root = Path(inspect.getfile(harness)).parents[1]
    # The standard library is not on this path, so only our modules are found.
    finder = ModuleFinder(path=[str(root)])
    for name in _ENTRIES:
        finder.import_hook(name)
    found: Iterable[Any] = finder.modules.values()
    sources = {Path(module.__file__) for module in found if module.__file__}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path in sorted(sources):
            entry = zipfile.ZipInfo(path.relative_to(root).as_posix())
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, path.read_bytes(), compresslevel=9)
    return buffer.getvalue()
