"""What the samples of memory say should be done: replace a worker, not promote one, not trust a mold's size.

The sampler measures, the state machine decides; this turns the one's numbers into the other's facts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from refork.generations import Fact, LeaksFound, MoldMeasured, WorkerOverdue
from refork.leak import Growth, Sample, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable

    from refork.api import Memory


@dataclass(frozen=True, slots=True)
class Limits:
    """Past which a worker is replaced; infinite if there is none. Seconds and bytes."""

    age: float
    memory: float


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

    limits: Limits
    _growths: dict[int, Growth] = field(default_factory=dict)

    def look(self, workers: Iterable[WorkerFacts], molds: Iterable[MoldFacts]) -> list[Fact]:
        """Return what follows from the latest samples of all workers and molds."""
        facts: list[Fact] = []
        seen = {}
        for worker in workers:
            seen[worker.id] = self._growth(worker)
            if worker.age > self.limits.age or (worker.memory is not None and worker.memory.uss > self.limits.memory):
                facts.append(WorkerOverdue(worker.id))
        self._growths = seen
        leaking = frozenset(worker for worker, growth in seen.items() if growth.verdict() is Verdict.LEAK)
        facts.append(LeaksFound(leaking))
        facts.extend(MoldMeasured(mold.generation, mold.memory.rss) for mold in molds if mold.memory is not None)
        return facts

    def verdict(self, worker: int) -> Verdict:
        """Return what a worker's growth looks like."""
        growth = self._growths.get(worker)
        return Verdict.UNKNOWN if growth is None else growth.verdict()

    def _growth(self, worker: WorkerFacts) -> Growth:
        growth = self._growths.get(worker.id, Growth())
        if worker.memory is not None:
            growth.add(Sample(worker.time, worker.memory.uss))
        return growth
