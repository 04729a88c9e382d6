"""The two channels of vhost-user: for the front-end's requests, and for the back-end's."""

from __future__ import annotations

import os
import select
import socket
import stat
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from harness.driver.errors import DeviceTimeoutError, DriverError, NoDeviceError
from harness.driver.trace import Trace, cut
from harness.virtio.vhost_user import (
    HEADER,
    NEED_REPLY,
    REPLY,
    U64,
    VERSION,
    VERSION_MASK,
    BackEndRequest,
    FrontEndRequest,
)

MAX_FDS = 8
"""Most file descriptors that are taken with an answer."""

MAX_PAYLOAD = 4096
"""Longest payload that is accepted, in bytes; all messages used here are far shorter."""

READ_AHEAD = 4096
"""Most bytes that are read from the socket at once: an answer, or several."""


Message = tuple[FrontEndRequest, bytes, Sequence[int]]
"""A message to the back-end: the request, the payload, and file descriptors to go with it."""


class GoneError(DriverError):
    """The back-end closed the connection or ended."""


class RefusedError(DriverError):
    """The back-end reported with REPLY_ACK that a request failed."""


def _connect(path: str, timeout: float) -> socket.socket:
    """Connect to a UNIX socket. Raises NoDeviceError, in one line, if that fails."""
    try:
        if not stat.S_ISSOCK(Path(path).stat().st_mode):
            raise NoDeviceError(f"{path} is not a socket, so no vhost-user back-end listens there")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise NoDeviceError(f"no vhost-user back-end at {path!r}: {reason}") from None
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    deadline = time.monotonic() + timeout
    while True:
        connection.settimeout(timeout)
        try:
            connection.connect(path)
            return connection
        except BlockingIOError:  # its backlog is full
            if time.monotonic() < deadline:
                time.sleep(0.01)
                continue
            why = f"it takes no connection within {timeout:g} s"
        except ConnectionRefusedError:
            why = "no process listens on this socket"
        except OSError as error:
            why = error.strerror or str(error)
        connection.close()
        raise NoDeviceError(f"no vhost-user back-end at {path}: {why}")


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)


