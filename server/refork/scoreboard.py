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
    """What stands where in a row. The heartbeat is ``time.monotonic_ns()``; requests and errors are answered ones."""

    HEARTBEAT = 0
    REQUESTS = 1
    ERRORS = 2
    IN_FLIGHT = 3


class Row:
    """One process's row: it writes, the monitor reads.

    What it counts it keeps itself as well, because to read a cell takes longer than to write one, and this is done for
    each request. Increments are safe among threads that share the GIL: nothing that is done to one lets go of it.
    """

    __slots__ = ("_answered", "_cells", "_failed", "_in_flight")

    def __init__(self, cells: memoryview) -> None:
        self._cells = cells
        self._in_flight = self._answered = self._failed = 0

    def __getitem__(self, cell: Cell) -> int:
        return int(self._cells[cell])

    def beat(self) -> None:
        """Tell the monitor that the worker is alive."""
        self._cells[0] = time.monotonic_ns()

    def begin(self) -> None:
        """Count a request that is being handled."""
        self._in_flight += 1
        self._cells[3] = self._in_flight

    def end(self) -> None:
        """Count a request that has been handled."""
        self._in_flight -= 1
        self._cells[3] = self._in_flight
        self.answer()

    def answer(self) -> None:
        """Count an answer."""
        self._answered += 1
        self._cells[1] = self._answered

    def fail(self) -> None:
        """Count that a request is answered with a 5xx, or not at all."""
        self._failed += 1
        self._cells[2] = self._failed

    def see(self, in_flight: int) -> None:
        """Take it from who knows them that so many requests are being handled."""
        self._in_flight = in_flight
        self._cells[3] = in_flight

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
