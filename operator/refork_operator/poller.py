"""Asks everybody on time, a limited number at once, and nobody twice at the same time."""

from __future__ import annotations

import asyncio
import heapq
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from refork_operator.metrics import Metrics

LATE_SECONDS = 1.0


class Poller[Name]:
    """A timetable. ``ask`` is called for a name when it is due, and returns when it is due next, or None."""

    def __init__(self, ask: Callable[[Name], Awaitable[float | None]], *, concurrency: int, metrics: Metrics) -> None:
        self._ask = ask
        self._metrics = metrics
        self._places = asyncio.Semaphore(concurrency)
        self._due: dict[Name, float] = {}
        self._heap: list[tuple[float, int, Name]] = []
        self._number = 0
        self._asking: set[Name] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()

    def __contains__(self, name: Name) -> bool:
        return name in self._due

    def schedule(self, name: Name, due: float) -> None:
        """Ask at this time; a time given earlier for the same name is forgotten."""
        self._due[name] = due
        self._number += 1
        heapq.heappush(self._heap, (due, self._number, name))
        if self._heap[0][2] is name:
            self._wake.set()

    def remove(self, name: Name) -> None:
        """Ask no more."""
        self._due.pop(name, None)

    async def run(self) -> None:
        """Ask for ever."""
        while True:
            self._wake.clear()
            while self._heap and self._heap[0][0] <= time.time():
                due, _, name = heapq.heappop(self._heap)
                if self._due.get(name) == due and name not in self._asking:
                    await self._begin(name, due)
            seconds = self._heap[0][0] - time.time() if self._heap else None
            try:
                await asyncio.wait_for(self._wake.wait(), seconds)
            except TimeoutError:
                continue

    async def _begin(self, name: Name, due: float) -> None:
        await self._places.acquire()
        if time.time() - due > LATE_SECONDS:
            self._metrics.late.inc()
        self._asking.add(name)
        task = asyncio.create_task(self._one(name, due))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _one(self, name: Name, due: float) -> None:
        following: float | None = None
        try:
            following = await self._ask(name)
        finally:
            self._asking.discard(name)
            self._places.release()
            if name in self._due:
                pulled_forward = self._due[name] if self._due[name] != due else None
                if pulled_forward is not None:
                    self.schedule(name, pulled_forward)
                elif following is not None:
                    self.schedule(name, following)
                else:
                    self.remove(name)
