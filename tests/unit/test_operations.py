"""What commands have led to: told once, kept for a while, never without bound."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refork import api
from refork.operations import Operations


class Doer:
    """Carries out commands, and counts."""

    def __init__(self) -> None:
        self.done = 0

    def __call__(self, command: api.Command) -> api.Accepted:
        self.done += 1
        return api.Accepted(str(self.done), "begun")


def rollout(number: int, *, outcome: api.Outcome | None = None) -> api.RolloutStatus:
    """Make up a rollout."""
    return api.RolloutStatus(
        id=str(number),
        kind=api.RolloutKind.REFORK,
        trigger=api.Trigger.COMMAND,
        generation=number,
        phase=api.Phase.STEADY,
        started_at=1000.0,
        seconds=1.0,
        outcome=outcome,
    )


def test_the_same_request_id_is_the_same_operation() -> None:
    """A command that is sent again, because its answer got lost, is not carried out again: however soon or late."""
    operations, act = Operations(), Doer()
    command = api.ReforkCommand(slot=3, reason="deploy", request_id="a-1")
    first = operations.once(command, act, refusal="", now=0.0, interval=10.0)
    again = api.ReforkCommand(slot=3, reason="deploy, once more", request_id="a-1")
    for now in (0.1, 100.0):
        assert operations.once(again, act, refusal="a refork is under way", now=now, interval=10.0) == first
    assert act.done == 1


@pytest.mark.parametrize(
    "other", [api.ReforkCommand(slot=4, request_id="a-1"), api.RebaseCommand(request_id="a-1")], ids=["slot", "kind"]
)
def test_a_request_id_belongs_to_one_command(other: api.Command) -> None:
    """Two commands by one id are a mistake of who sends them, and neither may pass for the other."""
    operations, act = Operations(), Doer()
    operations.once(api.ReforkCommand(slot=3, request_id="a-1"), act, refusal="", now=0.0, interval=0.0)
    with pytest.raises(api.Refusal, match="the request_id a-1 was given to another command before") as caught:
        operations.once(other, act, refusal="", now=1.0, interval=0.0)
    assert (caught.value.status, act.done) == (409, 1)


def test_a_refused_command_may_come_again_by_its_id() -> None:
    """What was never carried out is not remembered: try again later means what it says."""
    operations, act = Operations(), Doer()
    command = api.ReforkCommand(request_id="a-1")
    with pytest.raises(api.Refusal, match="still booting"):
        operations.once(command, act, refusal="the server is still booting", now=0.0, interval=10.0)
    assert operations.once(command, act, refusal="", now=0.1, interval=10.0).operation == "1"


def test_commands_of_a_kind_keep_their_distance() -> None:
    """Sooner than the interval is 429 with the seconds to wait; another kind of command may come."""
    operations, act = Operations(), Doer()
    operations.once(api.ReforkCommand(), act, refusal="", now=100.0, interval=5.0)
    with pytest.raises(api.Refusal, match=r"2\.0 s ago, and 5 s must lie between") as caught:
        operations.once(api.ReforkCommand(), act, refusal="", now=102.0, interval=5.0)
    assert (caught.value.status, caught.value.retry_after) == (429, 3.0)
    operations.once(api.WorkersCommand(count=3), act, refusal="", now=102.0, interval=5.0)
    operations.once(api.ReforkCommand(), act, refusal="", now=105.0, interval=5.0)
    assert act.done == 3


def test_an_operation_that_has_ended_can_be_looked_up() -> None:
    """Also when others have ended since, with the reason it was asked for."""
    operations, act = Operations(), Doer()
    operations.once(api.ReforkCommand(reason="deploy", request_id="a-1"), act, refusal="", now=0.0, interval=0.0)
    for number in range(1, 5):
        operations.ended(rollout(number, outcome=api.Outcome.SUCCEEDED))
    found = operations.look("1", now=9.0)
    assert found is not None
    assert (found.outcome, found.asked, found.request_id) == (api.Outcome.SUCCEEDED, "deploy", "a-1")
    assert operations.look("5", now=9.0) is None


@given(st.lists(st.integers(min_value=0, max_value=300), max_size=400))
def test_memory_is_bounded(numbers: list[int]) -> None:
    """However many commands and rollouts there are, the oldest are forgotten and the newest are not."""
    operations, act = Operations(kept=10, commands_kept=20), Doer()
    for now, number in enumerate(numbers):
        command = api.RebaseCommand(request_id=f"r-{number}")
        operations.once(command, act, refusal="", now=float(now), interval=0.0)
        operations.ended(rollout(number, outcome=api.Outcome.FAILED))
        assert operations.look(str(number), now=0.0) is not None
    assert len(operations._ended) <= 10
    assert len(operations._asked) <= 10
    assert len(operations._commands) <= 20


def begun(operations: Operations, count: int, *, now: float = 0.0) -> str:
    """Begin a resize and return its id."""
    command = api.WorkersCommand(count=count, reason="peak")
    phase = api.Phase.STEADY
    return operations.begin_resize(command, generation=1, phase=phase, now=now, started_at=1000.0).id


def test_a_resize_ends_when_there_are_so_many() -> None:
    """Until then it is under way."""
    operations = Operations()
    identity = begun(operations, 5)
    operations.resized(5, arrived=False, now=1.0)
    under_way = operations.look(identity, now=2.0)
    operations.resized(5, arrived=True, now=3.0)
    ended = operations.look(identity, now=9.0)
    assert under_way is not None
    assert ended is not None
    assert (under_way.outcome, under_way.seconds) == (None, 2.0)
    assert (ended.outcome, ended.seconds, ended.asked) == (api.Outcome.SUCCEEDED, 3.0, "peak")


def test_a_resize_is_overtaken_by_the_next_number() -> None:
    """By a command for the same number too, and by a signal; the older operation has failed and says why."""
    operations = Operations()
    first, second = begun(operations, 5), begun(operations, 5)
    operations.resized(6, arrived=True, now=1.0)
    overtaken, other = operations.look(first, now=2.0), operations.look(second, now=2.0)
    assert overtaken is not None
    assert other is not None
    assert (overtaken.outcome, overtaken.reason) == (api.Outcome.FAILED, f"overtaken by {second}")
    assert (other.outcome, other.reason) == (api.Outcome.FAILED, "6 workers are wanted since")
