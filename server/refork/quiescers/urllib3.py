"""urllib3, and requests with it: close idle connections, and leave them in their pools, where they connect anew."""

from __future__ import annotations

from typing import Any

from refork.quiescers import Rest
from refork.quiescers.threads import counted


def quiesce(pools: list[Any]) -> Rest | None:
    """Close what the pools keep."""
    closed = 0
    for pool in pools:
        kept = pool.pool  # None once the pool itself was closed
        for connection in list(kept.queue) if kept is not None else ():
            if connection is not None and getattr(connection, "sock", None) is not None:
                connection.close()
                closed += 1
    return Rest(f"closed {counted(closed, 'connection')}") if closed else None
