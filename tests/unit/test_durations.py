"""refork.durations counts steps as a histogram wants them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refork import api
from refork.api import Phase
from refork.durations import STEPS, Durations

TIMES = st.lists(st.floats(min_value=0, max_value=1e6), max_size=30)


@given(TIMES)
def test_every_step_is_in_one_class_and_none_is_lost(times: list[float]) -> None:
    """A duration belongs to the first bound that it does not pass."""
    durations = Durations()
    durations.add([(Phase.ROLLING, seconds) for seconds in times])
    rolling = next(step for step in durations.status() if step.phase is Phase.ROLLING)
    assert sum(rolling.counts) == len(times)
    assert rolling.seconds == pytest.approx(sum(times))
    for position, bound in enumerate(api.STEP_BOUNDS):
        assert sum(rolling.counts[: position + 1]) == sum(seconds <= bound for seconds in times)


def test_every_step_is_there_before_it_has_happened() -> None:
    """Its first one is an increase from nought, and not a new series."""
    status = Durations().status()
    assert [step.phase for step in status] == list(STEPS)
    assert {(sum(step.counts), step.seconds) for step in status} == {(0, 0.0)}


def test_what_is_no_step_is_not_counted() -> None:
    """A rollout can end before it has begun."""
    durations = Durations()
    durations.add([(Phase.STEADY, 1.0)])
    assert durations.status() == Durations().status()
