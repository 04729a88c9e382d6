"""The state machines that hypothesis runs: legal operations in any order, and hostile ones."""

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
    """One example: a disk, and operations on it until hypothesis has had enough."""

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
        """The first start."""
        self._play(data.draw(draw.starts(self.example.shape)))

    @precondition(lambda self: draw.can_send(self.example.session))
    @rule(data=st.data())
    def send(self, data: Any) -> None:
        """Some requests."""
        self._play(data.draw(draw.sends(self.example.session, self.example.shape)))

    @precondition(lambda self: draw.can_send(self.example.session))
    @rule(data=st.data())
    def send_and_collect(self, data: Any) -> None:
        """Some requests, and all that are in flight then."""
        self._play(data.draw(draw.sends(self.example.session, self.example.shape)))
        self._play(Collect(count=len(self.example.session.sent)))

    @precondition(lambda self: self.example.session.sent)
    @rule(data=st.data())
    def collect(self, data: Any) -> None:
        """Some of those in flight."""
        self._play(Collect(count=data.draw(st.integers(1, len(self.example.session.sent)))))

    @precondition(lambda self: self.example.session.lanes)
    @rule(data=st.data())
    def change(self, data: Any) -> None:
        """A resize, a cache mode, interrupts on or off, or a queue's reset."""
        self._play(*data.draw(draw.others(self.example.session, self.example.shape)))

    @rule()
    def read_config(self) -> None:
        """The configuration space."""
        self._play(ReadConfig())

    @rule(data=st.data())
    def start_again(self, data: Any) -> None:
        """Another negotiation, whatever is in flight."""
        self._play(*self._collect_first, data.draw(draw.starts(self.example.shape)))

    def teardown(self) -> None:
        """The end of the example."""
        self.example.end()


class HostileMachine(RuleBasedStateMachine):
    """One example of a driver that keeps to no rule, though it starts as it should."""

    def __init__(self, example: Example[HostileSession]) -> None:
        super().__init__()
        self.example = example

    def _start(self, data: Any) -> None:
        start = data.draw(draw.starts(self.example.shape))
        self.example.play(replace(start, vectors=None))

    @initialize(data=st.data())
    def begin(self, data: Any) -> None:
        """The first start."""
        self._start(data)

    @rule(data=st.data())
    def mischief(self, data: Any) -> None:
        """Something that no driver does."""
        shape = self.example.shape
        self.example.play(data.draw(draw_hostile.mischief(self.example.session, shape)))

    @rule(data=st.data(), often=st.integers(0, 7))
    def more(self, data: Any, often: int) -> None:
        """The same, and now and then another start."""
        if often == 7:
            self._start(data)
        else:
            self.mischief(data)

    def teardown(self) -> None:
        """The end of the example."""
        self.example.end()
