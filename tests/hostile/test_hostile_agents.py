"""Agents in a guest that send answers without end, or without sense."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from inner import MEMORY_LIMIT, PEAK, ROOT, wait_for_end

AGENT = """
import sys, zlib
from binascii import b2a_base64
import harness.guest.link
from harness.driver.errors import DriverError
from harness.guest.client import Agent, AgentError
from harness.guest.wire import MAX_PAYLOAD, Frame, Kind, Parser

harness.guest.link.MARGIN = 2.0
harness.guest.client.CALL_TIMEOUT = 1.0

def parts(frame):
    return Frame(Kind.RESULT_PART, frame.sequence, b"p" * MAX_PAYLOAD).encode()

def bomb(frame):
    packed = b"z" + b2a_base64(zlib.compress(bytes(1 << 24), 9), newline=False)
    return Frame(Kind.RESULT, frame.sequence, packed[:MAX_PAYLOAD]).encode()

def nested(frame):
    return Frame(Kind.RESULT, frame.sequence, b"p" + b"[" * (MAX_PAYLOAD - 1)).encode()

def digits(frame):
    return Frame(Kind.RESULT, frame.sequence, b"p" + b"9" * (MAX_PAYLOAD - 1)).encode()

def garbage(frame):
    return b"\\xa5" * 65536

def heads(frame):
    return b"\\xf5VB\\xfa" * 16384

def others(frame):
    return Frame(Kind.RESULT, frame.sequence ^ 1, b"p{}").encode() * 1000

def refusals(frame):
    return Frame(Kind.NAK, frame.sequence).encode() * 10

def long_error(frame):
    words = b'p{"t":["error","' + b"x" * 30000 + b'"]}'
    return Frame(Kind.RESULT, frame.sequence, words).encode()

class Stream:
    def __init__(self, answer):
        self.answer, self.parser, self.frame = answer, Parser(), None

    def send(self, data):
        for frame in self.parser.feed(data):
            self.frame = frame

    def recv(self, timeout):
        return self.answer(self.frame)

    def close(self):
        pass

agent = Agent(Stream(globals()[sys.argv[1]]))
for _ in range(2):
    try:
        agent.ping()
    except (AgentError, DriverError) as error:
        print("error:", str(error)[:300])
"""
KINDS = (
    *("parts", "bomb", "nested", "digits", "garbage", "heads", "others", "refusals"),
    "long_error",
)


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_without_end_or_sense_is_an_error(tmp_path: Path, kind: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PEAK + AGENT, kind],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        wait_for_end(process)
        assert process.stdout
        output = process.stdout.read()

    assert output.count("error:") == 2, output
    assert "Traceback" not in output
    assert process.returncode == 0
    assert int((tmp_path / "peak").read_text()) < MEMORY_LIMIT