class Channel:
    """The front-end's connection to a back-end. Every exchange ends within `timeout` seconds.

    Raises GoneError when the back-end closes the connection, DeviceTimeoutError
    when it does not answer, DriverError when the answer is malformed. After the
    last two, the next answer could belong to any request, so the connection is
    closed.
    """

    def __init__(self, path: str, timeout: float, trace: Trace | None = None) -> None:
        self.path = path
        self._trace = Trace() if trace is None else trace
        self.acknowledged = False
        """True if REPLY_ACK was negotiated: then every message waits until it has been handled."""
        self._timeout = timeout
        self._received = b""
        """Bytes that came after the last answer."""
        self._socket = _connect(path, timeout)
        self._patience = timeout
        """The timeout of the socket now, in seconds."""

    def fileno(self) -> int:
        """Return the socket, which is readable when the back-end has closed the connection."""
        return self._socket.fileno()

    def ask(self, request: FrontEndRequest, payload: bytes = b"") -> bytes:
        """Send a message that has an answer, and return the payload of the answer."""
        return self._ask(request, payload, None)

    def ask_for_file(self, request: FrontEndRequest, payload: bytes) -> tuple[bytes, int | None]:
        """Send a message whose answer may come with a file descriptor.

        Return the payload of the answer, and the descriptor, which the caller closes.
        """
        fds: list[int] = []
        try:
            answer = self._ask(request, payload, fds)
        except BaseException:
            _close_all(fds)
            raise
        _close_all(fds[1:])
        return answer, fds[0] if fds else None

    def ask_number(self, request: FrontEndRequest) -> int:
        """Send a message whose answer is a number of 64 bits, and return it."""
        return self._number(request, self.ask(request))

    def _number(self, request: FrontEndRequest, answer: bytes) -> int:
        if len(answer) != U64.size:
            raise DriverError(f"{self.path} answered {request.name} with {len(answer)} bytes")
        value: int = U64.unpack(answer)[0]
        return value

    def tell(self, request: FrontEndRequest, payload: bytes = b"", fds: Sequence[int] = ()) -> None:
        """Send a message without an answer. RefusedError if its acknowledgement is a failure."""
        self.tell_all([(request, payload, fds)])

    def tell_all(self, messages: Sequence[Message]) -> None:
        """Send messages without an answer, and wait for their acknowledgements together.

        RefusedError if one of these is a failure, also if a later one does not come. Otherwise the
        error names the first message without an acknowledgement.
        """
        self._tell_all(messages, None)

    def tell_all_and_ask(self, messages: Sequence[Message], request: FrontEndRequest) -> int:
        """Send messages like `tell_all`, and together with them one that asks for a number.

        Return the number. The back-end has handled the messages when it answers. Raise
        RefusedError like `tell_all`, after the answer has come.
        """
        return self._number(request, self._tell_all(messages, request))

    def _tell_all(self, messages: Sequence[Message], asked: FrontEndRequest | None) -> bytes:
        """Send messages, and one that asks if there is one. Return the answer to this one."""
        flags = VERSION | NEED_REPLY if self.acknowledged else VERSION
        outgoing = [(request, flags, payload, fds) for request, payload, fds in messages]
        if asked is not None:
            outgoing.append((asked, VERSION, b"", ()))
        answers = list[bytes]()
        lost: DriverError | None = None
        sent = 0
        try:
            try:
                for message in outgoing:
                    self._send(*message)
                    sent += 1
            except GoneError as error:
                lost = error  # an answer that is missing, or is a failure, says more
            try:
                for request, *_ in outgoing[0 if self.acknowledged else len(messages) : sent]:
                    answers.append(self._answer(request, None))
            except DriverError as error:
                lost = error
        except BaseException as error:
            self._end_early(error)
            raise
        if self.acknowledged:
            for (request, *_), answer in zip(messages, answers, strict=False):
                self._check_acknowledgement(request, answer)
        if lost:
            raise lost
        return answers[-1] if asked is not None else b""

    def _check_acknowledgement(self, request: FrontEndRequest, answer: bytes) -> None:
        if len(answer) != U64.size:
            raise DriverError(f"{self.path} acknowledged {request.name} with {len(answer)} bytes")
        if any(answer):
            raise RefusedError(f"{self.path} refused {request.name}", {"answer": answer.hex()})

    def check(self) -> None:
        """Raise GoneError if the connection is closed, DriverError for unexpected data."""
        if self._socket.fileno() < 0:
            raise GoneError(f"no connection to {self.path} any more")
        if self._received:
            data, self._received = self._received[:64], b""
            raise DriverError(f"{self.path} sent {data.hex(' ')} without being asked")
        poll = select.poll()
        poll.register(self._socket, select.POLLIN | select.POLLRDHUP)
        events = dict(poll.poll(0)).get(self._socket.fileno(), 0)
        if not events:
            return
        if events & (select.POLLRDHUP | select.POLLHUP):
            raise GoneError(f"the vhost-user back-end at {self.path} closed the connection")
        try:
            data = self._socket.recv(64, socket.MSG_DONTWAIT)
        except OSError:
            data = b""
        if not data:
            raise GoneError(f"the vhost-user back-end at {self.path} closed the connection")
        raise DriverError(f"{self.path} sent {data.hex(' ')} without being asked")

    @property
    def unread(self) -> bytes:
        """Bytes that came with an answer, after it. The back-end was not asked for them."""
        return self._received

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def _gone(self, request: FrontEndRequest) -> GoneError:
        if self._socket.fileno() < 0:
            return GoneError(f"no connection to {self.path} any more for {request.name}")
        return GoneError(
            f"the vhost-user back-end at {self.path} closed the connection at {request.name}"
        )

    def _ask(self, request: FrontEndRequest, payload: bytes, fds: list[int] | None) -> bytes:
        try:
            self._send(request, VERSION, payload)
            return self._answer(request, fds)
        except BaseException as error:
            self._end_early(error)
            raise

    def _end_early(self, error: BaseException) -> None:
        """Close the connection, also for Ctrl-C: a later message would take the answer for its own.

        A DriverError has closed the connection, or left no answer behind.
        """
        if not isinstance(error, DriverError):
            self.close()

    def _send(
        self, request: FrontEndRequest, flags: int, payload: bytes, fds: Sequence[int] = ()
    ) -> None:
        self._trace.access("message", int(request), flags, cut(payload), len(fds))
        message = HEADER.pack(request, flags, len(payload)) + payload
        try:
            # One deadline for all of it: sendall() has one, and send_fds() sends once.
            self._wait_at_most(self._timeout)
            sent = socket.send_fds(self._socket, [message], fds) if fds else 0
            if sent < len(message):
                self._socket.sendall(message[sent:])
        except TimeoutError:
            raise self._silent(request) from None
        except OSError:
            raise self._gone(request) from None

    def _answer(self, request: FrontEndRequest, fds: list[int] | None) -> bytes:
        """Return the payload of the next answer, which is to `request`.

        Descriptors that come with it are appended to `fds`; without such a list the kernel drops
        them.
        """
        deadline = time.monotonic() + self._timeout
        if len(self._received) < HEADER.size:
            self._receive(HEADER.size, request, deadline, fds)
        header = self._received[: HEADER.size]
        answered, flags, size = HEADER.unpack(header)
        if (
            answered != request
            or flags & (VERSION_MASK | REPLY) != VERSION | REPLY
            or size > MAX_PAYLOAD
        ):
            self.close()
            raise DriverError(
                f"{self.path} does not speak vhost-user:"
                f" it answered {request.name} with {header.hex(' ')}"
            )
        end = HEADER.size + size
        if len(self._received) < end:
            self._receive(end, request, deadline)
        answer, self._received = self._received[HEADER.size : end], self._received[end:]
        self._trace.access("answer", int(request), cut(answer))
        return answer

    def _receive(
        self,
        length: int,
        request: FrontEndRequest,
        deadline: float,
        fds: list[int] | None = None,
    ) -> None:
        """Wait until `length` bytes have come. Everything that has come is read at once."""
        while len(self._received) < length:
            # The first wait for an answer has all its time, and the socket mostly has that timeout.
            left = deadline - time.monotonic() if self._received else self._timeout
            try:
                self._wait_at_most(max(left, 0.001))
                if fds is None:
                    piece = self._socket.recv(READ_AHEAD)
                else:
                    piece, more, _, _ = socket.recv_fds(
                        self._socket, READ_AHEAD, MAX_FDS, socket.MSG_CMSG_CLOEXEC
                    )
                    fds += more
            except TimeoutError:
                raise self._silent(request) from None
            except OSError:
                piece = b""
            if not piece:
                raise self._gone(request)
            self._received += piece

    def _wait_at_most(self, seconds: float) -> None:
        """Set the timeout of the socket, which takes a system call, if it is another."""
        if seconds != self._patience:
            self._socket.settimeout(seconds)
            self._patience = seconds

    def _silent(self, request: FrontEndRequest) -> DeviceTimeoutError:
        self.close()
        return DeviceTimeoutError(
            f"{self.path} did not answer {request.name} within {self._timeout:g} s:"
            " it hangs, serves somebody else, or does not speak vhost-user"
        )


