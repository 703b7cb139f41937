"""How slots come to have the right worker, whatever has happened to them.

A refork, a rebase, the way back from a failed one and the replacement of a crashed worker are one and the same
convergence. They only differ in their aim.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from refork.population import Stage

if TYPE_CHECKING:
    from refork.orders import Orders
    from refork.population import Mold, Worker

BREATH = 0.1
"""Seconds from one replacement in a rollout to the next. Forks, first writes to shared pages and ends of processes take
processor time that requests wait for; spread out, none waits long."""


@dataclass(frozen=True, slots=True)
class Aim:
    """Where slots are to come to.

    Attributes:
        wanted: how many slots there are to be.
        source: the mold that empty slots are filled from, if there is one.
        target: the generation that serving workers are replaced with; None while none are.
        rolling: whether *all* workers of other generations are replaced, as in a rollout. Otherwise it is those of a
            dropped generation, and overdue ones: what is older than a mold that had to be executed cold is warm, and
            serves.
    """

    wanted: int
    source: Mold | None
    target: int | None
    rolling: bool

    def misses(self, worker: Worker) -> bool:
        """Whether a worker in a slot is not the one to be there."""
        if self.target is None or not worker.occupies:
            return False
        return worker.generation != self.target if self.rolling else worker.generation > self.target or worker.overdue

    def is_met_by(self, worker: Worker) -> bool:
        """Whether a worker is, or will be, the one to be in its slot."""
        return worker.occupies and worker.generation == self.target and not worker.overdue


@dataclass(slots=True)
class Convergence:
    """Brings every slot to one worker, never below the allowed capacity, and takes a breath between replacements."""

    _next_replacement: float = -math.inf

    def converge(self, orders: Orders, aim: Aim, *, held_back: bool) -> None:
        """Take the next step; ``held_back``: without booting anything."""
        for worker in orders.population.beyond(aim.wanted):
            orders.drain(worker)
        if not held_back:
            _fill(orders, aim)
            self._replace(orders, aim)
        _drain_replaced(orders, aim)

    def _replace(self, orders: Orders, aim: Aim) -> None:
        target, population, policy = aim.target, orders.population, orders.policy
        if target is None or population.ready_mold(target) is None or orders.now < self._next_replacement:
            return
        room = policy.surge + policy.max_unavailable - sum(worker.booting for worker in population.of(target))
        replaced = {worker.slot for worker in population.workers.values() if aim.is_met_by(worker)}
        for worker in _to_replace(orders, aim):
            if room <= 0:
                break
            if worker.slot in replaced:
                continue
            orders.fork(worker.slot, target)
            self._next_replacement = orders.now + BREATH
            replaced.add(worker.slot)
            room -= 1
            if worker.stage is Stage.READY and aim.wanted - population.ready() < policy.max_unavailable:
                orders.drain(worker)


def _fill(orders: Orders, aim: Aim) -> None:
    empty = orders.population.empty(aim.wanted)
    if aim.source is not None:
        for slot in empty:
            orders.fork(slot, aim.source.generation)
    elif empty and not orders.population.loading():
        orders.exec_mold()


def _drain_replaced(orders: Orders, aim: Aim) -> None:
    everybody = orders.population.workers.values()
    served = {worker.slot for worker in everybody if aim.is_met_by(worker) and worker.stage is Stage.READY}
    for worker in _to_replace(orders, aim):
        if worker.slot in served:
            orders.drain(worker)


def _to_replace(orders: Orders, aim: Aim) -> list[Worker]:
    return [worker for worker in orders.population.workers.values() if aim.misses(worker)]
