"""The agent and its client: calls, errors, interrupts, and bad lines."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from agent_thread import Guest, PairStream
from fake_driver import FakeDriver

from harness.driver.errors import (
    DeviceTimeoutError,
    DriverError,
    NoDeviceError,
)
from harness.driver.interface import Buffer, ConfigChange, Driver, Request
from harness.guest import link
from harness.guest.client import Agent, AgentError, AgentLostError, payload
from harness.guest.wire import MAGIC, PROTOCOL, Frame, Kind, Parser

DEADLINE = 60.0  # seconds

DAMAGED = 4
"""Most pieces that are damaged for one frame, so that its deadline is long enough."""


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set deadlines and probe intervals to tenths of a second."""
    monkeypatch.setattr(link, "MARGIN", 0.5)
    monkeypatch.setattr(link, "FIRST_PROBE", 0.1)


@pytest.fixture
def driver(agent: Agent) -> Driver:
    return agent.attach("fake", "0000:00:04.0", timeout=3.5)


@pytest.fixture
def local(guest: Guest, driver: Driver) -> FakeDriver:
    """Return the driver at the agent's end."""
    found = guest.drivers[-1]
    assert isinstance(found, FakeDriver)
    return found


class AFewTimes:
    """A change of the bytes that happens a few times and then stops."""

    def __init__(self, change: Callable[[bytes], bytes], times: int) -> None:
        self._change = change
        self.left = times

    def __call__(self, data: bytes) -> bytes:
        if self.left == 0:
            return data
        self.left -= 1
        return self._change(data)


# --- calls


def test_hello_describes_the_guest(agent: Agent) -> None:
    hello = agent.hello()
    assert hello["protocol"] == PROTOCOL
    assert hello["kernel"] == os.uname().release
    assert hello["python"] == sys.version.split()[0]
    assert hello["memory"]["MemTotal"] == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_memory_is_in_bytes(agent: Agent) -> None:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert agent.memory()["MemTotal"] == total
    assert 0 < agent.memory()["MemAvailable"] < total


def test_attach_passes_its_arguments_on(driver: Driver) -> None:
    assert driver.description() == {"attached": ("fake", "0000:00:04.0", 3.5)}


def test_a_call_takes_and_gives_plain_values(driver: Driver, local: FakeDriver) -> None:
    request = Request(type=1, sector=7, data=b"\0\xff", readable=(16, 2))

    completion = driver.request(request, timeout=4.0)

    assert local.calls == [(request, 0, 4.0)]
    assert (completion.data, completion.used_len, completion.damage) == (b"\0\xff", 1, ("guard",))


def test_a_mebibyte_goes_there_and_back(driver: Driver, guest: Guest) -> None:
    data = random.Random(1).randbytes(1 << 20)
    driver.memory_write(0, data)
    assert driver.memory_read(0, len(data)) == data
    assert max(map(len, guest.stream.sent)) < 40_000


def test_every_method_of_a_driver_is_there(driver: Driver) -> None:
    assert type(driver).__abstractmethods__ == frozenset()
    for name in Driver.__abstractmethods__:
        assert getattr(type(driver), name).__doc__ == getattr(Driver, name).__doc__ or name == (
            "close"
        )


def test_wrong_arguments_do_not_leave_the_host(driver: Driver, guest: Guest) -> None:
    before = len(guest.stream.sent)
    with pytest.raises(TypeError, match="lenght"):
        driver.memory_read(0, 4, lenght=4)  # type: ignore[call-arg]
    assert len(guest.stream.sent) == before


def test_a_connection_is_served_until_it_ends(agent: Agent, guest: Guest) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    agent.listen(port)
    for _ in range(2):
        connected = Agent(PairStream(socket.create_connection(("127.0.0.1", port), DEADLINE)))
        driver = connected.attach("fake", "0000:00:05.0")
        assert driver.description()["attached"][1] == "0000:00:05.0"
        local = guest.drivers[-1]
        assert isinstance(local, FakeDriver)
        assert not local.closed
        connected.close()
        agent.ping()
        assert local.closed


