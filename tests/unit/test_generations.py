"""The state machine: what it decides, told as stories and as properties that hold in every story."""

from __future__ import annotations

import contextlib
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refork import decisions, facts
from refork.api import Outcome, Phase, Refusal, RolloutKind, Trigger
from refork.convergence import BREATH
from refork.generations import COOLDOWN, LONGEST_OUTAGE
from refork.policy import Policy
from refork.population import Stage
from refork.workers import WORKER_BOOT_ERROR
from tests.unit.world import Behaviour, World, obey

if TYPE_CHECKING:
    from collections.abc import Callable

    from refork.decisions import Decision

POLICY = Policy(canary_seconds=1.0, spawn_timeout=5.0, promote_timeout=5.0, graceful_timeout=3.0)


def booted(*, wanted: int = 4, policy: Policy = POLICY) -> World:
    """A world in which all is well."""
    world = World(policy, wanted)
    world.settle()
    return world


def only(kind: type, behaviour: Behaviour, *, where: Callable[[Decision], bool] = lambda _: True) -> Callable:
    """Misbehave in this way for the first such decision, and obey afterwards."""
    pending = [True]

    def behave(decision: Decision) -> Behaviour:
        if pending[0] and isinstance(decision, kind) and where(decision):
            pending[0] = False
            return behaviour
        return Behaviour.OBEY

    return behave


def always(kind: type, behaviour: Behaviour, *, where: Callable[[Decision], bool] = lambda _: True) -> Callable:
    """Misbehave in this way every time."""
    return lambda decision: behaviour if isinstance(decision, kind) and where(decision) else Behaviour.OBEY


def test_booting_executes_one_mold_and_forks_a_worker_for_each_slot() -> None:
    """Generation 0 is loaded once."""
    world = booted(wanted=3)
    assert world.decided == [decisions.ExecMold(0), *(decisions.ForkWorker(slot, slot, 0) for slot in range(3))]


def test_a_refork_goes_through_its_phases_in_order() -> None:
    """The steps of a rollout are those of the design."""
    world = booted()
    world.refork()
    world.settle()
    (rollout,) = world.outcomes
    assert rollout.outcome is Outcome.SUCCEEDED
    assert [phase for phase, _ in rollout.steps] == [
        Phase.SURGE,
        Phase.DRAINING,
        Phase.SEALING,
        Phase.CANARY,
        Phase.ROLLING,
        Phase.RETIRING,
    ]
    assert {worker.generation for worker in world.machine.population.workers.values()} == {1}
    assert set(world.machine.population.molds) == {1}


def test_the_worker_with_the_most_requests_is_promoted() -> None:
    """The warmest worker is the one to keep."""
    world = booted()
    world.tell(facts.ReforkRequested(Trigger.COMMAND, {0: 5, 1: 9, 2: 7}))
    assert world.machine.rollout is not None
    assert world.machine.rollout.promoted == 1


def test_the_named_slot_is_promoted() -> None:
    """Whoever names a slot gets it."""
    world = booted()
    world.refork(slot=3)
    assert world.machine.rollout is not None
    assert world.machine.rollout.slot == 3


def test_capacity_never_falls_below_the_wanted_number_in_a_refork_or_rebase() -> None:
    """A spare comes before the drain, a replacement before the one it replaces."""
    world = booted()
    world.watch_capacity()
    world.refork()
    world.settle()
    world.tell(facts.RebaseRequested(Trigger.COMMAND))
    world.settle()
    assert world.lowest_ready == 4
    assert [rollout.kind for rollout in world.outcomes] == [RolloutKind.REFORK, RolloutKind.REBASE]


def test_a_rollout_takes_a_breath_between_two_replacements() -> None:
    """Forks and first writes take processor time that requests would wait for: they are spread out."""
    world = booted(wanted=6)
    forked: list[float] = []

    def note(decision: Decision) -> Behaviour:
        rolling = world.machine.phase is Phase.ROLLING
        if rolling and isinstance(decision, decisions.ForkWorker):
            forked.append(world.now)
        return Behaviour.OBEY

    world.behave = note
    world.refork()
    world.settle()
    assert len(forked) == 5
    assert min(later - earlier for earlier, later in pairwise(forked)) >= BREATH


