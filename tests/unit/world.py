"""A world for the state machine to live in: processes that do as they are told, or do not.

It carries out decisions on paper, with a clock of its own. Who misbehaves, and how, is up to a function that the test
gives; in its absence everything works and takes a moment.
"""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from refork import decisions, facts
from refork.api import Phase, Trigger
from refork.generations import Generations
from refork.population import Stage

if TYPE_CHECKING:
    from collections.abc import Callable

    from refork.decisions import Decision
    from refork.facts import Fact
    from refork.policy import Policy
    from refork.rollout import Rollout


class Behaviour(StrEnum):
    """What a process may do when it is asked something."""

    OBEY = "obey"
    CRASH = "crash"
    HANG = "hang"
    REFUSE = "refuse"


def obey(_decision: Decision) -> Behaviour:
    """Nobody misbehaves."""
    return Behaviour.OBEY


MOMENT = 0.01


@dataclass
class World:
    """The machine, its processes, and what is about to happen."""

    policy: Policy
    wanted: int
    behave: Callable[[Decision], Behaviour] = obey
    now: float = 0.0
    halted: decisions.Halt | None = None
    outcomes: list[Rollout] = field(default_factory=list)
    decided: list[Decision] = field(default_factory=list)
    lowest_ready: int | None = None

    def __post_init__(self) -> None:
        self.machine = Generations(self.policy, self.wanted)
        self._order = itertools.count()
        self._coming: list[tuple[float, int, Fact]] = []
        self._carry_out(self.machine.start(self.now))

    def tell(self, fact: Fact) -> None:
        """Put a fact to the machine now."""
        self._carry_out(self.machine.handle(fact, self.now))
        if self.lowest_ready is not None:
            self.lowest_ready = min(self.lowest_ready, self.machine.population.ready())

    def watch_capacity(self) -> None:
        """Note from now on how few slots ever had a ready worker."""
        self.lowest_ready = self.machine.population.ready()

    def run(self, seconds: float, *, until: Callable[[], bool] = lambda: False) -> None:
        """Let time pass, with a tick ten times a second."""
        end = self.now + seconds
        while self.now < end and self.halted is None and not until():
            step = self.now + 0.1
            while self._coming and self._coming[0][0] <= step and self.halted is None:
                self.now, _, fact = heapq.heappop(self._coming)
                self.tell(fact)
            self.now = step
            if self.halted is None:
                self.tell(facts.Tick())

    def settle(self) -> None:
        """Let time pass until nothing is under way any more."""
        self.run(3600, until=self.settled)
        assert self.halted is not None or self.settled(), self.machine

    def settled(self) -> bool:
        """Whether every slot has one ready worker, there is one mold, and no rollout."""
        stages = [worker.stage for worker in self.machine.population.workers.values()]
        return (
            self.machine.phase is Phase.STEADY
            and not self._coming
            and len(self.machine.population.molds) == 1
            and stages.count(Stage.READY) == len(stages) == self.machine.wanted
            and self.machine.population.ready() == self.machine.wanted
        )

    def refork(self, slot: int | None = None) -> None:
        """Ask for a refork as a person would."""
        self.tell(facts.ReforkRequested(Trigger.COMMAND, {}, slot))

    def soon(self, fact: Fact, *, moments: int = 1) -> None:
        """Have something happen."""
        heapq.heappush(self._coming, (self.now + moments * MOMENT, next(self._order), fact))

    def _carry_out(self, decided: list[Decision]) -> None:
        for decision in decided:
            self.decided.append(decision)
            self._carry_out_one(decision, self.behave(decision))

    def _carry_out_one(self, decision: Decision, behaviour: Behaviour) -> None:
        crash, hang = behaviour is Behaviour.CRASH, behaviour is Behaviour.HANG
        match decision:
            case decisions.ExecMold(generation):
                if not hang:
                    self.soon(facts.MoldGone(generation, "crashed") if crash else facts.MoldReady(generation))
            case decisions.ForkWorker(worker):
                self._fork(worker, behaviour)
            case decisions.PromoteWorker(worker, generation):
                self._promote(worker, generation, behaviour)
            case decisions.DrainWorker(worker):
                if not hang:
                    self.soon(facts.WorkerGone(worker, "exited", clean=not crash))
            case decisions.KillWorker(worker):
                self.soon(facts.WorkerGone(worker, "killed"))
            case decisions.RetireMold(generation):
                if not hang:
                    self.soon(facts.MoldGone(generation, "retired"))
            case decisions.KillMold(generation):
                self.soon(facts.MoldGone(generation, "killed"))
            case decisions.Finished(rollout):
                self.outcomes.append(rollout)
            case decisions.Halt():
                self.halted = decision
            case decisions.Advanced():
                pass

    def _fork(self, worker: int, behaviour: Behaviour) -> None:
        match behaviour:
            case Behaviour.OBEY:
                self.soon(facts.WorkerBorn(worker))
                self.soon(facts.WorkerReady(worker), moments=2)
            case Behaviour.CRASH:
                self.soon(facts.WorkerBorn(worker))
                self.soon(facts.WorkerGone(worker, "crashed"), moments=2)
            case Behaviour.REFUSE:
                self.soon(facts.WorkerGone(worker, "fork: out of memory"))
            case Behaviour.HANG:
                self.soon(facts.WorkerBorn(worker))

    def _promote(self, worker: int, generation: int, behaviour: Behaviour) -> None:
        match behaviour:
            case Behaviour.OBEY:
                self.soon(facts.WorkerDrained(worker))
                self.soon(facts.MoldReady(generation), moments=2)
            case Behaviour.CRASH:
                self.soon(facts.WorkerDrained(worker))
                self.soon(facts.WorkerGone(worker, "crashed"), moments=2)
            case Behaviour.REFUSE:
                self.soon(facts.PromotionRefused(worker, "a thread is running"))
                self.soon(facts.WorkerGone(worker, "exited", clean=True), moments=2)
            case Behaviour.HANG:
                self.soon(facts.WorkerDrained(worker))