def test_two_drivers_are_two(agent: Agent) -> None:
    first, second = agent.attach("fake", "1"), agent.attach("fake", "2")
    first.memory_write(0, b"one")
    second.memory_write(0, b"two")
    assert (first.memory_read(0, 3), second.memory_read(0, 3)) == (b"one", b"two")


# --- errors


def test_a_driver_error_crosses_with_its_class_and_state(driver: Driver) -> None:
    with pytest.raises(DeviceTimeoutError) as caught:
        driver.reset()
    assert caught.value.message == "status stays 4"
    assert caught.value.state == {"status": 4, "queues": [1, 2]}
    assert driver.memory_read(0, 1) == b"\0"


def test_a_device_that_is_not_there(new_guest: Callable[..., Guest]) -> None:
    def attach(kind: str, address: str, timeout: float) -> Driver:
        raise NoDeviceError(f"nothing at {address}", {"odd": object})

    with pytest.raises(NoDeviceError, match="nothing at 5") as caught:
        Agent(new_guest(attach).stream).attach("pci", "5")
    assert caught.value.state == {"odd": repr(object)}


def test_any_other_exception_crosses_with_its_traceback(driver: Driver) -> None:
    with pytest.raises(
        AgentError, match="status failed in the guest: ZeroDivisionError: a bug"
    ) as e:
        driver.status()
    assert "fake_driver.py" in e.value.details
    assert not isinstance(e.value, AgentLostError)
    assert driver.memory_read(0, 1) == b"\0"


def test_only_the_interface_can_be_called(agent: Agent, driver: Driver) -> None:
    with pytest.raises(AgentError, match="no method service"):
        agent.call(1, "service", (), {}, 1.0)
    with pytest.raises(AgentError, match="KeyError: 'eval'"):
        agent.call(None, "eval", ("1",), {}, 1.0)


# --- closing


def test_close_detaches_once(driver: Driver, local: FakeDriver, guest: Guest) -> None:
    driver.close()
    sent = len(guest.stream.sent)
    driver.close()
    assert (local.closed, len(guest.stream.sent)) == (1, sent)
    with pytest.raises(DriverError, match="closed"):
        driver.status()


def test_the_end_of_the_stream_detaches_everything(
    guest: Guest, agent: Agent, driver: Driver, local: FakeDriver
) -> None:
    agent.attach("fake", "another")
    agent.close()
    guest.join()
    assert [fake.closed for fake in guest.drivers if isinstance(fake, FakeDriver)] == [1, 1]
    with pytest.raises(AgentLostError, match="closed"):
        agent.hello()


# --- interrupts


def test_callbacks_run_while_no_call_is_made(driver: Driver, local: FakeDriver) -> None:
    local.interrupt()
    local.interrupt()
    deadline = time.monotonic() + DEADLINE
    while len(local.changes) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert driver.config_changes() == [ConfigChange(8, 0), ConfigChange(8, 1)]


def test_an_interrupt_that_cannot_be_serviced_is_reported(
    agent: Agent, driver: Driver, local: FakeDriver
) -> None:
    local.serviced_badly = True
    local.interrupt()
    deadline = time.monotonic() + DEADLINE
    with pytest.raises(AgentError, match="ISR is gone"):
        while time.monotonic() < deadline:  # the interrupt may come after a few calls
            driver.config_changes()
    assert agent.hello()["protocol"] == PROTOCOL
    driver.close()


