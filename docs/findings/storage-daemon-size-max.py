#!/usr/bin/env python3
# 5.2.3-P-05 (described): A segment of a request may have size_max bytes.
#
# Seen with qemu-storage-daemon 7.2.22.
# Expected: size_max
# Seen: size_max is 0: 0
# Test: conformance/test_framing_of_requests.py::test_a_segment_can_have_size_max_bytes, target
# vhost-user
# Needs nothing but Python and qemu-storage-daemon:
#     python3 storage-daemon-size-max.py   (or DAEMON=/path/to/qemu-storage-daemon python3 storage-daemon-size-max.py)
# Exit status: 0 if the device does what the test saw, 1 if it does not.

import mmap
import os
import socket
import struct
import subprocess
import sys
import tempfile
import time

DAEMON = os.environ.get("DAEMON", "qemu-storage-daemon")
COMMAND = [
    '--blockdev', '{"driver": "file", "filename": "@FILE", "node-name": "disk54-file", "discard": "unmap", "read-only": false}',
    '--blockdev', '{"driver": "raw", "file": "disk54-file", "node-name": "disk54", "discard": "unmap", "read-only": false}',
    '--export', '{"type": "vhost-user-blk", "id": "disk54", "node-name": "disk54", "addr": {"type": "unix", "path": "@SOCKET"}, "writable": true}',
]
SIZE = 8388608
CONTENTS = [
]
"""Sector, and bytes that the file of the disk has there."""

SEEN = 'size_max is 0: 0'

MEMORY = 64 << 20
BASE = 1 << 32
"""Bytes of the shared memory, and its address for the device."""

TIMEOUT = 10
WAIT = 10
"""Seconds for an answer, and for memory to become what it was in the test."""

SET_MEM_TABLE, SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR = 5, 12, 13, 14
SET_BACKEND_REQ_FD, SET_INFLIGHT_FD, ADD_MEM_REG = 21, 32, 37

