"""Which processes there should be: the state machine of the server, without a server.

Facts go in (a worker is ready, a mold is gone, somebody asked for a refork), decisions come out (fork this, promote
that, drain those). Time is a number passed in; nothing here knows a process, a socket or a clock, so that every
sequence of faults can be played in a test.

Two ideas carry it:

* *Slots converge.* Whatever happened, each slot is filled from the mold of the serving generation. A refork, a rebase,
  the way back from a failed one and the replacement of a crashed worker are all the same convergence towards one
  generation (``refork.convergence``); they only differ in which generation that is.
* *A rollout is a line of phases, each with a deadline and the same way back.* Until a generation's first worker has
  proved itself, nothing of the old generation is let go, so that the way back is to drop what is new.

Generations are numbered without ever going back: a rebase takes the next number too, because a number that comes twice
cannot name anything in a log. How often a heap was sealed since its application was loaded is the difference from
``Mold.loaded``, the generation whose mold loaded it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from refork import decisions, facts
from refork.api import MoldState, Outcome, Phase, Refusal, RolloutKind, Trigger
from refork.backoff import Backoff
from refork.convergence import Aim, Convergence
from refork.garbage import Garbage
from refork.orders import Orders
from refork.population import Mold, Stage, Worker
from refork.rollout import Answers, Rollout
from refork.workers import WORKER_BOOT_ERROR

if TYPE_CHECKING:
    from refork.decisions import Decision
    from refork.facts import Fact
    from refork.policy import Policy
    from refork.population import Population

FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
"""Seconds from a failed boot to the next attempt: the first time, and at most."""

LONGEST_OUTAGE = 2.0
"""The same at most while nobody serves: there is nobody to be considerate of."""

COOLDOWN, LONGEST_COOLDOWN = 60.0, 3600.0
"""Seconds from a failed rollout to the next one that nobody has asked for: the first time, and at most."""

FAILURES_IN_A_ROW = 10
"""So many attempts may fail in a row while nobody serves; then the server ends, for its supervisor to see."""

FAILURES_PER_MOLD = 3
"""So many of its workers in a row may fail to boot before a mold is taken for broken."""


@dataclass(slots=True)
class Generations:
    """All processes the server has, and where they are going."""

    policy: Policy
    wanted: int
    phase: Phase = Phase.BOOTING
    current: int = 0
    rollout: Rollout | None = None
    last_rollout: Rollout | None = None
    barred: str = ""
    _halt: decisions.Halt = field(default_factory=lambda: decisions.Halt("", 0))
    _next_rollout: int = 1
    _rebase_pending: Trigger | None = None
    _served: bool = False
    _boots: Backoff = field(default_factory=lambda: Backoff(FIRST_WAIT, LONGEST_WAIT))
    _rollouts: Backoff = field(default_factory=lambda: Backoff(COOLDOWN, LONGEST_COOLDOWN))
    _garbage: Garbage = field(default_factory=Garbage)
    _convergence: Convergence = field(default_factory=Convergence)
    _orders: Orders = field(init=False)

    def __post_init__(self) -> None:
        self._orders = Orders(self.policy)

    @property
    def population(self) -> Population:
        """Who there is."""
        return self._orders.population

    @property
    def _now(self) -> float:
        return self._orders.now

    def configure(self, policy: Policy) -> None:
        """Go by other settings from here on."""
        self.policy = self._orders.policy = policy

    # --- questions ----------------------------------------------------------------------------------------------------

    def refusal(self, slot: int | None = None) -> str:
        """Why a refork may not start now; empty if it may."""
        if self.phase is Phase.STOPPING:
            return "the server is stopping"
        if self.barred:
            return self.barred
        if self.phase is Phase.BOOTING:
            return "the server is still booting: try again when its workers are ready"
        if self.rollout is not None:
            return f"a {self.rollout.kind} to generation {self.rollout.generation} is under way ({self.rollout.phase})"
        if self.population.ready_mold(self.current) is None:
            return "there is no mold to replace the promoted worker from: one is being loaded, try again shortly"
        if slot is not None and not 0 <= slot < self.wanted:
            return f"there is no slot {slot}: slots are 0 to {self.wanted - 1}"
        return "" if self.population.promotable(slot) else self._not_promotable(slot)

    def _not_promotable(self, slot: int | None) -> str:
        if self.population.leaking(slot):
            return "every worker that could be promoted leaks memory: a leak must not become the mold of all"
        return "no worker is ready" if slot is None else f"the worker in slot {slot} is not ready"

    # --- the one entrance ---------------------------------------------------------------------------------------------

    def start(self, now: float) -> list[Decision]:
        """Begin with generation 0's mold."""
        self._orders.now = now
        self._orders.exec_mold()
        return self._orders.take()

    def handle(self, fact: Fact, now: float) -> list[Decision]:
        """Take in a fact and return what is to be done about it, in order.

        Raises:
            Refusal: a request cannot be met now; nothing has changed.
        """
        self._orders.now = now
        match fact:
            case facts.MoldReady():
                self._mold_ready(fact)
            case facts.MoldGone():
                self._mold_gone(fact)
            case facts.WorkerBorn():
                self._worker_born(fact)
            case facts.WorkerReady():
                self._worker_ready(fact)
            case facts.WorkerGone():
                self._worker_gone(fact)
            case facts.WorkerDrained():
                self._worker_drained(fact)
            case facts.PromotionRefused():
                self._promotion_refused(fact)
            case facts.Tried():
                self._tried(fact)
            case facts.TrialRequested():
                self._trial_requested(fact)
            case facts.ReforkRequested():
                self._refork_requested(fact)
            case facts.RebaseRequested():
                self._rebase_requested(fact)
            case facts.RequestsCounted():
                self._requests_counted(fact)
            case facts.WorkerOverdue():
                self._worker_overdue(fact)
            case facts.LeaksFound():
                self._leaks_found(fact)
            case facts.MoldMeasured():
                self._mold_measured(fact)
            case facts.Resized():
                self.wanted = fact.wanted
            case facts.StopRequested():
                self._stop(graceful=fact.graceful)
            case facts.Tick():
                pass
        self._advance()
        return self._orders.take()

    def _advance(self) -> None:
        self._orders.kill_overdue()
        self._expire_molds()
        if self.phase is Phase.STOPPING:
            if not self.population.workers and not self.population.molds:
                self._orders.add(self._halt)
            return
        if self.rollout is not None:
            self._advance_rollout(self.rollout)
        self._convergence.converge(self._orders, self._aim(), held_back=self._held_back())
        if self.phase is Phase.BOOTING and self.population.ready() >= self.wanted:
            self.phase = Phase.STEADY
        if self.phase is Phase.STEADY:
            self._settle()

    # --- facts about molds --------------------------------------------------------------------------------------------

    def _mold_ready(self, fact: facts.MoldReady) -> None:
        mold = self.population.molds.get(fact.generation)
        rollout = self.rollout
        expected = rollout is not None and rollout.generation == fact.generation
        if mold is None and rollout is not None and expected:
            mold = self._adopt_promoted(rollout)
        if mold is None:
            self._orders.add(decisions.KillMold(fact.generation))
            return
        if mold.state is not MoldState.LOADING:
            return
        mold.state = MoldState.READY
        mold.deadline = math.inf
        mold.ready_at = self._now
        if expected:
            self._enter(Phase.CANARY, deadline=self.policy.spawn_timeout)
        else:
            self.current = mold.generation

    def _adopt_promoted(self, rollout: Rollout) -> Mold:
        if rollout.promoted is not None:
            self.population.workers.pop(rollout.promoted, None)
        mold = Mold(rollout.generation, rollout.loaded, math.inf)
        self.population.molds[mold.generation] = mold
        return mold

    def _mold_gone(self, fact: facts.MoldGone) -> None:
        mold = self.population.molds.pop(fact.generation, None)
        for worker in self.population.of(fact.generation):
            if worker.stage is Stage.FORKING:
                del self.population.workers[worker.id]
        if mold is None or self.phase is Phase.STOPPING:
            return
        rollout = self.rollout
        if rollout is not None and rollout.generation == fact.generation and rollout.phase is not Phase.RETIRING:
            self._abort(f"mold gen={fact.generation} {fact.reason}")
        elif mold.state is not MoldState.RETIRING:
            self._boot_ended(lived=self._now - mold.ready_at)
            if not self._served and not self.population.anybody_ready():
                self._give_up(fact.reason, fact.exit_code)

    # --- facts about workers ------------------------------------------------------------------------------------------

    def _worker_born(self, fact: facts.WorkerBorn) -> None:
        worker = self.population.worker(fact.worker)
        if worker is not None and worker.stage is Stage.FORKING:
            worker.stage = Stage.BOOTING
            worker.deadline = self._now + self.policy.spawn_timeout

    def _worker_ready(self, fact: facts.WorkerReady) -> None:
        worker = self.population.worker(fact.worker)
        if worker is None or not worker.booting:
            return
        worker.stage = Stage.READY
        worker.deadline = math.inf
        self._served = True
        self._boots.succeeded()
        mold = self.population.molds.get(worker.generation)
        if mold is not None:
            mold.boot_failures = 0

    def _worker_gone(self, fact: facts.WorkerGone) -> None:
        worker = self.population.workers.pop(fact.worker, None)
        if worker is None or self.phase is Phase.STOPPING:
            return
        if worker.booting:
            self._boot_failed(worker, fact.reason)
        rollout = self.rollout
        if rollout is None:
            return
        if worker.id == rollout.promoted:
            self._abort(f"worker[{worker.slot}] ended while it was promoted: {fact.reason}")
        elif worker.id == rollout.spare and rollout.phase is Phase.SURGE:
            self._abort(f"the spare worker[{worker.slot}] did not become ready: {fact.reason}")
        elif worker.generation == rollout.generation and (
            (rollout.phase is Phase.CANARY and not fact.clean) or (rollout.phase is Phase.ROLLING and worker.booting)
        ):
            self._abort(f"worker[{worker.slot}] of the new generation failed: {fact.reason}")

    def _boot_failed(self, worker: Worker, reason: str) -> None:
        self._boot_ended()
        if not self._served:
            self._give_up(f"worker[{worker.slot}] failed to boot: {reason}", WORKER_BOOT_ERROR)
            return
        mold = self.population.molds.get(worker.generation)
        if mold is None or mold.state is not MoldState.READY:
            return
        mold.boot_failures += 1
        if mold.boot_failures >= FAILURES_PER_MOLD:
            self._orders.kill_mold(mold)

    def _worker_drained(self, fact: facts.WorkerDrained) -> None:
        rollout = self.rollout
        if rollout is not None and rollout.promoted == fact.worker and rollout.phase is Phase.DRAINING:
            self._enter(Phase.SEALING, deadline=rollout.deadline - self._now)

    def _promotion_refused(self, fact: facts.PromotionRefused) -> None:
        worker = self.population.worker(fact.worker)
        if worker is not None:
            self._orders.expect_end(worker)
        if self.rollout is not None and self.rollout.promoted == fact.worker:
            self._abort(fact.reason)

    def _tried(self, fact: facts.Tried) -> None:
        worker = self.population.worker(fact.worker)
        if worker is not None:
            self._orders.expect_end(worker)
        if self.rollout is not None and self.rollout.promoted == fact.worker:
            self.rollout = replace(self.rollout, findings=fact.findings)
            self._finish(Outcome.SUCCEEDED, "")

    # --- requests -----------------------------------------------------------------------------------------------------

    def _refork_requested(self, fact: facts.ReforkRequested) -> None:
        refusal = self.refusal(fact.slot)
        if refusal:
            raise Refusal(refusal)
        if self._worn_out():
            self._begin_rebase(fact.trigger)
        else:
            self._begin_promotion(RolloutKind.REFORK, fact, generation=self._orders.number_generation())

    def _trial_requested(self, fact: facts.TrialRequested) -> None:
        refusal = self.refusal(fact.slot)
        if refusal:
            raise Refusal(refusal)
        self._begin_promotion(RolloutKind.TRIAL, fact, generation=self.current)

    def _worn_out(self) -> bool:
        """Whether so much is sealed and forgotten, or may be, that the application is better loaded afresh."""
        limit = self.policy.max_generations
        if limit and self.population.depth(self.current) >= limit:
            return True
        return self._garbage.worn_out(self.population.molds.get(self.current), max_growth=self.policy.max_growth)

    def _mold_measured(self, fact: facts.MoldMeasured) -> None:
        mold = self.population.molds.get(fact.generation)
        if mold is not None:
            mold.size = fact.size
            self._garbage.measured(mold)

    def _worker_overdue(self, fact: facts.WorkerOverdue) -> None:
        worker = self.population.worker(fact.worker)
        if worker is not None and worker.stage is Stage.READY:
            worker.overdue = True

    def _leaks_found(self, fact: facts.LeaksFound) -> None:
        for worker in self.population.workers.values():
            worker.leaking = worker.id in fact.workers

    def _rebase_requested(self, fact: facts.RebaseRequested) -> None:
        if self.phase is Phase.STOPPING:
            raise Refusal("the server is stopping")
        if self.phase is Phase.BOOTING or self.rollout is not None:
            if fact.trigger is not Trigger.RELOAD:
                raise Refusal(self.refusal())
            self._rebase_pending = fact.trigger
        else:
            self._begin_rebase(fact.trigger)

    def _requests_counted(self, fact: facts.RequestsCounted) -> None:
        rollout = self.rollout
        if rollout is not None and rollout.phase is Phase.CANARY:
            self._judge_canary(rollout, fact)
        index = self.population.depth(self.current)
        if index >= len(self.policy.schedule) or self._rollouts.holds(self._now) or self.refusal():
            return
        limit = self.policy.schedule[index]
        due = (w.id for w in self.population.promotable() if w.generation == self.current)
        if any(fact.requests.get(worker, 0) >= limit for worker in due):
            self._refork_requested(facts.ReforkRequested(Trigger.REQUESTS, fact.requests))

    def _begin_promotion(
        self, kind: RolloutKind, fact: facts.ReforkRequested | facts.TrialRequested, *, generation: int
    ) -> None:
        promoted = max(self.population.promotable(fact.slot), key=lambda w: (fact.requests.get(w.id, 0), -w.id))
        spare = self._orders.fork(promoted.slot, self.current)
        self._begin(
            Rollout(
                id=self._number_rollout(),
                kind=kind,
                trigger=fact.trigger,
                generation=generation,
                slot=promoted.slot,
                phase=Phase.SURGE,
                started=self._now,
                since=self._now,
                deadline=self._now + self.policy.spawn_timeout,
                loaded=promoted.loaded,
                promoted=promoted.id,
                spare=spare.id,
            )
        )

    def _begin_rebase(self, trigger: Trigger) -> None:
        self._rebase_pending = None
        generation = self._orders.exec_mold()
        self._begin(
            Rollout(
                id=self._number_rollout(),
                kind=RolloutKind.REBASE,
                trigger=trigger,
                generation=generation,
                slot=0,
                phase=Phase.LOADING,
                started=self._now,
                since=self._now,
                deadline=self._now + self.policy.spawn_timeout,
                loaded=generation,
            )
        )

    def _begin(self, rollout: Rollout) -> None:
        self.phase = rollout.phase
        self.rollout = rollout
        self._orders.add(decisions.Advanced(rollout))

    # --- the rollout --------------------------------------------------------------------------------------------------

    def _advance_rollout(self, rollout: Rollout) -> None:
        match rollout.phase:
            case Phase.SURGE if self.population.is_ready(rollout.spare):
                self._promote(rollout)
            case Phase.CANARY:
                self._watch_canary(rollout)
            case Phase.ROLLING if self.population.rolled(rollout.generation, self.wanted):
                self.current = rollout.generation
                self._enter(Phase.RETIRING, deadline=math.inf)
                self._retire_molds()
            case Phase.RETIRING if not self.population.remnants(rollout.generation):
                self._finish(Outcome.SUCCEEDED, "")
            case _:
                pass
        if self.rollout is rollout and self._now >= rollout.deadline:
            self._abort(f"{rollout.phase} took longer than {rollout.deadline - rollout.since:g} s")

    def _promote(self, rollout: Rollout) -> None:
        worker = self.population.worker(rollout.promoted)
        if worker is None:  # its end was noticed, and has aborted the rollout
            return
        self._orders.promote(worker, rollout.generation, trial=rollout.kind is RolloutKind.TRIAL)
        self._enter(Phase.DRAINING, deadline=self.policy.promote_timeout)

    def _watch_canary(self, rollout: Rollout) -> None:
        if self.wanted == 0:  # there is nobody to try it on
            self._enter(Phase.ROLLING, deadline=math.inf)
        elif rollout.canary is None or rollout.canary not in self.population.workers:
            canary = self._orders.fork(min(rollout.slot, self.wanted - 1), rollout.generation)
            self.rollout = replace(
                rollout,
                canary=canary.id,
                canary_until=math.inf,
                deadline=self._now + self.policy.spawn_timeout + self.policy.canary_seconds,
            )
        elif self.population.is_ready(rollout.canary) and math.isinf(rollout.canary_until):
            self.rollout = replace(rollout, canary_until=self._now + self.policy.canary_seconds, deadline=math.inf)
            self._watch_canary(self.rollout)
        elif self._now >= rollout.canary_until:
            self._enter(Phase.ROLLING, deadline=math.inf)

    def _judge_canary(self, rollout: Rollout, fact: facts.RequestsCounted) -> None:
        worker = self.population.worker(rollout.canary)
        if worker is None:
            return
        canary = Answers(fact.requests.get(worker.id, 0), fact.errors.get(worker.id, 0))
        others = [w.id for w in self.population.workers.values() if w.generation != rollout.generation]
        before = Answers(sum(fact.requests.get(w, 0) for w in others), sum(fact.errors.get(w, 0) for w in others))
        if canary.clearly_worse_than(before):
            self._abort(
                f"worker[{worker.slot}] of the new generation answered {canary.errors} of {canary.requests} requests"
                f" with an error, the old generation {before.errors} of {before.requests}"
            )

    def _enter(self, phase: Phase, *, deadline: float) -> None:
        rollout = self.rollout
        if rollout is None:
            return
        self.phase = phase
        self.rollout = replace(
            rollout,
            phase=phase,
            since=self._now,
            deadline=self._now + deadline,
            steps=(*rollout.steps, (rollout.phase, self._now - rollout.since)),
        )
        self._orders.add(decisions.Advanced(self.rollout))

    def _abort(self, reason: str) -> None:
        """Drop what is new; the slots converge back to the generation that serves."""
        rollout = self.rollout
        if rollout is None:
            return
        if rollout.kind is not RolloutKind.TRIAL:
            self._rollouts.failed(self._now)
        mold = self.population.molds.get(rollout.generation)
        if mold is not None and rollout.generation != self.current:
            self._orders.kill_mold(mold)
        promoted = self.population.worker(rollout.promoted)
        if promoted is not None and promoted.stage is Stage.PROMOTING:
            self._orders.kill(promoted)
        self._finish(Outcome.FAILED, reason)

    def _finish(self, outcome: Outcome, reason: str) -> None:
        rollout = self.rollout
        if rollout is None:
            return
        if outcome is Outcome.SUCCEEDED and rollout.kind is not RolloutKind.TRIAL:
            self._rollouts.succeeded()
        steps = (*rollout.steps, (rollout.phase, self._now - rollout.since))
        self.last_rollout = replace(rollout, outcome=outcome, reason=reason, steps=steps, since=self._now)
        self.rollout = None
        self.phase = Phase.STEADY
        self._orders.add(decisions.Finished(self.last_rollout))

    def _settle(self) -> None:
        """Steady: let go of molds that nothing needs, get one if there is none, take up a rebase that had to wait."""
        self._retire_molds()
        if self.population.moldless():
            if not self._held_back():
                self._orders.exec_mold()
        elif self._rebase_pending is not None:
            self._begin_rebase(self._rebase_pending)

    def _retire_molds(self) -> None:
        if self.population.ready_mold(self.current) is None:
            return
        for mold in self.population.molds.values():
            if mold.generation != self.current and mold.state is MoldState.READY:
                self._orders.retire(mold)

    # --- the aim ------------------------------------------------------------------------------------------------------

    def _aim(self) -> Aim:
        """Slots go to the generation that serves; while it rolls, or failing that, to the new one."""
        rollout, ready_mold = self.rollout, self.population.ready_mold
        if rollout is None:
            return Aim(self.wanted, ready_mold(self.current), self.current, rolling=False)
        if rollout.phase is Phase.ROLLING:
            source = ready_mold(rollout.generation) or ready_mold(self.current)
            return Aim(self.wanted, source, rollout.generation, rolling=True)
        return Aim(self.wanted, ready_mold(self.current), None, rolling=False)

    # --- deadlines ----------------------------------------------------------------------------------------------------

    def _expire_molds(self) -> None:
        for mold in list(self.population.molds.values()):
            if self._now < mold.deadline:
                continue
            loading = mold.state is MoldState.LOADING
            self._orders.kill_mold(mold)
            if loading and self.rollout is None and self.phase is not Phase.STOPPING:
                self._boot_ended()
                if not self._served and not self.population.anybody_ready():
                    seconds = f"{self.policy.spawn_timeout:g} s"
                    self._give_up(
                        f"the application was not loaded after {seconds}: raise --spawn-timeout", WORKER_BOOT_ERROR
                    )

    # --- small verbs --------------------------------------------------------------------------------------------------

    def _number_rollout(self) -> int:
        self._next_rollout += 1
        return self._next_rollout - 1

    def _boot_ended(self, *, lived: float = 0.0) -> None:
        """Take note of a boot that came to nothing, or of a mold that has ended after it had ``lived`` for a while.

        The slots are filled all at once: what fails while the next attempt is not due yet has failed with the last one.
        """
        if not self._held_back():
            self._boots.failed(self._now, lived=lived, longest=self._longest_wait())
        failures = self._boots.failures
        if self._served and failures >= FAILURES_IN_A_ROW and not self.population.anybody_ready():
            self._give_up(f"{failures} boots in a row have failed, and no worker is left", WORKER_BOOT_ERROR)

    def _held_back(self) -> bool:
        return self._boots.holds(self._now, longest=self._longest_wait())

    def _longest_wait(self) -> float:
        return math.inf if self.population.anybody_ready() else LONGEST_OUTAGE

    def _give_up(self, reason: str, exit_code: int) -> None:
        self._halt = decisions.Halt(reason, exit_code)
        self._stop(graceful=False)

    def _stop(self, *, graceful: bool) -> None:
        self.phase = Phase.STOPPING
        if self.rollout is not None:
            self._finish(Outcome.FAILED, "the server was stopped")
            self.phase = Phase.STOPPING
        for worker in self.population.workers.values():
            if worker.stage is not Stage.DRAINING or not graceful:
                self._orders.drain(worker, quick=not graceful)
        for mold in self.population.molds.values():
            if mold.state is MoldState.LOADING:
                self._orders.kill_mold(mold)
            else:
                self._orders.retire(mold)
