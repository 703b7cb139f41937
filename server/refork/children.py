"""The registry of the monitor's processes: who they are, on which line, since when. No I/O of its own.

A worker is known by its number from the moment its fork is ordered, and by its pid from its first word on; a mold is
known by its generation. A promoted worker changes from one to the other with its pid and its line.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from refork.workers import WORKER_BOOT_ERROR

if TYPE_CHECKING:
    from refork.api import SealStatus
    from refork.channel import Channel
    from refork.scoreboard import Row


@dataclass(slots=True)
class WorkerProcess:
    """A worker; gunicorn's ``child_exit`` hook gets it as ``worker``.

    ``started`` is on the monotonic clock; ``failure`` is what it said of its own, ``killed`` why the monitor killed it.
    """

    id: int
    slot: int
    generation: int
    row: int
    cells: Row
    channel: Channel
    started: float
    cfg: Any
    log: Any
    pid: int = 0
    promoting: int | None = None
    doomed: bool = False
    aborted: bool = False
    failure: str = ""
    killed: str = ""

    @property
    def age(self) -> int:
        """gunicorn's word for the number of the worker since the server started."""
        return self.id + 1

    def __str__(self) -> str:
        return f"worker[{self.slot}] gen={self.generation} pid={self.pid or '-'}"


@dataclass(slots=True)
class MoldProcess:
    """A mold; ``was`` is the worker it was promoted from."""

    generation: int
    pid: int
    channel: Channel
    started: float
    seal: SealStatus | None = None
    was: WorkerProcess | None = None
    failure: str = ""
    killed: str = ""
    exit_code: int = WORKER_BOOT_ERROR

    def __str__(self) -> str:
        return f"mold gen={self.generation} pid={self.pid}"


@dataclass(slots=True)
class Children:
    """All of them, and the rows of the scoreboard that they hold."""

    rows: int
    workers: dict[int, WorkerProcess] = field(default_factory=dict)
    molds: dict[int, MoldProcess] = field(default_factory=dict)
    _free: list[int] = field(default_factory=list)
    _rows_used: int = 0

    def take_row(self) -> int:
        """Return a row that no process writes to.

        Raises:
            OverflowError: there are more processes than rows.
        """
        if self._free:
            return self._free.pop()
        if self._rows_used == self.rows:
            raise OverflowError(f"more than {self.rows} worker processes at a time")
        self._rows_used += 1
        return self._rows_used - 1

    def release_row(self, row: int) -> None:
        """Give a row back once its process has ended."""
        self._free.append(row)

    def by_pid(self, pid: int) -> WorkerProcess | MoldProcess | None:
        """Return the process with this pid, if it is known by it."""
        return next((process for process in self._all() if process.pid == pid), None)

    def _all(self) -> list[WorkerProcess | MoldProcess]:
        return [*self.workers.values(), *self.molds.values()]

    def unborn(self) -> list[WorkerProcess]:
        """Return the workers that have not said a word."""
        return [worker for worker in self.workers.values() if worker.pid == 0]

    def pids(self) -> list[int]:
        """Return the pids of all processes that are known by theirs."""
        return [process.pid for process in self._all() if process.pid]

    def promote(self, worker: WorkerProcess, generation: int) -> MoldProcess:
        """Take a worker for the mold it has become."""
        del self.workers[worker.id]
        mold = MoldProcess(generation, worker.pid, worker.channel, worker.started, was=worker)
        self.molds[generation] = mold
        return mold
