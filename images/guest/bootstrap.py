"""Receive the guest agent's code over a byte stream, and start it with the stream.

In the image it is /agent/bootstrap.py, run as `python3.11 -S -E bootstrap.py [TTY]`; without TTY
the stream is stdin and stdout. The driver is not in the image. It comes as a zip file over this
stream, so that a change of the driver needs no new image.

    guest  VBLK-BOOTSTRAP 1
    host   VBLK-CODE <length> <sha256>
    guest  VBLK-GOT <bytes so far>        after every 4096 bytes, so that the sender can keep a
                                          window open without overrunning a serial port
    guest  VBLK-RUN, or VBLK-BAD          bad: the hash differs, send VBLK-CODE again

After VBLK-RUN the stream belongs to `harness.guest.agent.main(read_fd, write_fd)`.
"""

import hashlib
import os
import sys

ACK_EVERY = 4096
CODE_PATH = "/run/vblk.zip"


def open_stream(tty: str | None) -> tuple[int, int]:
    """Return the stream as two file descriptors; a tty is set to raw mode to pass all bytes."""
    if tty is None:
        return 0, 1
    import termios
    import tty as tty_modes

    fd = os.open(tty, os.O_RDWR | os.O_NOCTTY)
    tty_modes.setraw(fd, termios.TCSANOW)
    return fd, fd


def say(fd: int, line: str) -> None:
    data = line.encode("ascii") + b"\n"
    while data:
        data = data[os.write(fd, data) :]


def read_some(fd: int, limit: int) -> bytes:
    data = os.read(fd, limit)
    if not data:
        raise SystemExit("vblk bootstrap: the stream ended before the code had come")
    return data


def read_line(fd: int) -> bytes:
    """Read a line, byte by byte: the bytes after the line must stay in the stream."""
    line = bytearray()
    while (byte := read_some(fd, 1)) != b"\n":
        line += byte
    return bytes(line)


def parse_offer(line: bytes) -> tuple[int, str] | None:
    """Return (length, hash) of a VBLK-CODE line, also after noise; None for other lines."""
    _, found, offer = line.rpartition(b"VBLK-CODE ")
    words = offer.split()
    if not found or len(words) != 2 or not words[0].isdigit():
        return None
    return int(words[0]), words[1].decode("ascii", "replace")


def receive_code(read_fd: int, write_fd: int) -> bytes:
    while True:
        offer = parse_offer(read_line(read_fd))
        if offer is None:
            continue
        length, expected = offer
        code = bytearray()
        acknowledged = 0
        while len(code) < length:
            code += read_some(read_fd, min(ACK_EVERY, length - len(code)))
            if len(code) - acknowledged >= ACK_EVERY or len(code) == length:
                acknowledged = len(code)
                say(write_fd, f"VBLK-GOT {acknowledged}")
        if hashlib.sha256(code).hexdigest() == expected:
            return bytes(code)
        say(write_fd, "VBLK-BAD")


def main() -> None:
    read_fd, write_fd = open_stream(sys.argv[1] if len(sys.argv) > 1 else None)
    say(write_fd, "VBLK-BOOTSTRAP 1")
    code = receive_code(read_fd, write_fd)
    with open(CODE_PATH, "wb") as file:  # noqa: PTH123  (pathlib takes long to import)
        file.write(code)
    sys.path.insert(0, CODE_PATH)
    say(write_fd, "VBLK-RUN")
    from harness.guest import agent

    agent.main(read_fd, write_fd)


if __name__ == "__main__":
    main()
