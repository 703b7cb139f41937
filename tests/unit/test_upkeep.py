"""Samples in, facts for the state machine out."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from refork import api
from refork.facts import LeaksFound, MoldMeasured, WorkerOverdue
from refork.upkeep import Limits, MoldFacts, Upkeep, WorkerFacts

MIB = 1024 * 1024


def memory(uss: int, *, rss: int = 0) -> api.Memory:
    """A sample with this much private memory."""
    return api.Memory(rss=rss or uss, pss=uss, uss=uss, shared=0, private_dirty=uss)


def test_a_worker_past_its_age_is_overdue() -> None:
    """And the others are not."""
    workers = [WorkerFacts(1, 99, None, 0), WorkerFacts(2, 101, None, 0)]
    assert Upkeep().look(Limits(age=100), workers, []) == [WorkerOverdue(2), LeaksFound(frozenset())]


def test_a_worker_with_more_private_memory_than_allowed_is_overdue() -> None:
    """What it shares does not count."""
    workers = [WorkerFacts(1, 0, memory(10 * MIB, rss=900 * MIB), 0), WorkerFacts(2, 0, memory(31 * MIB), 0)]
    facts = Upkeep().look(Limits(memory=30 * MIB), workers, [])
    assert facts == [WorkerOverdue(2), LeaksFound(frozenset())]


def test_a_worker_that_leaks_is_named() -> None:
    """From its own samples, however the others do."""
    upkeep = Upkeep()
    facts = []
    for second in range(0, 600, 10):
        workers = [
            WorkerFacts(1, second, memory(second * MIB), second),
            WorkerFacts(2, second, memory(20 * MIB), second),
        ]
        facts = upkeep.look(Limits(), workers, [])
    assert facts == [LeaksFound(frozenset({1}))]
    assert upkeep.growth(1) is api.Growth.LEAK
    assert upkeep.growth(2) is api.Growth.STEADY
    assert upkeep.growth(3) is api.Growth.UNKNOWN


def test_a_worker_that_is_gone_is_forgotten() -> None:
    """Its number never comes again, so nothing may be kept for it."""
    upkeep = Upkeep()
    upkeep.look(Limits(), [WorkerFacts(1, 0, memory(MIB), 0)], [])
    upkeep.look(Limits(), [], [])
    assert upkeep._histories == {}


def test_molds_are_measured_by_what_they_hold() -> None:
    """A mold without a sample is not measured yet."""
    molds = [MoldFacts(3, memory(MIB, rss=80 * MIB)), MoldFacts(4, None)]
    assert MoldMeasured(3, 80 * MIB) in Upkeep().look(Limits(), [], molds)


@pytest.mark.parametrize(
    ("setting", "container", "expected"),
    [("0", 1000 * MIB, math.inf), ("30M", None, 30 * MIB), ("20%", 1000 * MIB, 200 * MIB), ("20%", None, math.inf)],
)
def test_the_limit_is_an_amount_or_a_share_of_the_containers(
    setting: str, container: int | None, expected: float
) -> None:
    """Where the container has no limit, a share of it is none either."""
    cfg = SimpleNamespace(max_worker_age=0.0, max_worker_memory=setting)
    assert Limits.of(cfg, container=container) == Limits(age=math.inf, memory=expected)