STEPS = [
    ("send", 3, 1, "", None),  # SET_OWNER
    ("send", 1, 1, "", '467e007501000000'),  # GET_FEATURES
    ("send", 15, 1, "", '2b8f000000000000'),  # GET_PROTOCOL_FEATURES
    ("send", 16, 1, "2982000000000000", None),  # SET_PROTOCOL_FEATURES
    ("send", 17, 1, "", '0100000000000000'),  # GET_QUEUE_NUM
    ("send", 36, 1, "", '2000000000000000'),  # GET_MAX_MEM_SLOTS
    ("send", 21, 9, "", '0000000000000000'),  # SET_BACKEND_REQ_FD
    ("send", 24, 1, "000000006000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000", ''),  # GET_CONFIG
    ("send", 24, 1, "000000004800000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000", ''),  # GET_CONFIG
    ("send", 24, 1, "000000003c00000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000", '000000003c000000000000000040000000000000000000007e0000000000000000020000000001000100000000000100008000000100000001000000008000000100000000000000'),  # GET_CONFIG
    ("send", 1, 1, "", '467e007501000000'),  # GET_FEATURES
    ("send", 2, 9, "467e005001000000", '0000000000000000'),  # SET_FEATURES
    ("send", 1, 1, "", '467e007501000000'),  # GET_FEATURES
    ("fill", 0x100000000, 2048, 0x0),
    ("fill", 0x100000800, 262, 0x0),
    ("fill", 0x100000908, 1030, 0x0),
    ("send", 37, 9, "00000000000000000000000001000000000000040000000000000000005000000000000000000000", '0000000000000000'),  # ADD_MEM_REG
    ("send", 8, 9, "0000000080000000", '0000000000000000'),  # SET_VRING_NUM
    ("send", 10, 9, "0000000000000000", '0000000000000000'),  # SET_VRING_BASE
    ("send", 9, 9, "00000000000000000000000000500000080900000050000000080000005000000000000000000000", '0000000000000000'),  # SET_VRING_ADDR
    ("send", 14, 9, "0000000000000000", '0000000000000000'),  # SET_VRING_ERR
    ("send", 13, 9, "0000000000000000", '0000000000000000'),  # SET_VRING_CALL
    ("send", 1, 1, "", '467e007501000000'),  # GET_FEATURES
    ("send", 12, 9, "0000000000000000", '0000000000000000'),  # SET_VRING_KICK
    ("send", 18, 9, "0000000001000000", '0000000000000000'),  # SET_VRING_ENABLE
    ("send", 24, 1, "000000003c00000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000", '000000003c000000000000000040000000000000000000007e0000000000000000020000000001000100000000000100008000000100000001000000008000000100000000000000'),  # GET_CONFIG
    ("send", 24, 1, "000000003c00000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000", '000000003c000000000000000040000000000000000000007e0000000000000000020000000001000100000000000100008000000100000001000000008000000100000000000000'),  # GET_CONFIG
    ("send", 24, 1, "000000003c00000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000", '000000003c000000000000000040000000000000000000007e0000000000000000020000000001000100000000000100008000000100000001000000008000000100000000000000'),  # GET_CONFIG
    ("send", 24, 1, "000000003c00000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000", '000000003c000000000000000040000000000000000000007e0000000000000000020000000001000100000000000100008000000100000001000000008000000100000000000000'),  # GET_CONFIG
    ("send", 24, 1, "000000003c00000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000", '000000003c000000000000000040000000000000000000007e0000000000000000020000000001000100000000000100008000000100000001000000008000000100000000000000'),  # GET_CONFIG
    ("send", 24, 1, "000000003c00000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000", '000000003c000000000000000040000000000000000000007e0000000000000000020000000001000100000000000100008000000100000001000000008000000100000000000000'),  # GET_CONFIG
    ("send", 24, 1, "000000003c00000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000", '000000003c000000000000000040000000000000000000007e0000000000000000020000000001000100000000000100008000000100000001000000008000000100000000000000'),  # GET_CONFIG
    ("send", 24, 1, "000000003c00000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000", '000000003c000000000000000040000000000000000000007e0000000000000000020000000001000100000000000100008000000100000001000000008000000100000000000000'),  # GET_CONFIG
    ("send", 24, 1, "000000003c00000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000", '000000003c000000000000000040000000000000000000007e0000000000000000020000000001000100000000000100008000000100000001000000008000000100000000000000'),  # GET_CONFIG
    ("send", 24, 1, "000000003c00000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000", '000000003c000000000000000040000000000000000000007e0000000000000000020000000001000100000000000100008000000100000001000000008000000100000000000000'),  # GET_CONFIG
    ("send", 24, 1, "000000003c00000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000", '000000003c000000000000000040000000000000000000007e0000000000000000020000000001000100000000000100008000000100000001000000008000000100000000000000'),  # GET_CONFIG
    ("send", 24, 1, "000000003c00000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000", '000000003c000000000000000040000000000000000000007e0000000000000000020000000001000100000000000100008000000100000001000000008000000100000000000000'),  # GET_CONFIG
    ("send", 24, 1, "000000003c00000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000", '000000003c000000000000000040000000000000000000007e0000000000000000020000000001000100000000000100008000000100000001000000008000000100000000000000'),  # GET_CONFIG
    ("send", 24, 1, "000000003c00000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000", '000000003c000000000000000040000000000000000000007e0000000000000000020000000001000100000000000100008000000100000001000000008000000100000000000000'),  # GET_CONFIG
    ("send", 24, 1, "000000003c00000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000", '000000003c000000000000000040000000000000000000007e0000000000000000020000000001000100000000000100008000000100000001000000008000000100000000000000'),  # GET_CONFIG
    ("send", 24, 1, "000000003c00000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000", '000000003c000000000000000040000000000000000000007e0000000000000000020000000001000100000000000100008000000100000001000000008000000100000000000000', 'GET_CONFIG is answered with 000000003c000000000000000040000000000000000000007e0000000000000000020000000001000100000000000100008000000100000001000000008000000100000000000000'),  # GET_CONFIG
]
"""The steps of the test:

("write", address, bytes)       ("fill", address, length, byte)      ("kick", virtqueue)
("send", message, flags, payload, answer or None, what it shows)     ("sleep", seconds)
("until", address, bytes)       ("check", address, bytes, what it shows)
("calls", virtqueue, signals, what it shows)
"""


def receive(connection, length, files):
    data = b""
    while len(data) < length:
        piece, more, _, _ = socket.recv_fds(connection, length - len(data), 4)
        files += more
        if not piece:
            raise ConnectionError("the back-end closed the connection")
        data += piece
    return data