def test_max_unavailable_lets_a_slot_go_without_a_worker_for_a_moment() -> None:
    """Who allows it saves the memory of the overlap."""
    world = booted(policy=Policy(canary_seconds=0, max_unavailable=1))
    world.watch_capacity()
    world.refork()
    world.settle()
    assert world.lowest_ready == 3


@pytest.mark.parametrize(
    ("kind", "behaviour"),
    [
        (decisions.PromoteWorker, Behaviour.CRASH),
        (decisions.PromoteWorker, Behaviour.HANG),
        (decisions.PromoteWorker, Behaviour.REFUSE),
        (decisions.ForkWorker, Behaviour.CRASH),
        (decisions.ForkWorker, Behaviour.REFUSE),
        (decisions.ForkWorker, Behaviour.HANG),
    ],
)
def test_a_refork_that_fails_leaves_the_old_generation_serving(kind: type, behaviour: Behaviour) -> None:
    """Whatever breaks, no slot is empty and the reason is told."""
    world = booted()
    world.watch_capacity()
    world.behave = only(kind, behaviour)
    world.refork()
    world.settle()
    (rollout,) = world.outcomes
    assert rollout.outcome is Outcome.FAILED
    assert rollout.reason
    assert world.lowest_ready == 4
    assert {worker.generation for worker in world.machine.population.workers.values()} == {0}


def test_a_new_generation_whose_first_worker_cannot_boot_is_dropped() -> None:
    """The canary dies, not the service."""
    world = booted()
    world.watch_capacity()
    world.behave = always(decisions.ForkWorker, Behaviour.CRASH, where=lambda d: d.generation == 1)
    world.refork()
    world.settle()
    assert world.outcomes[0].outcome is Outcome.FAILED
    assert set(world.machine.population.molds) == {0}
    assert world.lowest_ready == 4


def test_a_canary_that_ends_badly_while_it_is_watched_brings_the_old_generation_back() -> None:
    """A generation has to serve before it is trusted."""
    world = booted(policy=Policy(canary_seconds=10))
    world.refork()
    world.run(1)
    assert world.machine.rollout is not None
    assert world.machine.rollout.phase is Phase.CANARY
    world.tell(facts.WorkerGone(world.machine.rollout.canary or 0, "killed by SIGSEGV"))
    world.settle()
    assert world.outcomes[0].outcome is Outcome.FAILED
    assert {worker.generation for worker in world.machine.population.workers.values()} == {0}


def test_a_mold_that_dies_while_rolling_brings_the_old_generation_back() -> None:
    """The old mold is kept until the new generation has all slots."""
    world = booted(policy=Policy(canary_seconds=0.5))
    world.refork()
    world.run(60, until=lambda: world.machine.phase is Phase.ROLLING)
    world.tell(facts.MoldGone(1, "killed by SIGKILL"))
    world.settle()
    assert world.outcomes[0].outcome is Outcome.FAILED
    assert {worker.generation for worker in world.machine.population.workers.values()} == {0}


def test_a_lost_mold_is_replaced_by_a_cold_one_and_serving_workers_are_left_alone() -> None:
    """A mold's death costs no worker."""
    world = booted()
    before = set(world.machine.population.workers)
    world.tell(facts.MoldGone(0, "killed by SIGKILL"))
    world.settle()
    assert set(world.machine.population.molds) == {1}
    assert set(world.machine.population.workers) == before


def test_a_mold_that_does_not_answer_is_killed_and_replaced() -> None:
    """No word from a forked worker means that the mold hangs."""
    world = booted()
    silent = only(decisions.ForkWorker, Behaviour.HANG)
    world.tell(facts.WorkerGone(0, "killed by SIGKILL"))
    del silent
    forked = max(world.machine.population.workers)
    world.machine.population.workers[forked].stage = Stage.FORKING
    world._coming.clear()
    world.settle()
    assert decisions.KillMold(0) in world.decided
    assert set(world.machine.population.molds) == {1}


