"""Which processes there should be: the state machine of the server, without a server.

Facts go in (a worker is ready, a mold is gone, somebody asked for a refork), decisions come out (fork this, promote
that, drain those). Time is a number passed in; nothing here knows a process, a socket or a clock, so that every
sequence of faults can be played in a test.

Two ideas carry it:

* *Slots converge.* Whatever happened, each slot is filled from the mold of the serving generation. A refork, a rebase,
  the way back from a failed one and the replacement of a crashed worker are all the same convergence towards one
  generation; they only differ in which generation that is.
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
from refork.population import Answers, Mold, Policy, Rollout, Stage, Worker
from refork.workers import WORKER_BOOT_ERROR

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refork.decisions import Decision
    from refork.facts import Fact

FORK_PATIENCE = 10.0
"""Seconds from the order to fork to the first word of the worker. Forks take milliseconds: past this the mold hangs."""

KILL_MARGIN = 5.0
"""Seconds that a draining worker gets beyond ``graceful_timeout`` before it is killed."""

BREATH = 0.1
"""Seconds from one replacement in a rollout to the next. Forks, first writes to shared pages and ends of processes take
processor time that requests wait for; spread out, none waits long."""

LONGEST_OUTAGE = 2.0
"""Seconds at most from a failed boot to the next attempt while nobody serves: there is nobody to be considerate of."""

FAILURES_IN_A_ROW = 10
"""So many attempts may fail in a row while nobody serves; then the server ends, for its supervisor to see."""

FAILURES_PER_MOLD = 3
"""So many of its workers in a row may fail to boot before a mold is taken for broken."""


@dataclass(slots=True)
class Generations:
    """All processes the server has, and where they are going."""

    policy: Policy
    wanted: int
    workers: dict[int, Worker] = field(default_factory=dict)
    molds: dict[int, Mold] = field(default_factory=dict)
    phase: Phase = Phase.BOOTING
    current: int = 0
    rollout: Rollout | None = None
    last_rollout: Rollout | None = None
    barred: str = ""
    _halt: decisions.Halt = field(default_factory=lambda: decisions.Halt("", 0))
    _next_worker: int = 0
    _next_generation: int = 0
    _next_rollout: int = 1
    _rebase_pending: Trigger | None = None
    _served: bool = False
    _failures: int = 0
    _failed_at: float = -math.inf
    _warm: Mold | None = None
    _rollout_failures: int = 0
    _next_replacement: float = -math.inf
    _automatic_not_before: float = -math.inf
    _decisions: list[Decision] = field(default_factory=list)
    _now: float = -math.inf

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
        if self._ready_mold(self.current) is None:
            return "there is no mold to replace the promoted worker from: one is being loaded, try again shortly"
        if slot is not None and not 0 <= slot < self.wanted:
            return f"there is no slot {slot}: slots are 0 to {self.wanted - 1}"
        return "" if self._promotable(slot) else self._not_promotable(slot)

    def _not_promotable(self, slot: int | None) -> str:
        if any(w.leaking and slot in (None, w.slot) for w in self.workers.values()):
            return "every worker that could be promoted leaks memory: a leak must not become the mold of all"
        return "no worker is ready" if slot is None else f"the worker in slot {slot} is not ready"

    def ready(self) -> int:
        """How many slots have a worker that serves."""
        return len({worker.slot for worker in self.workers.values() if worker.stage is Stage.READY})

    def depth(self, generation: int) -> int:
        """How many times the heap of a generation was sealed since its application was loaded, less one."""
        mold = self.molds.get(generation)
        return 0 if mold is None else mold.generation - mold.loaded

    # --- the one entrance ---------------------------------------------------------------------------------------------

    def start(self, now: float) -> list[Decision]:
        """Begin with generation 0's mold."""
        self._now = now
        self._exec_mold()
        return self._take()

    def handle(self, fact: Fact, now: float) -> list[Decision]:
        """Take in a fact and return what is to be done about it, in order.

        Raises:
            Refusal: a request cannot be met now; nothing has changed.
        """
        self._now = now
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
        return self._take()

    def _take(self) -> list[Decision]:
        taken, self._decisions = self._decisions, []
        return taken

    def _advance(self) -> None:
        self._expire_workers()
        self._expire_molds()
        if self.phase is Phase.STOPPING:
            if not self.workers and not self.molds:
                self._decide(self._halt)
            return
        if self.rollout is not None:
            self._advance_rollout(self.rollout)
        self._converge()
        if self.phase is Phase.BOOTING and self.ready() >= self.wanted:
            self.phase = Phase.STEADY
        if self.phase is Phase.STEADY:
            self._settle()

    # --- facts about molds --------------------------------------------------------------------------------------------

    def _mold_ready(self, fact: facts.MoldReady) -> None:
        mold = self.molds.get(fact.generation)
        rollout = self.rollout
        expected = rollout is not None and rollout.generation == fact.generation
        if mold is None and rollout is not None and expected:
            mold = self._adopt_promoted(rollout)
        if mold is None:
            self._decide(decisions.KillMold(fact.generation))
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
            self.workers.pop(rollout.promoted, None)
        mold = Mold(rollout.generation, rollout.loaded, math.inf)
        self.molds[mold.generation] = mold
        return mold

    def _mold_gone(self, fact: facts.MoldGone) -> None:
        mold = self.molds.pop(fact.generation, None)
        for worker in [w for w in self.workers.values() if w.generation == fact.generation]:
            if worker.stage is Stage.FORKING:
                del self.workers[worker.id]
        if mold is None or self.phase is Phase.STOPPING:
            return
        rollout = self.rollout
        if rollout is not None and rollout.generation == fact.generation and rollout.phase is not Phase.RETIRING:
            self._abort(f"mold gen={fact.generation} {fact.reason}")
        elif mold.state is not MoldState.RETIRING:
            self._failed(lived=self._now - mold.ready_at)
            if not self._served and not self._any_ready():
                self._give_up(fact.reason, fact.exit_code)

    # --- facts about workers ------------------------------------------------------------------------------------------

    def _worker_born(self, fact: facts.WorkerBorn) -> None:
        worker = self.workers.get(fact.worker)
        if worker is not None and worker.stage is Stage.FORKING:
            worker.stage = Stage.BOOTING
            worker.deadline = self._now + self.policy.spawn_timeout

    def _worker_ready(self, fact: facts.WorkerReady) -> None:
        worker = self.workers.get(fact.worker)
        if worker is None or not worker.booting:
            return
        worker.stage = Stage.READY
        worker.deadline = math.inf
        self._served = True
        self._failures = 0
        mold = self.molds.get(worker.generation)
        if mold is not None:
            mold.boot_failures = 0

    def _worker_gone(self, fact: facts.WorkerGone) -> None:
        worker = self.workers.pop(fact.worker, None)
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
        self._failed()
        if not self._served:
            self._give_up(f"worker[{worker.slot}] failed to boot: {reason}", WORKER_BOOT_ERROR)
            return
        mold = self.molds.get(worker.generation)
        if mold is None or mold.state is not MoldState.READY:
            return
        mold.boot_failures += 1
        if mold.boot_failures >= FAILURES_PER_MOLD:
            self._kill_mold(mold)

    def _worker_drained(self, fact: facts.WorkerDrained) -> None:
        rollout = self.rollout
        if rollout is not None and rollout.promoted == fact.worker and rollout.phase is Phase.DRAINING:
            self._enter(Phase.SEALING, deadline=rollout.deadline - self._now)

    def _promotion_refused(self, fact: facts.PromotionRefused) -> None:
        worker = self.workers.get(fact.worker)
        if worker is not None:
            worker.stage = Stage.DRAINING
            worker.deadline = self._now + KILL_MARGIN
        if self.rollout is not None and self.rollout.promoted == fact.worker:
            self._abort(fact.reason)

    def _tried(self, fact: facts.Tried) -> None:
        worker = self.workers.get(fact.worker)
        if worker is not None:
            worker.stage = Stage.DRAINING
            worker.deadline = self._now + KILL_MARGIN
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
            self._begin_promotion(RolloutKind.REFORK, fact, generation=self._number_generation())

    def _trial_requested(self, fact: facts.TrialRequested) -> None:
        refusal = self.refusal(fact.slot)
        if refusal:
            raise Refusal(refusal)
        self._begin_promotion(RolloutKind.TRIAL, fact, generation=self.current)

    def _worn_out(self) -> bool:
        """Whether sealed garbage has added up, or may have: a sealed object is never freed in later generations.

        It is estimated by what the molds have grown by since the first one that was warm, a generation more included.
        That takes a cache that is still filling for garbage too; a rebase it does not need costs time, but no memory.
        """
        limit = self.policy.max_generations
        if limit and self.depth(self.current) >= limit:
            return True
        mold, warm = self.molds.get(self.current), self._warm
        if mold is None or warm is None or mold.loaded != warm.loaded or mold.generation == warm.generation:
            return False
        growth = (mold.size - warm.size) / (mold.generation - warm.generation)
        return mold.size + growth > warm.size * (1 + self.policy.max_growth)

    def _mold_measured(self, fact: facts.MoldMeasured) -> None:
        mold = self.molds.get(fact.generation)
        if mold is None:
            return
        mold.size = fact.size
        first = self._warm is None or self._warm.loaded != mold.loaded
        if first and mold.generation > mold.loaded:
            self._warm = replace(mold)

    def _worker_overdue(self, fact: facts.WorkerOverdue) -> None:
        worker = self.workers.get(fact.worker)
        if worker is not None and worker.stage is Stage.READY:
            worker.overdue = True

    def _leaks_found(self, fact: facts.LeaksFound) -> None:
        for worker in self.workers.values():
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
        index = self.depth(self.current)
        if index >= len(self.policy.schedule) or self._now < self._automatic_not_before or self.refusal():
            return
        limit = self.policy.schedule[index]
        due = (w.id for w in self._promotable(None) if w.generation == self.current)
        if any(fact.requests.get(worker, 0) >= limit for worker in due):
            self._refork_requested(facts.ReforkRequested(Trigger.REQUESTS, fact.requests))

    def _begin_promotion(
        self, kind: RolloutKind, fact: facts.ReforkRequested | facts.TrialRequested, *, generation: int
    ) -> None:
        promoted = max(self._promotable(fact.slot), key=lambda w: (fact.requests.get(w.id, 0), -w.id))
        spare = self._fork(promoted.slot, self.current)
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
        generation = self._exec_mold()
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
        self._decide(decisions.Advanced(rollout))

    # --- the rollout --------------------------------------------------------------------------------------------------

    def _advance_rollout(self, rollout: Rollout) -> None:
        match rollout.phase:
            case Phase.SURGE if self._is_ready(rollout.spare):
                self._promote(rollout)
            case Phase.CANARY:
                self._watch_canary(rollout)
            case Phase.ROLLING if self._rolled(rollout.generation):
                self.current = rollout.generation
                self._enter(Phase.RETIRING, deadline=math.inf)
                self._retire_molds()
            case Phase.RETIRING if not self._remnants(rollout.generation):
                self._finish(Outcome.SUCCEEDED, "")
            case _:
                pass
        if self.rollout is rollout and self._now >= rollout.deadline:
            self._abort(f"{rollout.phase} took longer than {rollout.deadline - rollout.since:g} s")

    def _promote(self, rollout: Rollout) -> None:
        worker = self.workers.get(-1 if rollout.promoted is None else rollout.promoted)
        if worker is None:  # its end was noticed, and has aborted the rollout
            return
        worker.stage = Stage.PROMOTING
        worker.deadline = math.inf
        self._decide(decisions.PromoteWorker(worker.id, rollout.generation, rollout.kind is RolloutKind.TRIAL))
        self._enter(Phase.DRAINING, deadline=self.policy.promote_timeout)

    def _watch_canary(self, rollout: Rollout) -> None:
        if self.wanted == 0:  # there is nobody to try it on
            self._enter(Phase.ROLLING, deadline=math.inf)
        elif rollout.canary is None or rollout.canary not in self.workers:
            canary = self._fork(min(rollout.slot, self.wanted - 1), rollout.generation)
            self.rollout = replace(
                rollout,
                canary=canary.id,
                canary_until=math.inf,
                deadline=self._now + self.policy.spawn_timeout + self.policy.canary_seconds,
            )
        elif self._is_ready(rollout.canary) and math.isinf(rollout.canary_until):
            self.rollout = replace(rollout, canary_until=self._now + self.policy.canary_seconds, deadline=math.inf)
            self._watch_canary(self.rollout)
        elif self._now >= rollout.canary_until:
            self._enter(Phase.ROLLING, deadline=math.inf)

    def _judge_canary(self, rollout: Rollout, fact: facts.RequestsCounted) -> None:
        worker = self.workers.get(-1 if rollout.canary is None else rollout.canary)
        if worker is None:
            return
        canary = Answers(fact.requests.get(worker.id, 0), fact.errors.get(worker.id, 0))
        others = [w.id for w in self.workers.values() if w.generation != rollout.generation]
        before = Answers(sum(fact.requests.get(w, 0) for w in others), sum(fact.errors.get(w, 0) for w in others))
        if canary.clearly_worse_than(before):
            self._abort(
                f"worker[{worker.slot}] of the new generation answered {canary.errors} of {canary.requests} requests"
                f" with an error, the old generation {before.errors} of {before.requests}"
            )

    def _rolled(self, generation: int) -> bool:
        slots = {w.slot for w in self.workers.values() if w.generation == generation and w.stage is Stage.READY}
        return slots.issuperset(range(self.wanted)) and not any(
            w.occupies and w.generation != generation for w in self.workers.values()
        )

    def _remnants(self, generation: int) -> bool:
        """Whether anything of the generations before is still on its way out."""
        return any(mold.generation < generation for mold in self.molds.values()) or any(
            worker.generation < generation for worker in self.workers.values()
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
        self._decide(decisions.Advanced(self.rollout))

    def _abort(self, reason: str) -> None:
        """Drop what is new; the slots converge back to the generation that serves."""
        rollout = self.rollout
        if rollout is None:
            return
        if rollout.kind is not RolloutKind.TRIAL:
            self._cool_down()
        mold = self.molds.get(rollout.generation)
        if mold is not None and rollout.generation != self.current:
            self._kill_mold(mold)
        promoted = self.workers.get(-1 if rollout.promoted is None else rollout.promoted)
        if promoted is not None and promoted.stage is Stage.PROMOTING:
            self._kill(promoted)
        self._finish(Outcome.FAILED, reason)

    def _cool_down(self) -> None:
        self._rollout_failures += 1
        wait = min(self.policy.cooldown * 2 ** (self._rollout_failures - 1), 60 * self.policy.cooldown)
        self._automatic_not_before = self._now + wait

    def _finish(self, outcome: Outcome, reason: str) -> None:
        rollout = self.rollout
        if rollout is None:
            return
        if outcome is Outcome.SUCCEEDED and rollout.kind is not RolloutKind.TRIAL:
            self._rollout_failures = 0
        steps = (*rollout.steps, (rollout.phase, self._now - rollout.since))
        self.last_rollout = replace(rollout, outcome=outcome, reason=reason, steps=steps, since=self._now)
        self.rollout = None
        self.phase = Phase.STEADY
        self._decide(decisions.Finished(self.last_rollout))

    def _settle(self) -> None:
        """Steady: let go of molds that nothing needs, get one if there is none, take up a rebase that had to wait."""
        self._retire_molds()
        if not any(mold.state is not MoldState.RETIRING for mold in self.molds.values()):
            if not self._held_back():
                self._exec_mold()
        elif self._rebase_pending is not None:
            self._begin_rebase(self._rebase_pending)

    def _retire_molds(self) -> None:
        if self._ready_mold(self.current) is None:
            return
        for mold in self.molds.values():
            if mold.generation != self.current and mold.state is MoldState.READY:
                mold.state = MoldState.RETIRING
                mold.deadline = self._now + KILL_MARGIN
                self._decide(decisions.RetireMold(mold.generation))

    # --- convergence --------------------------------------------------------------------------------------------------

    def _converge(self) -> None:
        """Bring every slot to one worker of the right generation, never below the allowed capacity."""
        if self.phase is Phase.STOPPING:
            return
        for worker in self._beyond():
            self._drain(worker)
        self._fill()
        self._replace()
        self._drain_replaced()

    def _beyond(self) -> list[Worker]:
        return [w for w in self.workers.values() if w.occupies and w.slot >= self.wanted]

    def _fill(self) -> None:
        taken = {w.slot for w in self.workers.values() if w.occupies}
        empty = [slot for slot in range(self.wanted) if slot not in taken]
        if not empty or self._held_back():
            return
        mold = self._source()
        if mold is not None:
            for slot in empty:
                self._fork(slot, mold.generation)
        elif not any(m.state is MoldState.LOADING for m in self.molds.values()):
            self._exec_mold()

    def _source(self) -> Mold | None:
        """The mold to fork from: of the serving generation; while rolling, or failing that, of the new one."""
        rolling = self.rollout is not None and self.rollout.phase in (Phase.ROLLING, Phase.RETIRING)
        if rolling and self.rollout is not None:
            return self._ready_mold(self.rollout.generation) or self._ready_mold(self.current)
        return self._ready_mold(self.current)

    def _target(self) -> int | None:
        """The generation that serving workers are replaced with, if they are to be replaced at all."""
        if self.rollout is not None:
            return self.rollout.generation if self.rollout.phase is Phase.ROLLING else None
        return self.current

    def _outdated(self, target: int) -> Iterator[Worker]:
        """Workers to replace: in a rollout all others; in steady state those of a dropped generation, and overdue ones.

        Older workers than a mold that had to be executed cold are left alone: they are warm, and serve.
        """
        rolling = self.rollout is not None
        for worker in self.workers.values():
            wrong = worker.generation != target if rolling else worker.generation > target or worker.overdue
            if worker.occupies and wrong:
                yield worker

    def _replace(self) -> None:
        target = self._target()
        if target is None or self._ready_mold(target) is None:
            return
        if self._held_back() or self._now < self._next_replacement:
            return
        booting = sum(w.booting and w.generation == target for w in self.workers.values())
        room = self.policy.surge + self.policy.max_unavailable - booting
        replaced = {w.slot for w in self.workers.values() if w.occupies and w.generation == target and not w.overdue}
        for worker in list(self._outdated(target)):
            if room <= 0:
                break
            if worker.slot in replaced:
                continue
            self._fork(worker.slot, target)
            self._next_replacement = self._now + BREATH
            replaced.add(worker.slot)
            room -= 1
            if worker.stage is Stage.READY and self.wanted - self.ready() < self.policy.max_unavailable:
                self._drain(worker)

    def _drain_replaced(self) -> None:
        target = self._target()
        if target is None:
            return
        served = {
            w.slot for w in self.workers.values() if w.generation == target and w.stage is Stage.READY and not w.overdue
        }
        for worker in list(self._outdated(target)):
            if worker.slot in served:
                self._drain(worker)

    # --- deadlines ----------------------------------------------------------------------------------------------------

    def _expire_workers(self) -> None:
        for worker in list(self.workers.values()):
            if self._now < worker.deadline or worker.killed:
                continue
            if worker.stage is Stage.FORKING:  # no word from the worker: it is the mold that hangs
                mold = self.molds.get(worker.generation)
                if mold is not None:
                    self._kill_mold(mold)
                    continue
            self._kill(worker)

    def _expire_molds(self) -> None:
        for mold in list(self.molds.values()):
            if self._now < mold.deadline:
                continue
            loading = mold.state is MoldState.LOADING
            self._kill_mold(mold)
            if loading and self.rollout is None and self.phase is not Phase.STOPPING:
                self._failed()
                if not self._served and not self._any_ready():
                    seconds = f"{self.policy.spawn_timeout:g} s"
                    self._give_up(
                        f"the application was not loaded after {seconds}: raise --spawn-timeout", WORKER_BOOT_ERROR
                    )

    # --- small verbs --------------------------------------------------------------------------------------------------

    def _decide(self, decision: Decision) -> None:
        self._decisions.append(decision)

    def _number_generation(self) -> int:
        self._next_generation += 1
        return self._next_generation - 1

    def _number_rollout(self) -> int:
        self._next_rollout += 1
        return self._next_rollout - 1

    def _exec_mold(self) -> int:
        generation = self._number_generation()
        self.molds[generation] = Mold(generation, generation, self._now + self.policy.spawn_timeout)
        self._decide(decisions.ExecMold(generation))
        return generation

    def _fork(self, slot: int, generation: int) -> Worker:
        loaded = self.molds[generation].loaded
        patience = min(FORK_PATIENCE, self.policy.spawn_timeout)
        worker = Worker(self._next_worker, slot, generation, loaded, self._now + patience)
        self._next_worker += 1
        self.workers[worker.id] = worker
        self._decide(decisions.ForkWorker(worker.id, slot, generation))
        return worker

    def _drain(self, worker: Worker, *, quick: bool = False) -> None:
        worker.stage = Stage.DRAINING
        worker.deadline = self._now + (0.0 if quick else self.policy.graceful_timeout) + KILL_MARGIN
        self._decide(decisions.DrainWorker(worker.id, quick))

    def _kill(self, worker: Worker) -> None:
        worker.killed = True
        self._decide(decisions.KillWorker(worker.id))

    def _kill_mold(self, mold: Mold) -> None:
        mold.state = MoldState.RETIRING
        mold.deadline = math.inf
        self._decide(decisions.KillMold(mold.generation))

    def _failed(self, *, lived: float = 0.0) -> None:
        """Take note of a boot that came to nothing, or of the end of a mold that has lived for a while.

        What fails at one time is one attempt. What has lived for longer than the wait had not failed to boot: however
        often it is killed, the waits do not add up.
        """
        if self._held_back():
            return
        self._failures = 1 if lived > self._backoff() else self._failures + 1
        self._failed_at = self._now
        if self._served and self._failures >= FAILURES_IN_A_ROW and not self._any_ready():
            self._give_up(f"{self._failures} boots in a row have failed, and no worker is left", WORKER_BOOT_ERROR)

    def _backoff(self) -> float:
        """Seconds from the last failed attempt to the next; doubled with each, and 0 without one."""
        longest = self.policy.max_backoff if self._any_ready() else LONGEST_OUTAGE
        return min(self.policy.backoff * 2 ** (self._failures - 1), longest) if self._failures else 0.0

    def _held_back(self) -> bool:
        return self._now < self._failed_at + self._backoff()

    def _give_up(self, reason: str, exit_code: int) -> None:
        self._halt = decisions.Halt(reason, exit_code)
        self._stop(graceful=False)

    def _stop(self, *, graceful: bool) -> None:
        self.phase = Phase.STOPPING
        if self.rollout is not None:
            self._finish(Outcome.FAILED, "the server was stopped")
            self.phase = Phase.STOPPING
        for worker in self.workers.values():
            if worker.stage is not Stage.DRAINING or not graceful:
                self._drain(worker, quick=not graceful)
        for mold in self.molds.values():
            if mold.state is MoldState.LOADING:
                self._kill_mold(mold)
            else:
                self._decide(decisions.RetireMold(mold.generation))
                mold.state = MoldState.RETIRING
                mold.deadline = self._now + KILL_MARGIN

    # --- small questions ----------------------------------------------------------------------------------------------

    def _ready_mold(self, generation: int) -> Mold | None:
        mold = self.molds.get(generation)
        return mold if mold is not None and mold.state is MoldState.READY else None

    def _is_ready(self, worker: int | None) -> bool:
        found = None if worker is None else self.workers.get(worker)
        return found is not None and found.stage is Stage.READY

    def _any_ready(self) -> bool:
        return any(w.stage is Stage.READY for w in self.workers.values())

    def _promotable(self, slot: int | None) -> list[Worker]:
        return [w for w in self.workers.values() if w.stage is Stage.READY and slot in (None, w.slot) and not w.leaking]
