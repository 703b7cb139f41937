"""What the samples of memory say should be done: replace a worker, not promote one, not trust a mold's size.

The sampler measures, the state machine decides; this turns the one's numbers into the other's facts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from refork.api import Growth
from refork.facts import Fact, LeaksFound, MoldMeasured, WorkerOverdue
from refork.leak import History, Sample
from refork.settings import parse_amount

if TYPE_CHECKING:
    from collections.abc import Iterable

    from refork.api import Memory


@dataclass(frozen=True, slots=True)
class Limits:
    """Past which a worker is replaced; infinite if there is none. Seconds and bytes."""

    age: float = math.inf
    memory: float = math.inf

    @classmethod
    def of(cls, cfg: Any, *, container: int | None) -> Self:
        """Return what is configured; ``container`` is the memory limit that shares are of, if there is one."""
        size, share = parse_amount(cfg.max_worker_memory)
        if share:
            size = int(share * container) if container is not None else 0
        return cls(age=cfg.max_worker_age or math.inf, memory=size or math.inf)


@dataclass(frozen=True, slots=True)
class WorkerFacts:
    """A worker as it is now: ``memory`` is its last sample, taken at ``time``."""

    id: int
    age: float
    memory: Memory | None
    time: float


@dataclass(frozen=True, slots=True)
class MoldFacts:
    """A mold and its last sample."""

    generation: int
    memory: Memory | None


@dataclass(slots=True)
class Upkeep:
    """Remembers how each worker has grown."""

    _histories: dict[int, History] = field(default_factory=dict)

    def look(self, limits: Limits, workers: Iterable[WorkerFacts], molds: Iterable[MoldFacts]) -> list[Fact]:
        """Return what follows from the latest samples of all workers and molds."""
        facts: list[Fact] = []
        seen = {}
        for worker in workers:
            seen[worker.id] = self._history(worker)
            if worker.age > limits.age or (worker.memory is not None and worker.memory.uss > limits.memory):
                facts.append(WorkerOverdue(worker.id))
        self._histories = seen
        leaking = frozenset(worker for worker, history in seen.items() if history.verdict() is Growth.LEAK)
        facts.append(LeaksFound(leaking))
        facts.extend(MoldMeasured(mold.generation, mold.memory.rss) for mold in molds if mold.memory is not None)
        return facts

    def growth(self, worker: int) -> Growth:
        """Return what a worker's growth looks like."""
        history = self._histories.get(worker)
        return Growth.UNKNOWN if history is None else history.verdict()

    def _history(self, worker: WorkerFacts) -> History:
        history = self._histories.get(worker.id, History())
        if worker.memory is not None:
            history.add(Sample(worker.time, worker.memory.uss))
        return history
