"""State machines for hypothesis: legal operations in any order, and hostile ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from harness.random import draw, draw_hostile
from harness.random.hostile import HostileSession
from harness.random.hunt import Example
from harness.random.operations import Collect, Operation, ReadConfig
from harness.random.session import Session


class LegalMachine(RuleBasedStateMachine):
    """One example: a disk, and the operations on it that hypothesis chooses."""

    def __init__(self, example: Example[Session]) -> None:
        super().__init__()
        self.example = example

    def _play(self, *operations: Operation) -> None:
        for operation in operations:
            self.example.play(operation)

    @property
    def _collect_first(self) -> tuple[Operation, ...]:
        sent = self.example.session.sent
        late = not self.example.shape.resets_in_flight and sent
        return (Collect(count=len(sent)),) if late else ()

    @initialize(data=st.data())
    def begin(self, data: Any) -> None:
        """Start the device for the first time."""
        self._play(data.draw(draw.starts(self.example.shape)))

    @precondition(lambda self: draw.can_send(self.example.session))
    @rule(data=st.data())
    def send(self, data: Any) -> None:
        """Send some requests."""
        self._play(data.draw(draw.sends(self.example.session, self.example.shape)))

    @precondition(lambda self: draw.can_send(self.example.session))
    @rule(data=st.data())
    def send_and_collect(self, data: Any) -> None:
        """Send some requests, and collect all that are in flight."""
        self._play(data.draw(draw.sends(self.example.session, self.example.shape)))
        self._play(Collect(count=len(self.example.session.sent)))

    @precondition(lambda self: draw.can_send(self.example.session))
    @rule(data=st.data())
    def burst(self, data: Any) -> None:
        """Send many small requests one by one, and collect all that are in flight."""
        if operation := data.draw(draw.bursts(self.example.session)):
            self._play(operation)

    @precondition(lambda self: self.example.session.sent)
    @rule(data=st.data())
    def collect(self, data: Any) -> None:
        """Collect some requests in flight."""
        self._play(Collect(count=data.draw(st.integers(1, len(self.example.session.sent)))))

    @precondition(lambda self: self.example.session.lanes)
    @rule(data=st.data())
    def change(self, data: Any) -> None:
        """Change the capacity, the cache mode or interrupts, or reset a queue."""
        self._play(*data.draw(draw.others(self.example.session, self.example.shape)))

    @rule()
    def read_config(self) -> None:
        """Read the configuration space."""
        self._play(ReadConfig())

    @rule(data=st.data())
    def start_again(self, data: Any) -> None:
        """Start the device again with another negotiation, with or without requests in flight."""
        self._play(*self._collect_first, data.draw(draw.starts(self.example.shape)))

    def teardown(self) -> None:
        """End the example."""
        self.example.end()


class HostileMachine(RuleBasedStateMachine):
    """One example of a driver that follows no rule, except that it starts correctly."""

    def __init__(self, example: Example[HostileSession]) -> None:
        super().__init__()
        self.example = example

    def _start(self, data: Any) -> None:
        start = data.draw(draw.starts(self.example.shape))
        self.example.play(replace(start, vectors=None))

    @initialize(data=st.data())
    def begin(self, data: Any) -> None:
        """Start the device for the first time."""
        self._start(data)

    @rule(data=st.data())
    def mischief(self, data: Any) -> None:
        """Do something that no driver may do."""
        shape = self.example.shape
        self.example.play(data.draw(draw_hostile.mischief(self.example.session, shape)))

    @rule(data=st.data(), often=st.integers(0, 7))
    def more(self, data: Any, often: int) -> None:
        """Do the same, or sometimes start the device again."""
        if often == 7:
            self._start(data)
        else:
            self.mischief(data)

    def teardown(self) -> None:
        """End the example."""
        self.example.end()
