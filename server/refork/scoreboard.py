"""A table in shared memory: each worker writes its row, the monitor reads them all.

No message per request and no file per process: a scrape or a heartbeat check reads memory. It is a memfd, so it needs
no writable file system, and it is mapped shared, so a write to it never copies a page. A row belongs to one *process*
at a time and not to a slot, because while a slot changes hands two processes count in it; the monitor adds up.

A row's cells are aligned 64-bit words: on the machines that CPython supports a reader sees an old or a new value, never
half of each.
"""

from __future__ import annotations

import mmap
import os
import time
from enum import IntEnum

ROWS = 4096
CELLS = 8
WORD = 8
SIZE = ROWS * CELLS * WORD


class Cell(IntEnum):
    """What stands where in a row. The heartbeat is ``time.monotonic_ns()``."""

    HEARTBEAT = 0
    REQUESTS = 1
    ERRORS = 2
    IN_FLIGHT = 3


class Row:
    """One worker's counters. Increments are safe among threads that share the GIL."""

    __slots__ = ("_cells",)

    def __init__(self, cells: memoryview) -> None:
        self._cells = cells

    def __getitem__(self, cell: Cell) -> int:
        return int(self._cells[cell])

    def beat(self) -> None:
        """Tell the monitor that the worker is alive."""
        self._cells[0] = time.monotonic_ns()

    def begin(self) -> None:
        """Count a request that is being handled."""
        self._cells[3] += 1

    def end(self, *, error: bool) -> None:
        """Count a request that has been answered; ``error``: with a 5xx, or not at all."""
        cells = self._cells
        cells[3] -= 1
        cells[1] += 1
        if error:
            cells[2] += 1

    def clear(self) -> None:
        """Hand the row to a new process."""
        for cell in range(CELLS):
            self._cells[cell] = 0


class Scoreboard:
    """The table itself. Rows past ``ROWS`` cannot be had."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._cells = memoryview(mmap.mmap(fd, SIZE)).cast("q")

    @classmethod
    def create(cls) -> Scoreboard:
        """Make an empty table."""
        fd = os.memfd_create("refork-scoreboard", os.MFD_CLOEXEC)
        os.ftruncate(fd, SIZE)
        return cls(fd)

    def row(self, number: int) -> Row:
        """Return a row by its number, 0 to ``ROWS`` - 1."""
        return Row(self._cells[number * CELLS : (number + 1) * CELLS])
