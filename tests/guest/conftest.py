"""Agents that end with their test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from agent_thread import Guest
from fake_driver import make_driver

from harness.driver.interface import Driver
from harness.guest.client import Agent


@pytest.fixture
def new_guest() -> Iterator[Callable[..., Guest]]:
    with ExitStack() as stack:

        def make(attach: Callable[[str, str, float], Driver] = make_driver) -> Guest:
            guest = Guest(attach)
            stack.callback(guest.join)
            return guest

        yield make


@pytest.fixture
def guest(new_guest: Callable[..., Guest]) -> Guest:
    return new_guest()


@pytest.fixture
def agent(guest: Guest) -> Agent:
    return Agent(guest.stream)
