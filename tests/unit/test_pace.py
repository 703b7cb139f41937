"""refork.pace keeps the cost of looking below its rate, whatever looking costs and whoever asks."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refork.pace import CREDIT, SHARE, SHORTEST, Pace

COSTS = st.lists(st.floats(min_value=0.0001, max_value=0.2), min_size=1, max_size=40)


def play(pace: Pace, costs: list[float], *, seconds: float, asking_every: float = 0.0) -> list[tuple[float, int]]:
    """Let time pass: process ``n`` costs ``costs[n]`` to look at. Returns who was looked at when."""
    now, looks, next_question = 0.0, [], 0.0
    while now < seconds:
        if asking_every and now >= next_question:
            pace.ask(now)
            next_question = now + asking_every
        pid, idle = pace.choose(range(len(costs)), now=now)
        if pid is None:
            now += max(idle, 1e-6) if not asking_every else min(max(idle, 1e-6), asking_every)
            continue
        looks.append((now, pid))
        pace.looked(pid, cost=costs[pid], now=now)
        now += costs[pid]
    return looks


@given(COSTS, st.sampled_from([0.0, 0.05, 3.0]))
@settings(max_examples=60, deadline=None)
def test_looking_never_costs_more_than_its_share(costs: list[float], asking_every: float) -> None:
    """However long looking takes, and however often somebody asks: above the rate are one look and a credit."""
    pace = Pace(0.0)
    seconds = 300.0
    play(pace, costs, seconds=seconds, asking_every=asking_every)
    assert pace.spent <= SHARE * seconds + max(costs) + CREDIT


@given(COSTS)
@settings(max_examples=60, deadline=None)
def test_everybody_is_looked_at_in_turn(costs: list[float]) -> None:
    """Nobody is seen twice before everybody has been seen once."""
    looks = [pid for _, pid in play(Pace(0.0), costs, seconds=200.0)]
    for rounds in itertools.batched(looks, len(costs)):
        assert len(set(rounds)) == len(rounds)


def test_cheap_looks_are_made_no_more_often_than_anybody_needs() -> None:
    """A small server is not looked at all the time only because it costs little."""
    pace = Pace(0.0)
    looks = play(pace, [0.0001] * 3, seconds=10.5 * SHORTEST)
    assert len(looks) == 3 * 11
    assert pace.interval() == SHORTEST


def test_dear_looks_are_made_as_often_as_the_budget_has_it() -> None:
    """64 workers of 200 MiB take most of a second of looking for each minute."""
    pace = Pace(0.0)
    looks = play(pace, [0.004] * 64, seconds=640.0)
    assert pace.interval() == pytest.approx(64.0)
    assert len(looks) == pytest.approx(640, rel=0.02)
    assert pace.cpu_share(640.0) == pytest.approx(SHARE, rel=0.02)


def test_what_cannot_wait_is_looked_at_at_once_and_paid_for_later() -> None:
    """A worker has its first state only once, whatever is owed; the regular looks wait the longer."""
    pace = Pace(0.0)
    pace.looked(1, cost=0.1, now=0.0)
    pace.need(2)
    assert pace.choose([1, 2], now=0.0) == (2, 0.0)
    pace.looked(2, cost=0.1, now=0.0)
    pid, idle = pace.choose([1, 2], now=0.0)
    assert pid is None
    assert idle == pytest.approx(0.2 / SHARE)


def test_who_is_needed_and_has_gone_is_not_waited_for() -> None:
    """A process that ends before its turn holds nothing up."""
    pace = Pace(0.0)
    pace.need(7)
    assert pace.choose([1], now=0.0) == (1, 0.0)
    pace.forget(7)
    pace.looked(1, cost=0.0, now=0.0)
    assert pace.choose([1], now=0.0) == (None, SHORTEST)


def test_a_question_brings_the_next_looks_forward_within_the_credit() -> None:
    """Who asks need not wait for the regular look, as long as not too much is owed."""
    pace = Pace(0.0)
    for pid in (1, 2):
        pace.looked(pid, cost=0.001, now=0.0)
    assert pace.choose([1, 2], now=0.1)[0] is None
    pace.ask(0.1)
    assert pace.choose([1, 2], now=0.1) == (1, 0.0)
    pace.looked(1, cost=CREDIT, now=0.1)
    pid, idle = pace.choose([1, 2], now=0.1)
    assert pid is None
    assert 0 < idle < SHORTEST


def test_everybody_was_seen_when_the_last_one_was() -> None:
    """What is needed of all is there when none is missing."""
    pace = Pace(0.0)
    pace.looked(1, cost=0.0, now=5.0)
    assert not pace.seen_since([1, 2], then=5.0)
    pace.looked(2, cost=0.0, now=6.0)
    assert pace.seen_since([1, 2], then=5.0)
    assert pace.oldest() == 5.0


def test_nobody_is_no_work() -> None:
    """Without processes there is nothing to do, and nothing to divide by."""
    pace = Pace(3.0)
    assert pace.choose([], now=3.0) == (None, SHORTEST)
    assert pace.cpu_share(3.0) == 0.0
    assert pace.oldest() == 3.0


def test_the_share_is_that_of_the_last_minutes() -> None:
    """A burst at boot does not colour the figure for ever."""
    pace = Pace(0.0)
    pace.looked(1, cost=3.0, now=0.0)
    for second in range(1, 1000):
        pace.looked(1, cost=0.001, now=float(second))
    assert pace.cpu_share(1000.0) == pytest.approx(0.001, rel=0.1)
