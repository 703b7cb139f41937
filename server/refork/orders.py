"""What processes are told to do: an order changes what is known of the population, and is a decision to carry out."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from refork import decisions
from refork.api import MoldState
from refork.population import Mold, Population, Stage, Worker

if TYPE_CHECKING:
    from refork.decisions import Decision
    from refork.policy import Policy

FORK_PATIENCE = 10.0
"""Seconds from the order to fork to the first word of the worker. Forks take milliseconds: past this the mold hangs."""

KILL_MARGIN = 5.0
"""Seconds that a draining worker gets beyond ``graceful_timeout`` before it is killed."""


@dataclass(slots=True)
class Orders:
    """The orders given at ``now`` to a population, which nobody has taken yet to carry them out."""

    policy: Policy
    population: Population = field(default_factory=Population)
    now: float = -math.inf
    _next_worker: int = 0
    _next_generation: int = 0
    _given: list[Decision] = field(default_factory=list)

    def add(self, decision: Decision) -> None:
        """Have something done that is no order to a process."""
        self._given.append(decision)

    def take(self) -> list[Decision]:
        """Return all that was ordered since the last time, in order."""
        taken, self._given = self._given, []
        return taken

    def number_generation(self) -> int:
        """Return the number of a generation to come."""
        self._next_generation += 1
        return self._next_generation - 1

    # --- workers ------------------------------------------------------------------------------------------------------

    def fork(self, slot: int, generation: int) -> Worker:
        """Have a mold fork a worker for a slot."""
        loaded = self.population.molds[generation].loaded
        patience = min(FORK_PATIENCE, self.policy.spawn_timeout)
        worker = Worker(self._next_worker, slot, generation, loaded, self.now + patience)
        self._next_worker += 1
        self.population.workers[worker.id] = worker
        self.add(decisions.ForkWorker(worker.id, slot, generation))
        return worker

    def promote(self, worker: Worker, generation: int, *, trial: bool) -> None:
        """Have a worker become the mold of a generation, or only tell whether it could."""
        worker.stage = Stage.PROMOTING
        worker.deadline = math.inf  # it is the rollout's
        self.add(decisions.PromoteWorker(worker.id, generation, trial))

    def drain(self, worker: Worker, *, quick: bool = False) -> None:
        """Have a worker end; ``quick``: without its requests."""
        self.expect_end(worker, within=0.0 if quick else self.policy.graceful_timeout)
        self.add(decisions.DrainWorker(worker.id, quick))

    def expect_end(self, worker: Worker, *, within: float = 0.0) -> None:
        """Let a worker end that is about to, or kill it when it takes longer than that and a margin."""
        worker.stage = Stage.DRAINING
        worker.deadline = self.now + within + KILL_MARGIN

    def kill(self, worker: Worker) -> None:
        """End a worker whose time is up."""
        worker.killed = True
        self.add(decisions.KillWorker(worker.id))

    def kill_overdue(self) -> None:
        """End every worker whose stage has lasted too long, or the mold that it is waited for from."""
        for worker in list(self.population.workers.values()):
            if self.now < worker.deadline or worker.killed:
                continue
            # Not a word from the worker: it is the mold that hangs.
            mold = self.population.molds.get(worker.generation) if worker.stage is Stage.FORKING else None
            if mold is not None:
                self.kill_mold(mold)
            else:
                self.kill(worker)

    # --- molds --------------------------------------------------------------------------------------------------------

    def exec_mold(self) -> int:
        """Have the application loaded; return the new generation."""
        generation = self.number_generation()
        self.population.molds[generation] = Mold(generation, generation, self.now + self.policy.spawn_timeout)
        self.add(decisions.ExecMold(generation))
        return generation

    def retire(self, mold: Mold) -> None:
        """Have a mold end."""
        mold.state = MoldState.RETIRING
        mold.deadline = self.now + KILL_MARGIN
        self.add(decisions.RetireMold(mold.generation))

    def kill_mold(self, mold: Mold) -> None:
        """End a mold whose time is up, or that is not to be trusted."""
        mold.state = MoldState.RETIRING
        mold.deadline = math.inf
        self.add(decisions.KillMold(mold.generation))
