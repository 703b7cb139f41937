"""Who there is, as the state machine knows them: workers in their slots, and the molds they are forked from.

All of it is data and questions to it; what follows from the answers is the business of ``refork.generations``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from refork.api import MoldState

if TYPE_CHECKING:
    from collections.abc import Iterator


class Stage(StrEnum):
    """Where a worker is in its life, as the machine needs to know it."""

    FORKING = "forking"
    BOOTING = "booting"
    READY = "ready"
    PROMOTING = "promoting"
    DRAINING = "draining"


@dataclass(slots=True)
class Worker:
    """A process in a slot. ``deadline``: when its present stage has lasted too long."""

    id: int
    slot: int
    generation: int
    loaded: int
    deadline: float
    stage: Stage = Stage.FORKING
    killed: bool = False
    overdue: bool = False
    leaking: bool = False

    @property
    def booting(self) -> bool:
        """Whether it is on its way to serve."""
        return self.stage in (Stage.FORKING, Stage.BOOTING)

    @property
    def occupies(self) -> bool:
        """Whether its slot is taken: it serves, or is about to."""
        return self.booting or self.stage is Stage.READY


@dataclass(slots=True)
class Mold:
    """A fork server. ``loaded``: the generation whose mold loaded the application it carries."""

    generation: int
    loaded: int
    deadline: float
    state: MoldState = MoldState.LOADING
    ready_at: float = math.inf
    boot_failures: int = 0
    size: int = 0


@dataclass(slots=True)
class Population:
    """All workers by their number, and all molds by their generation."""

    workers: dict[int, Worker] = field(default_factory=dict)
    molds: dict[int, Mold] = field(default_factory=dict)

    # --- workers ------------------------------------------------------------------------------------------------------

    def worker(self, number: int | None) -> Worker | None:
        """The worker of this number, if there is one."""
        return None if number is None else self.workers.get(number)

    def of(self, generation: int) -> list[Worker]:
        """The workers of a generation."""
        return [worker for worker in self.workers.values() if worker.generation == generation]

    def ready(self) -> int:
        """How many slots have a worker that serves."""
        return len({worker.slot for worker in self._serving()})

    def is_ready(self, number: int | None) -> bool:
        """Whether this worker serves."""
        worker = self.worker(number)
        return worker is not None and worker.stage is Stage.READY

    def anybody_ready(self) -> bool:
        """Whether anybody serves at all."""
        return any(True for _ in self._serving())

    def promotable(self, slot: int | None = None) -> list[Worker]:
        """The workers, in this slot or in any, that could become the mold of all."""
        return [worker for worker in self._serving() if slot in (None, worker.slot) and not worker.leaking]

    def leaking(self, slot: int | None = None) -> bool:
        """Whether a worker, in this slot or in any, leaks memory."""
        return any(worker.leaking and slot in (None, worker.slot) for worker in self.workers.values())

    def empty(self, wanted: int) -> list[int]:
        """The slots that nobody is in, or about to be."""
        taken = {worker.slot for worker in self.workers.values() if worker.occupies}
        return [slot for slot in range(wanted) if slot not in taken]

    def beyond(self, wanted: int) -> list[Worker]:
        """The workers in slots that there are not to be any more."""
        return [worker for worker in self.workers.values() if worker.occupies and worker.slot >= wanted]

    def rolled(self, generation: int, wanted: int) -> bool:
        """Whether every slot is served by this generation, and none by another."""
        slots = {worker.slot for worker in self._serving() if worker.generation == generation}
        return slots.issuperset(range(wanted)) and not any(
            worker.occupies and worker.generation != generation for worker in self.workers.values()
        )

    def _serving(self) -> Iterator[Worker]:
        return (worker for worker in self.workers.values() if worker.stage is Stage.READY)

    # --- molds --------------------------------------------------------------------------------------------------------

    def ready_mold(self, generation: int) -> Mold | None:
        """The mold of a generation, if it can fork."""
        mold = self.molds.get(generation)
        return mold if mold is not None and mold.state is MoldState.READY else None

    def loading(self) -> bool:
        """Whether a mold is being loaded."""
        return any(mold.state is MoldState.LOADING for mold in self.molds.values())

    def moldless(self) -> bool:
        """Whether there is no mold but those that are on their way out."""
        return all(mold.state is MoldState.RETIRING for mold in self.molds.values())

    def depth(self, generation: int) -> int:
        """How many times the heap of a generation was sealed since its application was loaded, less one."""
        mold = self.molds.get(generation)
        return 0 if mold is None else mold.generation - mold.loaded

    # --- both ---------------------------------------------------------------------------------------------------------

    def remnants(self, generation: int) -> bool:
        """Whether anything of the generations before this one is still there."""
        generations = {mold.generation for mold in self.molds.values()} | {w.generation for w in self.workers.values()}
        return any(each < generation for each in generations)
