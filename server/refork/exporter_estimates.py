"""Estimates, every now and then, what refork would save for the server that is watched.

An estimate is dearer than a look: it reads the page tables of all workers, and thousands of pages (see
docs/ESTIMATE.md). So it runs in a thread of its own, seldom, and the more it costs the more seldom. It is given up when
the exporter has to end: nobody waits for it.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from refork.estimate_proc import Effort, EstimateError, ForbiddenError, look
from refork.exporter_report import Outcome, Trouble
from refork.process import give_memory_back

if TYPE_CHECKING:
    from refork.endpoint import Log
    from refork.estimate import Estimate
    from refork.prefork import Entry

SECONDS_TO_WARM_UP = 60.0
"""A server that was just found may have just been started, and then has nothing to estimate yet."""

SECONDS_TO_TRY_AGAIN = 15.0

_MIB = 1024 * 1024


class _GivenUpError(Exception):
    """Nobody wants the estimate any more."""


class Estimates:
    """The last estimate of one server, and what all of them have cost.

    Args:
        interval: seconds between two estimates at least; 0 for none at all.
        share: of one core that they may take.
    """

    def __init__(self, *, interval: float, share: float, log: Log) -> None:
        self._interval = interval
        self._share = share
        self._log = log
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="refork-estimate")
        self._task: asyncio.Task[None] | None = None
        self._master: Entry | None = None
        self._due = self._paid = 0.0
        self._stopped = False
        self._told: tuple[str, ...] | None = None
        self.latest: Estimate | None = None
        self.made = 0.0
        self.outcomes: Counter[Outcome] = Counter()
        self.troubles: Counter[Trouble] = Counter()
        self.seconds = 0.0

    def want(self, master: Entry | None, *, now: float) -> None:
        """Begin with an estimate of the server that has this master if it is time for one; None: there is no server.

        ``now`` is on the monotonic clock.
        """
        if not self._is_of(master):
            self.latest, self._told = None, None
            self._due = max(self._paid, now + min(self._interval, SECONDS_TO_WARM_UP))
        self._master = master
        if self._interval and master is not None and self._task is None and now >= self._due:
            self._task = asyncio.create_task(self._make(master), name="estimate")

    def stop(self) -> None:
        """Give up what is under way."""
        self._stopped = True
        self._pool.shutdown(wait=False, cancel_futures=True)

    def age(self, now: float) -> float | None:
        """Tell how many seconds ago the last estimate was made."""
        return None if self.latest is None else now - self.made

    async def _make(self, master: Entry) -> None:
        before, wait = self.seconds, SECONDS_TO_TRY_AGAIN
        try:
            found = await asyncio.get_running_loop().run_in_executor(self._pool, self._look, master.pid)
        except _GivenUpError:
            pass
        except EstimateError as error:
            self._failed(Trouble.FORBIDDEN if isinstance(error, ForbiddenError) else Trouble.GONE, str(error))
        except Exception as error:  # noqa: BLE001 - there is an exporter without an estimate, too
            self._failed(Trouble.INTERNAL, repr(error))
        else:
            wait = self._interval
            if self._is_of(master):
                self._keep(found)
        finally:
            cost = self.seconds - before
            now = time.monotonic()
            self._paid = now + cost / self._share
            self._due = max(self._paid, now + wait if self._is_of(master) else self._due)
            self._task = None

    def _is_of(self, master: Entry | None) -> bool:
        """Whether what is known is about the server that has this master."""
        known = self._master
        return (known and known.identity) == (master and master.identity)

    def _look(self, pid: int) -> Estimate:
        """Make an estimate; in the thread."""
        before = time.thread_time()
        try:
            return look(pid, Effort(progress=self._go_on))
        finally:
            give_memory_back()
            self.seconds += time.thread_time() - before

    def _go_on(self, _what: str, _done: int, _total: int) -> None:
        if self._stopped:
            raise _GivenUpError

    def _keep(self, found: Estimate) -> None:
        self.latest, self.made = found, time.monotonic()
        self.outcomes[Outcome.COMPLETE if found.contents else Outcome.FIGURES_ONLY] += 1
        if found.notes != self._told:
            self._told = found.notes
            sizes = (found.used, found.at_least.won, found.at_most.won)
            words = "estimate used=%d MiB saved_at_least=%d MiB saved_at_most=%d MiB pages=%d"
            self._log.info(words, *(size // _MIB for size in sizes), found.samples)
            for note in found.notes:
                self._log.info("estimate note=%r", note)

    def _failed(self, trouble: Trouble, why: str) -> None:
        self.outcomes[Outcome.FAILED] += 1
        self.troubles[trouble] += 1
        self._log.warning("no estimate reason=%r", why)
