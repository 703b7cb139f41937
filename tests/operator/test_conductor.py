"""Reforks that go wrong half-way: whatever happens, a pod is not left as if one were under way for ever."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from unittest.mock import AsyncMock, Mock

import pytest

from refork import api, decide
from refork_operator import state as states
from refork_operator.cluster import ClusterError
from refork_operator.conductor import Conductor, Surroundings
from refork_operator.logs import Log
from refork_operator.names import STATE, Trouble
from refork_operator.plan import Verdict
from refork_operator.podclient import Endpoint, PodClient, PodError
from refork_operator.pods import Pod, Workload
from refork_operator.reforks import Outcome, Reforks, Result
from refork_operator.samples import Observation
from refork_operator.tasks import Tasks
from refork_operator.watched import Watched
from tests.fakes.pods import FakePods

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MIB = 1 << 20
POD = Pod("shop", "web-0", "uid", 0.0, Workload("Deployment", "shop", "web"))
SEEN = Observation(
    sample=decide.Sample(at=1.0, gain=100 * MIB, pss=500 * MIB),
    server=7.0, generation=0, last="", saved=0, busy="", sampled_age=0.0,
)  # fmt: skip
INTENT = states.Intent(id="a", at=1.0, server=7.0, promised=100 * MIB, pss=500 * MIB)
GO = Verdict(start=True, reason="ThresholdPassed", message="above")


class Desk:
    """A conductor among people who write down what they are told."""

    def __init__(self, *results: Result | Exception) -> None:
        self.carry_out = AsyncMock(side_effect=results)
        self.writer = Mock(annotate=AsyncMock(), annotate_or_fail=AsyncMock())
        self.may_act = Mock(return_value=True)
        self.ended = Mock()
        inbox = Mock(**{"of_pod.return_value": None, "of_workload.return_value": None})
        store = Mock(**{"policy_of.return_value": None, "owners": {}, "pods": {POD.key: POD}})
        self.tasks = Tasks(Log())
        self.conductor = Conductor(
            Surroundings(
                store=store, inbox=inbox, publisher=Mock(), writer=self.writer, events=Mock(), metrics=Mock(),
                log=Log(), tasks=self.tasks, reforks=Mock(carry_out=self.carry_out), may_act=self.may_act,
                ended=self.ended, dry_run=False,
            )
        )  # fmt: skip
        self.watched = Watched(pod=POD, state=states.PodState(unpaid=2), observation=SEEN)

    async def settle(self) -> None:
        """Wait until nothing is under way."""
        while self.watched.work is not None:
            await asyncio.wait({self.watched.work})

    @property
    def written(self) -> states.PodState:
        """What the pod's annotation says in the end."""
        return states.read_pod({STATE: self.writer.annotate.call_args[0][1][STATE]})


def test_an_accident_in_a_refork_is_made_up_for_with_the_next_answer() -> None:
    """The intent stands, and is taken up again under the same id."""

    async def story() -> None:
        desk = Desk(RuntimeError("nobody thought of this"), Result(Outcome.SUCCEEDED, "generation 1", realised=1))
        desk.conductor.begin(desk.watched, GO, None)
        await desk.settle()
        assert desk.watched.reforking
        desk.conductor.resume(desk.watched)
        await desk.settle()
        assert not desk.watched.engaged
        first, second = (call.args[1].id for call in desk.carry_out.call_args_list)
        assert first == second

    asyncio.run(story())


def test_what_was_not_commanded_in_time_is_commanded_when_we_may_act_again() -> None:
    """A Lease that was late for a moment leaves nobody behind."""

    async def story() -> None:
        desk = Desk(Result(Outcome.SUCCEEDED, "generation 1", realised=1))
        desk.may_act.return_value = False
        desk.conductor.begin(desk.watched, GO, None)
        await desk.settle()
        desk.conductor.resume(desk.watched)
        assert desk.watched.work is None
        desk.may_act.return_value = True
        desk.conductor.resume(desk.watched)
        await desk.settle()
        assert desk.carry_out.call_count == 1
        assert not desk.watched.engaged

    asyncio.run(story())