def test_a_crashed_worker_is_forked_anew_from_the_warm_mold() -> None:
    """No import, no doubled memory."""
    world = booted()
    world.tell(facts.WorkerGone(2, "killed by SIGKILL"))
    world.settle()
    assert world.decided[-1] == decisions.ForkWorker(4, 2, 0)


def count(world: World, requests: int) -> None:
    """Every worker has answered so many."""
    world.tell(facts.RequestsCounted(dict.fromkeys(world.machine.population.workers, requests)))


def test_the_schedule_of_request_counts_has_one_entry_a_generation() -> None:
    """The first entry counts for the generation that was loaded, the next for the one after, and then no more."""
    world = booted(policy=Policy(canary_seconds=0, schedule=(10, 50)))
    for served, expected in ((9, 0), (10, 1), (49, 1), (50, 2), (10_000, 2)):
        count(world, served)
        world.settle()
        assert world.machine.current == expected


def test_an_automatic_refork_that_failed_is_not_tried_again_at_once() -> None:
    """It backs off; a person may still ask."""
    world = booted(policy=Policy(canary_seconds=0, schedule=(10,)))
    world.behave = always(decisions.PromoteWorker, Behaviour.REFUSE)
    for _ in range(20):
        count(world, 10)
        world.run(1)
    assert len(world.outcomes) == 1
    world.refork()
    world.settle()
    assert len(world.outcomes) == 2


def test_one_that_a_person_asked_for_and_that_failed_too_puts_off_the_next_automatic_one() -> None:
    """It was an attempt like any other: what it found is as new as it gets."""
    world = booted(policy=Policy(canary_seconds=0, schedule=(10,)))
    world.behave = always(decisions.PromoteWorker, Behaviour.REFUSE)
    count(world, 10)
    world.run(COOLDOWN / 2)
    world.refork()
    world.run(1)
    assert len(world.outcomes) == 2
    world.run(COOLDOWN)
    count(world, 10)
    world.run(1)
    assert len(world.outcomes) == 2
    world.run(COOLDOWN)
    count(world, 10)
    world.run(1)
    assert len(world.outcomes) == 3


def test_past_the_generation_limit_a_refork_is_a_rebase() -> None:
    """Sealed garbage is not carried on for ever."""
    world = booted(policy=Policy(canary_seconds=0, max_generations=2))
    for _ in range(4):
        world.refork()
        world.settle()
    assert [rollout.kind for rollout in world.outcomes] == [
        RolloutKind.REFORK,
        RolloutKind.REFORK,
        RolloutKind.REBASE,
        RolloutKind.REFORK,
    ]


def test_a_reload_in_the_middle_of_a_refork_waits_for_its_end() -> None:
    """HUP is never lost."""
    world = booted()
    world.refork()
    world.tell(facts.RebaseRequested(Trigger.RELOAD))
    world.settle()
    assert [rollout.kind for rollout in world.outcomes] == [RolloutKind.REFORK, RolloutKind.REBASE]


def test_a_rebase_whose_application_does_not_load_keeps_the_old_one_serving() -> None:
    """Broken code goes nowhere."""
    world = booted()
    world.watch_capacity()
    world.behave = only(decisions.ExecMold, Behaviour.CRASH)
    world.tell(facts.RebaseRequested(Trigger.RELOAD))
    world.settle()
    assert world.outcomes[0].outcome is Outcome.FAILED
    assert world.lowest_ready == 4
    assert set(world.machine.population.molds) == {0}


def test_a_second_refork_is_refused_while_one_is_under_way() -> None:
    """One at a time, and the answer says which."""
    world = booted()
    world.refork()
    with pytest.raises(Refusal, match="refork to generation 1 is under way"):
        world.refork()


def test_slots_that_do_not_exist_are_refused() -> None:
    """The answer names those that do."""
    world = booted()
    with pytest.raises(Refusal, match="slots are 0 to 3"):
        world.refork(slot=4)


def test_an_application_that_cannot_boot_halts_the_server_with_its_reason() -> None:
    """There is nothing to serve with."""
    world = World(POLICY, 4, behave=always(decisions.ExecMold, Behaviour.CRASH))
    world.run(60)
    assert world.halted == decisions.Halt("crashed", 1)


