"""A trial: a worker is promoted to be looked at, and nothing else changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from refork import decisions, facts
from refork.api import Outcome, Phase, Refusal, RolloutKind, Trigger
from refork.policy import Policy
from refork.population import Stage
from tests.unit.world import Behaviour, World

if TYPE_CHECKING:
    from refork.decisions import Decision

POLICY = Policy(canary_seconds=1.0, spawn_timeout=5.0, promote_timeout=5.0, graceful_timeout=3.0, schedule=(100,))
FINDINGS = ("a thread is running",)


class TrialWorld(World):
    """A world whose workers know what a trial is."""

    def _promote(self, worker: int, generation: int, behaviour: Behaviour) -> None:
        decision = self.decided[-1]
        assert isinstance(decision, decisions.PromoteWorker)
        if not decision.trial:
            super()._promote(worker, generation, behaviour)
        elif behaviour is Behaviour.OBEY:
            self.soon(facts.Tried(worker, FINDINGS))
            self.soon(facts.WorkerGone(worker, "exited", clean=True), moments=2)
        elif behaviour is Behaviour.CRASH:
            self.soon(facts.WorkerGone(worker, "crashed"))

    def trial(self, slot: int | None = None, **requests: int) -> None:
        """Ask for a trial as a person would."""
        self.tell(facts.TrialRequested(Trigger.COMMAND, {int(w[1:]): n for w, n in requests.items()}, slot))


def booted(behave: object = None) -> TrialWorld:
    """A world in which all is well, until then."""
    world = TrialWorld(POLICY, 3)
    world.settle()
    if behave is not None:
        world.behave = behave  # type: ignore[assignment]
    world.watch_capacity()
    return world


def misbehaving(kind: type, behaviour: Behaviour) -> object:
    """Misbehave in this way for the first such decision."""
    pending = [True]

    def behave(decision: Decision) -> Behaviour:
        if pending[0] and isinstance(decision, kind):
            pending[0] = False
            return behaviour
        return Behaviour.OBEY

    return behave


def test_a_trial_tells_what_it_found_and_rolls_nothing() -> None:
    """Surge, drain, done: the same mold, the same generation, the other workers the same processes."""
    world = booted()
    before = set(world.machine.population.workers)
    world.trial()
    world.settle()
    (rollout,) = world.outcomes
    assert (rollout.kind, rollout.outcome, rollout.findings) == (RolloutKind.TRIAL, Outcome.SUCCEEDED, FINDINGS)
    assert [phase for phase, _ in rollout.steps] == [Phase.SURGE, Phase.DRAINING]
    assert set(world.machine.population.molds) == {0}
    assert world.machine.current == 0
    assert len(before & set(world.machine.population.workers)) == 2
    assert world.lowest_ready == 3


def test_the_warmest_worker_or_the_named_one_is_tried() -> None:
    """As in a refork."""
    world = booted()
    world.trial(w0=5, w1=9)
    assert world.machine.rollout is not None
    assert world.machine.rollout.promoted == 1
    world.settle()
    world.trial(slot=2)
    assert world.machine.rollout.slot == 2


@pytest.mark.parametrize(
    ("kind", "behaviour"),
    [
        (decisions.PromoteWorker, Behaviour.CRASH),
        (decisions.PromoteWorker, Behaviour.HANG),
        (decisions.ForkWorker, Behaviour.CRASH),
        (decisions.ForkWorker, Behaviour.HANG),
        (decisions.ForkWorker, Behaviour.REFUSE),
    ],
)
def test_a_trial_that_fails_costs_nothing_but_the_worker(kind: type, behaviour: Behaviour) -> None:
    """Every slot is filled again from the mold that was always there."""
    world = booted(misbehaving(kind, behaviour))
    world.trial()
    world.settle()
    (rollout,) = world.outcomes
    assert (rollout.kind, rollout.outcome) == (RolloutKind.TRIAL, Outcome.FAILED)
    assert set(world.machine.population.molds) == {0}
    assert world.lowest_ready == 3


def test_a_trial_that_fails_does_not_delay_the_next_refork() -> None:
    """Only reforks that fail make the server wait before it tries by itself again."""
    world = booted(misbehaving(decisions.PromoteWorker, Behaviour.CRASH))
    world.trial()
    world.settle()
    worker = min(world.machine.population.workers)
    world.tell(facts.RequestsCounted({worker: 100}))
    assert world.machine.rollout is not None
    assert world.machine.rollout.kind is RolloutKind.REFORK


def test_a_trial_does_not_take_a_number_of_a_generation() -> None:
    """The refork after it is to the next one."""
    world = booted()
    world.trial()
    world.settle()
    world.refork()
    world.settle()
    assert world.outcomes[-1].generation == 1
    assert world.machine.current == 1


def test_a_trial_is_refused_while_something_is_under_way() -> None:
    """One thing at a time."""
    world = booted()
    world.refork()
    with pytest.raises(Refusal, match="under way"):
        world.trial()


def test_the_mold_may_die_during_a_trial() -> None:
    """The worker on trial is ended, and a new mold is loaded."""
    world = booted(misbehaving(decisions.PromoteWorker, Behaviour.HANG))
    world.trial()
    world.run(1.0, until=lambda: world.machine.phase is Phase.DRAINING)
    world.tell(facts.MoldGone(0, "killed"))
    world.settle()
    assert world.outcomes[0].outcome is Outcome.FAILED
    assert {w.stage for w in world.machine.population.workers.values()} == {Stage.READY}


def test_a_stop_ends_a_trial() -> None:
    """Nothing is left behind."""
    world = booted()
    world.trial()
    world.tell(facts.StopRequested(graceful=True))
    world.run(60.0)
    assert world.halted is not None
    assert world.outcomes[0].outcome is Outcome.FAILED
