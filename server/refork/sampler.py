"""Keeps what is known about the memory of every process, so that nobody else has to look.

Status, metrics and the decision to refork all read the samples that are here; only this module makes the kernel walk
page tables, one process at a time, in a thread of its own (the monitor executes molds and never forks, so a thread does
no harm), at a pace that ``refork.pace`` keeps below half a percent of one core.

What a worker had when it became ready is kept as its *baseline*. Private memory beyond it is erosion: what the worker
has written to since, and what a refork can win back. Memory that a worker was born with never counts as that.

A process is known by its pid: it is the monitor's own child, so the number cannot be another's until it is reaped, and
then it is forgotten here first. (The exporter, whose children they are not, tells by their start who is another.)
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from refork import api, cgroup, memory
from refork.pace import SHORTEST, Pace

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

ERODING = 120.0
"""Seconds that the rate of erosion is the average of."""

SOONEST_RATE = 1.0
"""Seconds of growth that a rate is told of at least: two looks in the same moment say nothing about a second."""

SHORTEST_HOLD = 0.05
"""Seconds between two questions whether looking may go on."""

_POINTS = 12


@dataclass(frozen=True, slots=True)
class Look:
    """What one look at a process showed; ``cost`` is the processor time it took."""

    pid: int
    at: float
    cost: float
    memory: api.Memory | None
    process: api.Process | None
    cgroup: api.Cgroup | None = None


@dataclass(slots=True)
class Track:
    """One process over time. ``baseline``: its private memory when it became ready, once that is known."""

    look: Look | None = None
    baseline: int | None = None
    awaits_baseline: bool = False
    points: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=_POINTS))

    def add(self, look: Look) -> None:
        """Take in a look."""
        self.look = look
        if look.memory is None:
            return
        if self.awaits_baseline:
            self.awaits_baseline = False
            self.baseline = look.memory.uss
            self.points.clear()
        if not self.points or look.at - self.points[-1][0] >= ERODING / _POINTS:
            self.points.append((look.at, look.memory.uss))

    @property
    def memory(self) -> api.Memory | None:
        """What the process cost at the last look."""
        return None if self.look is None else self.look.memory

    @property
    def gained(self) -> int | None:
        """Private memory beyond the baseline; None as long as either is unknown."""
        if self.baseline is None or self.memory is None:
            return None
        return max(0, self.memory.uss - self.baseline)

    @property
    def rate(self) -> float | None:
        """Bytes a second that private memory grew by, over the last looks."""
        if self.baseline is None or self.look is None or self.look.memory is None or not self.points:
            return None
        at, before = self.points[0]
        seconds = self.look.at - at
        return (self.look.memory.uss - before) / seconds if seconds >= SOONEST_RATE else None


class Sampler:
    """Looks at the process ``own`` and its ``children`` until ``run()`` is cancelled; calls ``told`` after each look.

    ``place`` is the control group that is looked at with it.
    """

    def __init__(self, own: int, children: Callable[[], Iterable[int]], *, log: Any, pace: Pace | None = None) -> None:
        self._own = own
        self._children = children
        self._log = log
        self._pace = pace or Pace(time.monotonic())
        self._tracks: dict[int, Track] = {}
        self._wake = asyncio.Event()
        self._looking_at: int | None = None
        self.place = cgroup.find()
        self.cgroup: api.Cgroup | None = None
        self.told: Callable[[], None] = lambda: None
        self.held: Callable[[], bool] = lambda: False

    # --- what is wanted -----------------------------------------------------------------------------------------------

    def began(self, pid: int) -> None:
        """Keep what a worker has that has just become ready: its baseline."""
        self._tracks.setdefault(pid, Track()).awaits_baseline = True
        self.need(pid)

    def need(self, pid: int) -> None:
        """Look at a process at once, because nothing is known of it, or nothing that is still true."""
        self._pace.need(pid)
        self._wake.set()

    def need_all(self, *, first: int | None = None) -> None:
        """Look at everything at once, because what is known is not true any more; ``first`` will not be what it is."""
        if first is not None:
            self._pace.need(first)
        for pid in self.pids():
            self._pace.need(pid)
        self._wake.set()

    def ask(self) -> None:
        """Look at everything soon, within what looking may cost: somebody wants to know."""
        self._pace.ask(time.monotonic())
        self._wake.set()

    def promoted(self, pid: int) -> None:
        """Take a worker for the mold it has become: it has no erosion."""
        track = self._tracks.get(pid)
        if track is not None:
            track.baseline = None
            track.awaits_baseline = False
        self.need(pid)

    def forget(self, pid: int) -> None:
        """Let go of a process that is about to be reaped."""
        self._tracks.pop(pid, None)
        self._pace.forget(pid)
        if self._looking_at == pid:
            self._looking_at = None

    # --- what is known ------------------------------------------------------------------------------------------------

    def pids(self) -> tuple[int, ...]:
        """Name all processes, the monitor first."""
        return (self._own, *self._children())

    def track(self, pid: int) -> Track:
        """Return what is known about a process; an empty one for one that nobody has looked at."""
        return self._tracks.get(pid) or Track()

    def memory(self, pid: int) -> api.Memory | None:
        """Return the memory of a process at the last look."""
        return self.track(pid).memory

    def process(self, pid: int) -> api.Process | None:
        """Return what else there is to know about a process."""
        look = self.track(pid).look
        return None if look is None else look.process

    def pss(self, pids: Iterable[int]) -> int:
        """Add up the PSS of these processes, as far as it is known."""
        return sum(known.pss for pid in pids if (known := self.memory(pid)) is not None)

    def seen_since(self, then: float, pids: Collection[int]) -> bool:
        """Whether each of these processes has been looked at since ``then``, on the monotonic clock."""
        return self._pace.seen_since(pids, then=then)

    def oldest(self) -> float:
        """Tell when, on the monotonic clock, the least recent of the samples was taken."""
        return self._pace.oldest()

    def sampling(self) -> api.Sampling:
        """Tell what all this costs."""
        now = time.monotonic()
        return api.Sampling(
            interval=self._pace.interval(),
            seconds=self._pace.spent,
            cpu_share=self._pace.cpu_share(now),
            age=now - self._pace.oldest(),
        )

    # --- looking ------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Look at one process after the other, for ever."""
        pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="refork-sampler")
        try:
            while True:
                try:
                    await self._step(pool)
                except Exception:  # noqa: BLE001 - the server serves on, and tells less
                    self._log.exception("sampling memory failed")
                    await asyncio.sleep(SHORTEST)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    async def _step(self, pool: ThreadPoolExecutor) -> None:
        if self.held():  # a look takes the memory lock and the processor that a booting worker needs
            await asyncio.sleep(SHORTEST_HOLD)
            return
        self._wake.clear()
        pid, idle = self._pace.choose(self.pids(), now=time.monotonic())
        if pid is None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), idle)
            return
        self._looking_at = pid
        place = self.place if pid == self._own else None
        look = await asyncio.get_running_loop().run_in_executor(pool, take, pid, place)
        if self._looking_at is not None:  # else it was reaped meanwhile
            self._record(look)
            self.told()

    def _record(self, look: Look) -> None:
        self._pace.looked(look.pid, cost=look.cost, now=look.at)
        self._tracks.setdefault(look.pid, Track()).add(look)
        if look.pid == self._own:
            self.cgroup = look.cgroup


def take(pid: int, place: cgroup.Place | None = None) -> Look:
    """Look at one process, and at the control group if there is one to look at; runs in any thread."""
    at, before = time.monotonic(), time.thread_time()
    seen, process = memory.read(pid), memory.process(pid)
    group = None if place is None else cgroup.read(place)
    return Look(pid, at, time.thread_time() - before, seen, process, group)