# --- a bad line


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("direction", ["to_agent", "from_agent"])
@pytest.mark.parametrize(
    "change",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data[1:],
        lambda data: data[:30] + data[33:],
        lambda data: data[:30] + b"\0" + data[31:],
        lambda data: b"[ 12.3] random: crng init done\r\n" + MAGIC + b"\xff" * 9 + data + b"\xf5",
        lambda data: data + data,
    ],
    ids=["lost", "cut short", "no magic", "bytes lost", "damaged", "noise", "twice"],
)
def test_a_bad_line_costs_time_only(
    driver: Driver,
    local: FakeDriver,
    guest: Guest,
    change: Callable[[bytes], bytes],
    direction: str,
) -> None:
    setattr(guest.stream, direction, bad := AFewTimes(change, times=3))
    requests = [Request(type=1, sector=sector, data=b"%d" % sector) for sector in range(8)]

    completions = [driver.request(request) for request in requests]

    assert bad.left == 0
    assert [call[0] for call in local.calls] == requests, "each is to be executed once"
    assert [completion.data for completion in completions] == [r.data for r in requests]


def test_long_messages_survive_a_bad_line(
    driver: Driver, guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "FIRST_PROBE", 0.05)
    dice = random.Random(2)
    damaged: Counter[bytes] = Counter()
    sequence = b""

    def sometimes(data: bytes) -> bytes:
        at = dice.randrange(len(data))
        # The number of pieces depends on the moment. Any damage may be the last one of a frame.
        if dice.random() < 0.7 or damaged[sequence] == DAMAGED:
            return data
        damaged[sequence] += 1
        return data[:at] + b"\xf5" + data[at + 2 :]

    def to_agent(data: bytes) -> bytes:
        nonlocal sequence
        sequence = data[5:9]
        return sometimes(data)

    guest.stream.to_agent, guest.stream.from_agent = to_agent, sometimes
    data = dice.randbytes(120_000)
    driver.memory_write(0, data)
    assert driver.memory_read(0, len(data)) == data
    assert damaged


def test_a_damaged_call_is_refused_at_once(guest: Guest) -> None:
    call = Frame(Kind.CALL, 1, b'p[null,"memory",[],{}]').encode()
    guest.stream.send(call[:-1] + b"?")
    assert Parser().feed(guest.stream.recv(DEADLINE)) == [Frame(Kind.NAK, 0)]


