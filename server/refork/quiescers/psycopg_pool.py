"""psycopg pools: close their connections and end their threads in the mold, open them again in each worker."""

from __future__ import annotations

from functools import partial
from typing import Any

from refork.quiescers import Rest
from refork.quiescers.threads import counted


def quiesce(pools: list[Any]) -> Rest | None:
    """Close the pools that are open, so that they can be opened once more."""
    opened = [pool for pool in pools if not pool.closed]
    for pool in opened:
        pool.close()
        # A pool takes care not to be opened twice. This one has nothing left of its first life.
        pool._opened = False  # noqa: SLF001
        pool._nconns = pool.min_size  # noqa: SLF001
        pool._growing = False  # noqa: SLF001
    if not opened:
        return None
    return Rest(f"closed {counted(len(opened), 'pool')}", wake=partial(_open, opened))


def _open(pools: list[Any]) -> None:
    for pool in pools:
        pool.open()
