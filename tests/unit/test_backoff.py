"""How long to wait after failures."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from refork.backoff import Backoff


def fail(backoff: Backoff, times: int) -> float:
    """Fail so often, each time as soon as the next attempt is due; the instant of the last."""
    now = 0.0
    for _ in range(times):
        now += backoff.wait()
        backoff.failed(now)
    return now


def test_the_wait_doubles_with_each_failure_up_to_its_bound() -> None:
    """And there is none before the first."""
    backoff = Backoff(first=0.5, longest=3.0)
    waits = [backoff.wait()]
    now = 0.0
    for _ in range(5):
        backoff.failed(now)
        waits.append(backoff.wait())
        now += waits[-1]
    assert waits == [0.0, 0.5, 1.0, 2.0, 3.0, 3.0]


def test_a_success_ends_the_row() -> None:
    """The next failure is a first one."""
    backoff = Backoff(first=0.5, longest=30.0)
    now = fail(backoff, 4)
    backoff.succeeded()
    assert not backoff.holds(now)
    backoff.failed(now)
    assert backoff.wait() == 0.5


def test_what_has_lived_for_longer_than_the_wait_is_the_first_of_a_new_row() -> None:
    """What is ended from outside had not failed to begin."""
    backoff = Backoff(first=0.5, longest=30.0)
    now = fail(backoff, 4) + 100
    backoff.failed(now, lived=100.0)
    assert backoff.wait() == 0.5


@given(failures=st.integers(0, 10_000), longest=st.floats(0.1, 1e6))
def test_no_wait_is_longer_than_both_bounds(failures: int, longest: float) -> None:
    """However many failures there were."""
    backoff = Backoff(first=0.5, longest=30.0, failures=failures)
    assert 0 <= backoff.wait(longest=longest) <= min(longest, 30.0)