@pytest.mark.usefixtures("impatient")
def test_a_probe_during_a_long_call_does_not_repeat_it(
    driver: Driver, local: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = local.request

    def slow(*args: Any, **kwargs: Any) -> Any:
        time.sleep(0.4)
        return quick(*args, **kwargs)

    monkeypatch.setattr(local, "request", slow)
    assert driver.request(Request(type=0)).status == 0
    assert driver.request(Request(type=4)).status == 0
    assert [call[0].type for call in local.calls] == [0, 4]


# --- the end of the line, the agent or the machine


@pytest.mark.usefixtures("impatient")
def test_an_answer_that_never_comes(driver: Driver, agent: Agent, guest: Guest) -> None:
    guest.stream.from_agent = lambda data: b""
    with pytest.raises(AgentLostError, match=r"no answer within 0\.7 s to request"):
        driver.request(Request(type=0), timeout=0.2)
    guest.stream.from_agent = bytes
    sent = len(guest.stream.sent)
    with pytest.raises(AgentLostError, match=r"is lost: no answer within 0\.7 s to request"):
        agent.hello()
    assert len(guest.stream.sent) == sent


@pytest.mark.usefixtures("impatient")
def test_an_agent_that_answers_something_else(agent: Agent, guest: Guest) -> None:
    def forge(data: bytes) -> bytes:
        frames = Parser().feed(data)
        return b"".join(Frame(Kind.RESULT, f.sequence, b"p[1,2]").encode() for f in frames)

    guest.stream.from_agent = forge
    with pytest.raises(AgentLostError, match="answer to hello makes no sense"):
        agent.hello()


def test_an_agent_that_dies_during_a_call(
    driver: Driver, guest: Guest, agent: Agent, local: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*args: object, **kwargs: object) -> None:
        guest.far_end.shutdown(socket.SHUT_RDWR)

    monkeypatch.setattr(link, "FIRST_PROBE", DEADLINE)  # to send one fails without details
    monkeypatch.setattr(local, "request", die)
    with pytest.raises(AgentLostError, match="during request: the line was cut") as caught:
        driver.request(Request(type=0))
    assert caught.value.details == "last words"
    with pytest.raises(AgentLostError, match="the line was cut"):
        agent.memory()


class MachineDiedError(Exception):
    pass


@pytest.mark.parametrize("cut", [False, True])
def test_the_machines_own_reason_comes_first(guest: Guest, cut: bool) -> None:
    dead = False

    def check() -> None:
        if dead:
            raise MachineDiedError("QEMU ended with status 134")

    agent = Agent(guest.stream, check)
    driver = agent.attach("fake", "1")

    def die(data: bytes) -> bytes:
        nonlocal dead
        dead = True
        if cut:
            guest.far_end.shutdown(socket.SHUT_RDWR)
        return b""

    guest.stream.to_agent = die
    with pytest.raises(MachineDiedError):
        driver.complete([1], timeout=60.0)
    with pytest.raises(AgentLostError, match="QEMU ended with status 134"):
        driver.queue_add(0, [Buffer(0, 1)])


def test_an_interrupted_call_is_lost(guest: Guest) -> None:
    def check() -> None:
        raise KeyboardInterrupt

    agent = Agent(guest.stream, check)
    with pytest.raises(KeyboardInterrupt):
        agent.hello()
    with pytest.raises(AgentLostError, match="hello was given up: KeyboardInterrupt"):
        agent.hello()


def test_another_protocol_is_refused(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.guest.client.PROTOCOL", PROTOCOL + 1)
    with pytest.raises(AgentError, match=f"protocol {PROTOCOL}, not {PROTOCOL + 1}"):
        agent.hello()


# --- the code that is sent


def test_the_payload_is_always_the_same_and_has_no_host_code() -> None:
    code = payload()
    assert code == payload()
    names = set(zipfile.ZipFile(BytesIO(code)).namelist())
    assert {"harness/__init__.py", "harness/guest/agent.py", "harness/driver/attach.py"} <= names
    assert {name.split("/")[1] for name in names} == {"__init__.py", "virtio", "driver", "guest"}
    assert not names & {"harness/guest/client.py", "harness/guest/link.py"}


def test_the_payload_runs_alone_and_prints_do_not_get_into_the_stream(tmp_path: Path) -> None:
    code = tmp_path / "code.zip"
    code.write_bytes(payload())
    program = (
        f"import sys; sys.path.insert(0, {str(code)!r})\n"
        "from harness.guest import agent\n"
        "import harness.driver.attach, os\n"
        "agent._memory = lambda: os.system('echo stray') and {} or print('stray') or {}\n"
        "agent.main(0, 1)\n"
    )
    here, there = socket.socketpair()
    with there:
        process = subprocess.Popen(
            [sys.executable, "-S", "-E", "-c", program], stdin=there, stdout=there, cwd=tmp_path
        )
    try:
        stream = PairStream(here)
        heard: list[bytes] = []
        stream.from_agent = lambda data: heard.append(data) or data  # type: ignore[func-returns-value]
        agent = Agent(stream)
        assert agent.memory() == {}
        with pytest.raises(DriverError):
            agent.attach("no such bus", "0")
        agent.close()
        assert process.wait(DEADLINE) == 0
        assert b"stray" not in b"".join(heard)
    finally:
        process.kill()
        process.wait()
        here.close()


def test_a_process_that_was_started_is_seen_until_it_is_waited_for() -> None:
    code = (
        "import subprocess, sys; from harness.guest.agent import _has_children as left;"
        "a = left(); p = subprocess.Popen(['true']); b = left(); p.wait(); print(a, b, left())"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)

    assert found.stdout.split() == ["False", "True", "False"]