MAX_TAKEN = 1 << 16
"""Most bytes of a back-end's requests that a call reads: about 5000 messages."""


class BackEndChannel:
    """The channel for requests of the back-end. `theirs` is the end to send to it."""

    def __init__(self) -> None:
        self._socket, self.theirs = socket.socketpair()
        self._socket.setblocking(False)
        self._buffer = b""
        self.open = True

    def fileno(self) -> int:
        """Return our end of the channel, which is readable when the back-end has sent a request."""
        return self._socket.fileno()

    def take_config_changes(self) -> int:
        """Read the back-end's requests; return how many announce a configuration change.

        A call reads at most MAX_TAKEN bytes; the next call reads the others. Raises DriverError
        for a message that is longer than any valid one.
        """
        with suppress(BlockingIOError):
            while self.open and len(self._buffer) < MAX_TAKEN:
                piece = self._receive()
                self._buffer += piece
                self.open = bool(piece)
        changes = at = 0
        while len(self._buffer) - at >= HEADER.size:
            request, flags, size = HEADER.unpack_from(self._buffer, at)
            if size > MAX_PAYLOAD:
                self.close()
                self._buffer = b""
                raise DriverError(
                    f"the vhost-user back-end sent a message of {size} bytes on its own channel,"
                    f" where {MAX_PAYLOAD} are enough for any"
                )
            if len(self._buffer) - at < HEADER.size + size:
                break
            at += HEADER.size + size
            known = request == BackEndRequest.CONFIG_CHANGE
            changes += known
            if flags & NEED_REPLY:
                self._reply(request, 0 if known else 1)
        self._buffer = self._buffer[at:]
        return changes

    def _receive(self) -> bytes:
        try:
            return self._socket.recv(4096)
        except ConnectionError:
            return b""

    def _reply(self, request: int, value: int) -> None:
        # A closed connection is noticed on the main connection.
        with suppress(OSError):
            self._socket.sendall(HEADER.pack(request, VERSION | REPLY, U64.size) + U64.pack(value))

    def close(self) -> None:
        """Close both ends, as far as they are still open here."""
        self.open = False
        self._socket.close()
        self.theirs.close()