def test_a_worker_that_cannot_boot_halts_a_server_that_never_served() -> None:
    """As gunicorn does, with gunicorn's status."""
    world = World(POLICY, 4, behave=always(decisions.ForkWorker, Behaviour.CRASH))
    world.run(60)
    assert world.halted is not None
    assert world.halted.exit_code == WORKER_BOOT_ERROR


@pytest.mark.parametrize("seconds", [0.0, 0.015, 0.5, 1.05, 1.2])
@pytest.mark.parametrize("graceful", [True, False])
def test_a_stop_in_the_middle_of_a_refork_ends_everything(seconds: float, *, graceful: bool) -> None:
    """TERM wins over whatever is under way."""
    world = booted()
    world.refork()
    world.run(seconds)
    world.tell(facts.StopRequested(graceful=graceful))
    world.run(60)
    assert world.halted == decisions.Halt("", 0)


def test_more_and_fewer_workers() -> None:
    """TTIN and TTOU, also in the middle of a refork."""
    world = booted()
    world.tell(facts.Resized(6))
    world.settle()
    world.refork(slot=5)
    world.tell(facts.Resized(2))
    world.settle()
    assert {worker.slot for worker in world.machine.population.workers.values()} == {0, 1}


def counted(world: World, *, canary: tuple[int, int], others: tuple[int, int]) -> facts.RequestsCounted:
    """What the workers have answered: (requests, errors) of the canary, and of each other worker."""
    rollout = world.machine.rollout
    assert rollout is not None
    answers = {worker: canary if worker == rollout.canary else others for worker in world.machine.population.workers}
    return facts.RequestsCounted(
        {worker: requests for worker, (requests, _) in answers.items()},
        {worker: errors for worker, (_, errors) in answers.items()},
    )


@pytest.mark.parametrize(
    ("canary", "others", "outcome"),
    [
        ((100, 0), (1000, 0), Outcome.SUCCEEDED),
        ((100, 2), (1000, 0), Outcome.SUCCEEDED),
        ((100, 50), (1000, 0), Outcome.FAILED),
        ((5, 5), (1000, 0), Outcome.FAILED),
        ((100, 50), (1000, 500), Outcome.SUCCEEDED),
        ((100, 90), (1000, 500), Outcome.FAILED),
    ],
)
def test_a_canary_whose_errors_are_clearly_more_is_dropped(
    canary: tuple[int, int], others: tuple[int, int], outcome: Outcome
) -> None:
    """Errors are compared with those of the old generation, not with none."""
    world = booted(policy=Policy(canary_seconds=5))
    world.refork()
    world.run(2)
    world.tell(counted(world, canary=canary, others=others))
    world.settle()
    assert world.outcomes[0].outcome is outcome
    assert (world.machine.current == 1) == (outcome is Outcome.SUCCEEDED)


def test_an_overdue_worker_is_replaced_before_it_is_drained() -> None:
    """A lifetime or a memory limit costs no capacity, and no import."""
    world = booted()
    world.watch_capacity()
    world.tell(facts.WorkerOverdue(2))
    world.settle()
    assert world.lowest_ready == 4
    assert world.decided[-2:] == [decisions.ForkWorker(4, 2, 0), decisions.DrainWorker(2)]


def test_overdue_workers_are_replaced_a_few_at_a_time() -> None:
    """All at once would double the memory."""
    world = booted(policy=Policy(surge=1))
    for worker in range(4):
        world.tell(facts.WorkerOverdue(worker))
        booting = [w for w in world.machine.population.workers.values() if w.booting]
        assert len(booting) == 1
    world.settle()
    assert set(world.machine.population.workers) == {4, 5, 6, 7}


def test_a_leaking_worker_is_not_promoted() -> None:
    """The next warmest is; with nobody else the request is refused."""
    world = booted(wanted=2)
    world.tell(facts.LeaksFound(frozenset({1})))
    with pytest.raises(Refusal, match="leaks memory"):
        world.refork(slot=1)
    world.tell(facts.ReforkRequested(Trigger.COMMAND, {0: 1, 1: 9}))
    assert world.machine.rollout is not None
    assert world.machine.rollout.promoted == 0


