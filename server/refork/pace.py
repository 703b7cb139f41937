"""When to look at whose memory, so that looking costs next to nothing: the sampler's plan, with no process or clock.

A look is not free. The kernel walks the page tables of the process under its memory lock, about 20 ms for each GiB, so
the cost depends on what is looked at and cannot be known before. The plan therefore works like a household: each look
makes a debt of the processor time it took, time pays the debt off at a fixed rate (``share`` of one core), and

* the regular look at the least recently seen process waits until there is no debt,
* a look that somebody asked for may be made on a small credit,
* a look that cannot be had later (a worker right after its fork, everything right after a rollout) is made at once, and
  the regular ones wait the longer.

So bursts are possible, and the average never is above the rate.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

SHARE = 0.004
"""Of one core. What is promised is 0.005: the rest is for what a look costs beside itself, in the event loop."""

SHORTEST = 5.0
"""Seconds between two regular looks at a process, however cheap they are: who wants to know sooner asks."""

CREDIT = 0.02
"""Seconds of processor time that a look which was asked for may leave as debt."""

WINDOW = 300.0
"""Seconds that the reported share of a core is the average of."""

_MARKS = 60


@dataclass(slots=True)
class Pace:
    """What was seen when, what is wanted, and what is owed. Instants are on a monotonic clock, sizes are seconds.

    ``share`` of one core may be spent, and ``shortest`` lies between two regular looks at a process at least.
    """

    begun: float
    share: float = SHARE
    shortest: float = SHORTEST
    spent: float = 0.0
    debt: float = 0.0
    _settled: float = field(init=False)
    _asked: float = -math.inf
    _urgent: dict[int, None] = field(default_factory=dict)
    _seen: dict[int, float] = field(default_factory=dict)
    _costs: dict[int, float] = field(default_factory=dict)
    _marks: deque[tuple[float, float]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self._settled = self.begun

    def need(self, pid: int) -> None:
        """Have a process looked at as soon as can be."""
        self._urgent[pid] = None

    def ask(self, now: float) -> None:
        """Have everything looked at that was not since ``now``, as far as the credit goes."""
        self._asked = now

    def forget(self, pid: int) -> None:
        """Let go of a process that has ended."""
        self._urgent.pop(pid, None)
        self._seen.pop(pid, None)
        self._costs.pop(pid, None)

    def choose(self, pids: Collection[int], *, now: float) -> tuple[int | None, float]:
        """Name the process to look at now, or None and how many seconds there is nothing to do."""
        self._settle(now)
        for pid in self._urgent:
            if pid in pids:
                return pid, 0.0
        if not pids:
            return None, self.shortest
        stalest = min(pids, key=self._last)
        last = self._last(stalest)
        if last < self._asked and self.debt < CREDIT:
            return stalest, 0.0
        regular = max(last + self.shortest - now, self.debt / self.share)
        if regular <= 0:
            return stalest, 0.0
        on_credit = (self.debt - CREDIT) / self.share if last < self._asked else math.inf
        return None, min(regular, on_credit)

    def looked(self, pid: int, *, cost: float, now: float) -> None:
        """Take note of a look that began at ``now`` and of what it cost."""
        self._settle(now)
        self._urgent.pop(pid, None)
        self._seen[pid] = now
        self._costs[pid] = cost
        self.spent += cost
        self.debt += cost
        if not self._marks or now - self._marks[-1][0] >= WINDOW / _MARKS:
            self._marks.append((now, self.spent - cost))
        while len(self._marks) > 1 and self._marks[1][0] <= now - WINDOW:
            self._marks.popleft()

    def interval(self) -> float:
        """Tell how many seconds lie between two regular looks at one process."""
        return max(self.shortest, sum(self._costs.values()) / self.share)

    def oldest(self) -> float:
        """Tell when the least recent look was."""
        return min(self._seen.values(), default=self.begun)

    def cpu_share(self, now: float) -> float:
        """Tell which share of one core all looks of the last minutes have taken."""
        at, before = self._marks[0] if self._marks else (self.begun, 0.0)
        if now - self.begun <= WINDOW:
            at, before = self.begun, 0.0
        return (self.spent - before) / (now - at) if now > at else 0.0

    def seen_since(self, pids: Collection[int], *, then: float) -> bool:
        """Whether each of these processes has been looked at since ``then``."""
        return all(self._last(pid) >= then for pid in pids)

    def _last(self, pid: int) -> float:
        return self._seen.get(pid, -math.inf)

    def _settle(self, now: float) -> None:
        if now > self._settled:
            self.debt = max(0.0, self.debt - self.share * (now - self._settled))
            self._settled = now