def test_a_resumed_refork_that_is_postponed_forgets_no_lesson() -> None:
    """How often it did not pay outlives an intent that comes to nothing."""

    async def story() -> None:
        desk = Desk(Result(Outcome.POSTPONED, "a rollout is under way", retry_after=5.0))
        desk.watched.state = states.begun(desk.watched.state, INTENT)
        desk.conductor.resume(desk.watched)
        await desk.settle()
        assert not desk.watched.reforking
        assert desk.written.unpaid == 2

    asyncio.run(story())


def test_a_pod_is_left_alone_until_its_outcome_is_written_down() -> None:
    """Else the next intent could be overwritten by the last outcome."""

    async def story() -> None:
        desk = Desk(Result(Outcome.SUCCEEDED, "generation 1", realised=1))
        engaged: list[tuple[bool, bool]] = []

        async def look(*_: object) -> None:
            engaged.append((desk.watched.reforking, desk.watched.engaged))

        desk.writer.annotate.side_effect = look
        desk.conductor.begin(desk.watched, GO, None)
        await desk.settle()
        assert engaged == [(False, True)]
        assert not desk.watched.engaged

    asyncio.run(story())


def test_what_cannot_be_written_down_is_not_begun() -> None:
    """And is tried again a little later."""

    async def story() -> None:
        desk = Desk()
        desk.writer.annotate_or_fail.side_effect = ClusterError(500, "no")
        desk.conductor.begin(desk.watched, GO, None)
        await desk.settle()
        assert not desk.watched.engaged
        assert "not written down" in desk.watched.held_for
        assert not desk.carry_out.called

    asyncio.run(story())


# --- telling a pod ----------------------------------------------------------------------------------------------------


class Told:
    """A pod as its client shows it."""

    def __init__(self, *statuses: Observation | PodError, commands: tuple[str | PodError, ...] = ("op",)) -> None:
        self.status = AsyncMock(side_effect=statuses)
        self.refork = AsyncMock(side_effect=commands)
        self.operation = AsyncMock(return_value=Mock(outcome=api.Outcome.SUCCEEDED, generation=1))


def carried_out(told: Any) -> Result:
    """Carry a refork out, in no time."""
    reforks = Reforks(told, endpoint=AsyncMock(), patience=5.0, settle=0.01)
    return asyncio.run(reforks.carry_out(lambda: POD, INTENT, reason="above"))


def test_the_gain_of_another_server_is_not_taken_for_ours() -> None:
    """A server that was restarted just now has little memory, and no refork has won that."""
    after = replace(SEEN, sample=decide.Sample(at=2.0, gain=0, pss=200 * MIB), sampled_age=0.0)
    assert carried_out(Told(replace(after, server=8.0))).realised is None
    assert carried_out(Told(after)).realised == 300 * MIB


def test_a_command_that_is_refused_for_its_token_is_sent_again() -> None:
    """Tokens are rotated; the Secret is read anew meanwhile."""
    told = Told(SEEN, commands=(PodError(Trouble.UNAUTHORIZED, "401"), "op"))  # type: ignore[arg-type]
    assert carried_out(told).outcome is Outcome.SUCCEEDED


@pytest.fixture
def pods() -> Iterator[FakePods]:
    """Pods that answer."""
    made = FakePods().start()
    yield made
    made.stop()


def asked(fake: FakePods, ask: Callable[[PodClient, Endpoint], Any], **facts: Any) -> Any:
    """Ask a pod something."""

    async def story() -> Any:
        client = PodClient(seconds=5.0, limit=1 << 20)
        try:
            return await ask(client, Endpoint(fake.add(0, **facts).address, fake.port, token="wrong"))
        finally:
            await client.close()

    return asyncio.run(story())


def test_a_token_that_opens_nothing_is_no_final_answer(pods: FakePods) -> None:
    """It is trouble that can pass, and not the server's decision."""
    with pytest.raises(PodError) as error:
        asked(pods, lambda client, at: client.refork(at, request_id="a", reason="b"), token="right")
    assert error.value.trouble is Trouble.UNAUTHORIZED
