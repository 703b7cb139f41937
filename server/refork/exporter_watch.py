"""Looks around for the server to watch, again and again: it starts late, restarts, and changes its workers.

A look around reads what ``ps`` reads, and costs as little. What is found is kept until the next one, and said in the
log when it changes.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from refork import exporter_access, process_table
from refork.estimate import Role
from refork.exporter_report import Trouble
from refork.exporter_search import Found, State, search
from refork.exporter_slots import assign

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refork.endpoint import Log
    from refork.exporter_slots import Slots
    from refork.prefork import Entry


class Watch:
    """What is known about the server beside us.

    Args:
        own: the pid of the exporter.
        pid: that of the server's master, if somebody has named it.
    """

    def __init__(self, own: int, *, pid: int | None, log: Log) -> None:
        self._own = own
        self._pid = pid
        self._log = log
        self._told: tuple[State, str, tuple[int, int]] | None = None
        self._slots: Slots = {}
        self.found = Found(state=State.SEARCHING, reason="nobody has looked yet")
        self.troubles: Counter[Trouble] = Counter()

    def look(self) -> None:
        """Look around."""
        before = self.master
        self.found = self._search()
        same = before is not None and self.master is not None and before.identity == self.master.identity
        workers = () if self.found.tree is None else self.found.tree.workers
        self._slots = assign(workers, before=self._slots if same else {})
        self._tell()

    @property
    def master(self) -> Entry | None:
        """The master of the server."""
        return None if self.found.tree is None else self.found.tree.master

    @property
    def processes(self) -> tuple[Entry, ...]:
        """All processes of the server, the master first."""
        return () if self.found.tree is None else self.found.tree.processes

    def pids(self) -> tuple[int, ...]:
        """Their numbers."""
        return tuple(process.pid for process in self.processes)

    def places(self) -> Iterator[tuple[Role, int | None, int]]:
        """Tell of each process its role, the slot of a worker, and its pid."""
        tree = self.found.tree
        if tree is None:
            return
        yield Role.MASTER, None, tree.master.pid
        for worker in tree.workers:
            yield Role.WORKER, self._slots[worker.identity], worker.pid
        for other in tree.others:
            yield Role.OTHER, None, other.pid

    def _search(self) -> Found:
        try:
            table = process_table.read()
            hiding = process_table.is_hiding()
        except OSError as error:
            self.troubles[Trouble.UNREADABLE] += 1
            return Found(state=State.SEARCHING, reason=f"/proc cannot be read: {error.strerror}")
        table.pop(self._own, None)
        found = search(table, pid=self._pid, watched=self.master, hiding=hiding)
        if found.tree is None:
            return found
        for process in (found.tree.master, *found.tree.workers):
            obstacle = exporter_access.obstacle(process.pid)
            if obstacle:
                self.troubles[Trouble.FORBIDDEN] += 1
                reason = f"process {process.pid} of {found.tree.server} may not be looked at: {obstacle}"
                return Found(state=State.FORBIDDEN, tree=found.tree, servers=found.servers, reason=reason)
        return found

    def _tell(self) -> None:
        """Write down what has changed; a line is a line as long as it is true."""
        found, master = self.found, self.master
        told = (found.state, found.reason, (0, 0) if master is None else master.identity)
        if told == self._told:
            return
        self._told = told
        note = f" note={found.reason!r}" if found.reason else ""
        if found.state is State.WATCHING and found.tree is not None:
            tree = found.tree
            what = (tree.server, tree.master.pid, len(tree.workers))
            self._log.info("watching server=%s pid=%d workers=%d%s", *what, note)
        else:
            self._log.warning("%s%s", found.state, note)