def test_a_refork_that_would_take_the_mold_beyond_the_bound_is_a_rebase() -> None:
    """What is sealed and forgotten adds up from one generation to the next, at the pace it had so far."""
    world = booted(policy=Policy(canary_seconds=0, max_growth=0.5))
    for size in (100, 120, 140):
        world.refork()
        world.settle()
        world.tell(facts.MoldMeasured(world.machine.current, size))
    world.refork()
    world.settle()
    assert [rollout.kind for rollout in world.outcomes] == [*[RolloutKind.REFORK] * 3, RolloutKind.REBASE]


def test_a_server_whose_workers_all_fail_in_a_row_ends_with_a_reason() -> None:
    """A supervisor above can only act on an end that it sees."""
    world = booted(wanted=2)
    world.behave = lambda decision: (
        Behaviour.CRASH if isinstance(decision, (decisions.ForkWorker, decisions.ExecMold)) else Behaviour.OBEY
    )
    for worker in list(world.machine.population.workers):
        world.tell(facts.WorkerGone(worker, "killed"))
    world.run(600)
    assert world.halted is not None
    assert world.halted.exit_code == WORKER_BOOT_ERROR
    assert "in a row" in world.halted.reason


def test_however_often_molds_are_killed_a_killed_worker_is_replaced_soon() -> None:
    """A mold that has lived had not failed to boot: the waits before new ones do not add up."""
    world = booted(wanted=2)
    for _ in range(12):
        world.run(1)
        world.tell(facts.MoldGone(world.machine.current, "killed"))
        world.run(2, until=world.settled)
    for worker in list(world.machine.population.workers):
        world.tell(facts.WorkerGone(worker, "killed"))
    world.run(1, until=world.settled)
    assert world.settled()


def test_a_mold_that_ends_as_soon_as_it_is_ready_is_executed_less_and_less_often() -> None:
    """It would take the processor from the workers that serve."""
    world = booted(wanted=2)
    executed: list[float] = []

    def end_at_once(decision: Decision) -> Behaviour:
        if isinstance(decision, decisions.ExecMold):
            executed.append(world.now)
            world.soon(facts.MoldGone(decision.generation, "crashed"), moments=2)
        return Behaviour.OBEY

    world.behave = end_at_once
    world.tell(facts.MoldGone(0, "killed"))
    world.run(120)
    waits = [round(later - earlier) for earlier, later in pairwise(executed)]
    assert waits[0] < 2
    assert waits == sorted(waits)
    assert waits[-1] > 20


def test_while_nobody_serves_the_next_attempt_is_never_far() -> None:
    """Considerateness is for those who serve."""
    world = booted(wanted=2)
    attempts: list[float] = []

    def fail(decision: Decision) -> Behaviour:
        if isinstance(decision, decisions.ForkWorker):
            attempts.append(world.now)
            return Behaviour.CRASH
        return Behaviour.OBEY

    world.behave = fail
    for worker in list(world.machine.population.workers):
        world.tell(facts.WorkerGone(worker, "killed"))
    world.run(600)
    assert world.halted is not None
    assert max(later - earlier for earlier, later in pairwise(attempts)) < LONGEST_OUTAGE + 1


def test_workers_that_fail_at_one_time_are_one_attempt() -> None:
    """A machine that is short of memory for a moment does not use up all attempts of many slots at once."""
    world = booted(wanted=30)
    world.behave = always(decisions.ForkWorker, Behaviour.REFUSE)
    for worker in list(world.machine.population.workers):
        world.tell(facts.WorkerGone(worker, "killed"))
    world.run(5)
    assert world.halted is None
    world.behave = obey
    world.settle()


# --- properties -------------------------------------------------------------------------------------------------------