class FrontEnd:
    def __init__(self, path):
        self.connection = socket.socket(socket.AF_UNIX)
        self.connection.settimeout(TIMEOUT)
        self.connection.connect(path)
        self.file = os.memfd_create("memory")
        os.truncate(self.file, MEMORY)
        self.memory = mmap.mmap(self.file, MEMORY)
        self.events = {}
        self.channel = socket.socketpair()
        self.received = []
        self.good = True

    def event(self, message, queue):
        if (message, queue) not in self.events:
            descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self.events[message, queue] = descriptor
        return self.events[message, queue]

    def files(self, message, payload):
        if message in (SET_MEM_TABLE, ADD_MEM_REG):
            return [self.file]
        if message in (SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR):
            return [self.event(message, payload[0])]
        if message == SET_INFLIGHT_FD:
            return self.received[-1:]
        return [self.channel[1].fileno()] if message == SET_BACKEND_REQ_FD else []

    def compare(self, seen, wanted, words):
        if seen == wanted:
            print(f"as in the test: {words}")
        else:
            print(f"not as in the test: {words}: {seen}, not {wanted}")
            self.good = False

    def send(self, message, flags, payload, answer, words=None):
        payload = bytes.fromhex(payload)
        data = struct.pack("=III", message, flags, len(payload)) + payload
        socket.send_fds(self.connection, [data], self.files(message, payload))
        if answer is not None:
            _, _, size = struct.unpack("=III", receive(self.connection, 12, self.received))
            seen = receive(self.connection, size, self.received).hex()
            if words:
                self.compare(seen, answer, words)
        if message == SET_VRING_KICK:
            time.sleep(0.05)  # a signal on the new call descriptor at the start is not one for us
            self.calls(payload[0])

    def write(self, address, data):
        at = address - BASE
        self.memory[at : at + len(data) // 2] = bytes.fromhex(data)

    def fill(self, address, length, byte):
        at = address - BASE
        self.memory[at : at + length] = bytes([byte]) * length

    def until(self, address, data):
        deadline = time.monotonic() + WAIT
        at = address - BASE
        while self.memory[at : at + len(data) // 2].hex() != data:
            if time.monotonic() > deadline or not self.good:
                break
            time.sleep(0.01)

    def check(self, address, data, words):
        self.until(address, data)
        at = address - BASE
        self.compare(self.memory[at : at + len(data) // 2].hex(), data, words)

    def kick(self, queue):
        os.eventfd_write(self.event(SET_VRING_KICK, queue), 1)

    def calls(self, queue, wanted=None, words=None):
        try:
            seen = os.eventfd_read(self.event(SET_VRING_CALL, queue))
        except BlockingIOError:
            seen = 0
        if words:
            self.compare(seen, wanted, words)

    def sleep(self, seconds):
        time.sleep(seconds)


def connected(path, daemon):
    for _ in range(600):
        try:
            return FrontEnd(path)
        except (FileNotFoundError, ConnectionRefusedError):
            # The socket appears a moment before the daemon listens on it.
            if daemon.poll() is not None:
                break
            time.sleep(0.05)
    return FrontEnd(path)


def main():
    with tempfile.TemporaryDirectory() as directory:
        path, disk = os.path.join(directory, "socket"), os.path.join(directory, "disk.raw")
        with open(disk, "wb") as file:
            file.truncate(SIZE)
            for sector, data in CONTENTS:
                file.seek(512 * sector)
                file.write(bytes.fromhex(data))
        words = [word.replace("@SOCKET", path).replace("@FILE", disk) for word in COMMAND]
        try:
            daemon = subprocess.Popen([DAEMON, *words])
        except OSError as error:
            print(f"{DAEMON} does not run: {error}")
            return 2
        try:
            front_end = connected(path, daemon)
            for step, *values in STEPS:
                getattr(front_end, step)(*values)
        except OSError as error:
            print(f"not reproduced: {error}")
            return 1
        finally:
            daemon.kill()
            daemon.wait()
    print(f"reproduced: {SEEN}" if front_end.good else "not reproduced")
    return 0 if front_end.good else 1


if __name__ == "__main__":
    sys.exit(main())
