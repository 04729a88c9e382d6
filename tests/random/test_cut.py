"""Scripts are cut to the operations that a finding needs, within the limits for cutting."""

from __future__ import annotations

from harness.random.cut import cut
from harness.random.operations import Collect, GetId, Plug, Read, Resize, Send, Write

PLUG = Plug(capacity=2048)
NEEDED = [Resize(capacity=64), Send(asks=(Write(sector=5, count=1),)), Collect(count=1)]
OTHERS = [Resize(capacity=8 * number) for number in range(20, 40)]


def test_all_is_left_out_that_is_not_needed():
    script = [PLUG, *OTHERS[:7], NEEDED[0], *OTHERS[7:9], NEEDED[1], *OTHERS[9:], NEEDED[2]]

    def finds(shorter):
        assert shorter[0] == PLUG
        return [operation for operation in shorter if operation in NEEDED] == NEEDED

    assert cut(script, finds) == (PLUG, *NEEDED)


def test_requests_are_left_out_of_what_is_sent_together_but_one():
    asks = (Read(sector=0, count=1), GetId(), Write(sector=5, count=1), GetId())
    script = [PLUG, Send(asks=asks), Send(asks=asks[:2])]

    def finds(shorter):
        sends = [operation for operation in shorter if isinstance(operation, Send)]
        return len(sends) == 2 and asks[2] in sends[0].asks

    first, second = cut(script, finds)[1:]

    assert first == Send(asks=(asks[2],))
    assert len(second.asks) == 1


def test_two_operations_alike_both_stay_if_both_are_needed():
    script = [PLUG, *OTHERS, *NEEDED, *OTHERS]

    def finds(shorter):
        return len([operation for operation in shorter if operation == OTHERS[3]]) == 2

    assert cut(script, finds) == (PLUG, OTHERS[3], OTHERS[3])


def test_a_script_that_finds_nothing_again_stays_as_it_is():
    script = (PLUG, *OTHERS)

    assert cut(script, lambda shorter: False) == script


def test_no_script_is_played_more_often_than_the_bound_says():
    played = []

    def finds(shorter):
        played.append(shorter)
        return OTHERS[3] in shorter

    script = [PLUG, *OTHERS]
    short = cut(script, finds, replays=2)

    assert len(played) == 2
    assert OTHERS[3] in short
    assert len(short) < len(script)


def test_nothing_is_played_when_the_time_is_up():
    script = (PLUG, *OTHERS)

    assert cut(script, lambda shorter: True, seconds=0) == script
