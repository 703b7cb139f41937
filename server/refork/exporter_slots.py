"""Which slot a worker of a foreign server has: a number that outlives it, so that series do.

Pure. A server that does not tell has slots all the same: as many as it has workers at once. Who comes takes the lowest
that is free, the oldest first; who goes leaves it. A worker that replaces another goes on with its series.
"""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from refork.prefork import Entry

    type Slots = Mapping[tuple[int, int], int]


def assign(workers: Iterable[Entry], *, before: Slots) -> Slots:
    """Give each worker, by its identity, the slot that it had ``before``, or one that nobody has any more."""
    ordered = sorted(workers, key=lambda worker: (worker.started, worker.pid))
    known = {worker.identity: before[worker.identity] for worker in ordered if worker.identity in before}
    taken = frozenset(known.values())
    free = (slot for slot in count() if slot not in taken)
    return known | {worker.identity: next(free) for worker in ordered if worker.identity not in known}