FAULTS = st.lists(
    st.tuples(st.integers(0, 60), st.sampled_from([Behaviour.CRASH, Behaviour.HANG, Behaviour.REFUSE])), max_size=12
)
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("wait"), st.floats(0.01, 8)),
        st.tuples(st.just("refork"), st.none()),
        st.tuples(st.just("rebase"), st.sampled_from([Trigger.COMMAND, Trigger.RELOAD])),
        st.tuples(st.just("resize"), st.integers(0, 6)),
        st.tuples(st.just("kill worker"), st.integers(0, 20)),
        st.tuples(st.just("kill mold"), st.integers(0, 3)),
    ),
    max_size=25,
)


def act(world: World, name: str, argument: object) -> None:
    """Do one thing to the world."""
    workers, molds = world.machine.population.workers, world.machine.population.molds
    match name, argument:
        case "wait", float(seconds):
            world.run(seconds)
        case "refork", _:
            world.refork()
        case "rebase", Trigger() as trigger:
            world.tell(facts.RebaseRequested(trigger))
        case "resize", int(wanted):
            world.tell(facts.Resized(wanted))
        case "kill worker", int(number) if workers:
            world.tell(facts.WorkerGone(sorted(workers)[number % len(workers)], "killed"))
        case "kill mold", int(number) if molds:
            world.tell(facts.MoldGone(sorted(molds)[number % len(molds)], "killed"))


@settings(max_examples=150, deadline=None)
@given(faults=FAULTS, actions=ACTIONS, wanted=st.integers(1, 5), surge=st.integers(1, 3), unavailable=st.integers(0, 2))
def test_whatever_happens_the_server_comes_back_to_one_mold_and_all_its_workers(
    faults: list[tuple[int, Behaviour]],
    actions: list[tuple[str, object]],
    wanted: int,
    surge: int,
    unavailable: int,
) -> None:
    """Once faults stop, every slot has a worker, there is one mold, and no rollout is left hanging."""
    world = booted(
        wanted=wanted,
        policy=Policy(
            surge=surge,
            max_unavailable=unavailable,
            canary_seconds=1,
            spawn_timeout=5,
            promote_timeout=5,
            graceful_timeout=3,
        ),
    )
    plan = dict(faults)
    start = len(world.decided)
    world.behave = lambda _decision: plan.get(len(world.decided) - 1 - start, Behaviour.OBEY)
    for name, argument in actions:
        with contextlib.suppress(Refusal):
            act(world, name, argument)
        if world.halted is not None:
            assert "boots in a row" in world.halted.reason
            return
    world.behave = obey
    world.settle()
    began = sum(isinstance(d, decisions.Advanced) and not d.rollout.steps for d in world.decided)
    assert len(world.outcomes) == began
    assert all(rollout.outcome is Outcome.SUCCEEDED or rollout.reason for rollout in world.outcomes)


@settings(max_examples=80, deadline=None)
@given(actions=ACTIONS, wanted=st.integers(1, 5), surge=st.integers(1, 3))
def test_without_faults_capacity_never_falls_below_what_is_wanted(
    actions: list[tuple[str, object]], wanted: int, surge: int
) -> None:
    """Reforks, rebases and reloads in any order take no slot out of service."""
    world = booted(wanted=wanted, policy=Policy(surge=surge, canary_seconds=1))
    world.watch_capacity()
    for name, argument in actions:
        if name.startswith("kill") or name == "resize":
            continue
        with contextlib.suppress(Refusal):
            act(world, name, argument)
    world.settle()
    assert world.lowest_ready == wanted


@settings(max_examples=60, deadline=None)
@given(actions=ACTIONS, faults=FAULTS, graceful=st.booleans())
def test_a_stop_always_comes_to_an_end(
    actions: list[tuple[str, object]], faults: list[tuple[int, Behaviour]], *, graceful: bool
) -> None:
    """Whatever hangs is killed in time."""
    world = booted(wanted=3, policy=POLICY)
    plan = dict(faults)
    start = len(world.decided)
    world.behave = lambda _decision: plan.get(len(world.decided) - 1 - start, Behaviour.OBEY)
    for name, argument in actions:
        with contextlib.suppress(Refusal):
            act(world, name, argument)
    world.tell(facts.StopRequested(graceful=graceful))
    world.run(120)
    assert world.halted is not None
