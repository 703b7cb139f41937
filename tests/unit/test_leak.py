"""Erosion or leak: simulated workers, judged by their samples."""

from __future__ import annotations

import math
from random import Random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refork.api import Growth
from refork.leak import LEAST_GROWTH, MOST_SAMPLES, History, Sample

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 1024 * 1024


def grown(private: Callable[[float], float], *, seconds: float = 600, every: float = 5) -> History:
    """A worker whose private memory is ``private(seconds since its fork)``."""
    growth = History()
    for step in range(int(seconds / every) + 1):
        growth.add(Sample(step * every, int(private(step * every))))
    return growth


def noise(seed: int = 1, *, size: float = 0.3 * MIB) -> Callable[[], float]:
    """An allocator that breathes."""
    random = Random(seed)
    return lambda: random.uniform(-size, size)


def test_a_worker_that_grows_on_and_on_leaks() -> None:
    """100 KiB a second, for ten minutes."""
    breath = noise()
    assert grown(lambda t: 0.1 * MIB * t + breath()).verdict() is Growth.LEAK


@pytest.mark.parametrize("time_constant", [10, 30, 60, 120])
def test_growth_that_levels_off_is_erosion(time_constant: float) -> None:
    """A worker has only so many shared pages to write to."""
    breath = noise()
    assert grown(lambda t: 160 * MIB * (1 - math.exp(-t / time_constant)) + breath()).verdict() is Growth.EROSION


def test_a_cache_that_is_filled_once_is_no_leak_however_late() -> None:
    """One step is not a slope."""
    assert grown(lambda t: 200 * MIB if t > 400 else MIB).verdict() is Growth.EROSION


def test_a_worker_that_keeps_its_size_is_steady() -> None:
    """Nothing to tell apart."""
    breath = noise()
    assert grown(lambda _: 20 * MIB + breath()).verdict() is Growth.STEADY


def test_a_cache_that_churns_is_no_leak() -> None:
    """What is given back is not lost."""
    assert grown(lambda t: 50 * MIB + 40 * MIB * math.sin(t / 20)).verdict() is not Growth.LEAK


def test_a_leak_behind_erosion_is_found() -> None:
    """The one levels off, the other goes on."""
    breath = noise()
    leak = grown(lambda t: 20 * MIB * (1 - math.exp(-t / 20)) + 0.2 * MIB * t + breath())
    assert leak.verdict() is Growth.LEAK


def test_a_young_worker_is_not_judged() -> None:
    """Half a minute of growth may be anything."""
    assert grown(lambda t: MIB * t, seconds=30).verdict() is Growth.UNKNOWN


def test_samples_stay_few_and_keep_the_verdict() -> None:
    """A week of samples needs no more memory than ten minutes of them."""
    growth = grown(lambda t: 0.01 * MIB * t, seconds=7 * 24 * 3600, every=60)
    assert len(growth.samples) <= MOST_SAMPLES
    assert growth.samples[0].time == 0
    assert growth.verdict() is Growth.LEAK


@given(st.lists(st.integers(0, LEAST_GROWTH - 1), max_size=200))
def test_what_never_grew_by_a_worthwhile_amount_is_never_a_leak(sizes: list[int]) -> None:
    """Whatever the shape."""
    growth = History()
    for index, size in enumerate(sizes):
        growth.add(Sample(index * 10.0, size))
    assert growth.verdict() in {Growth.UNKNOWN, Growth.STEADY}
