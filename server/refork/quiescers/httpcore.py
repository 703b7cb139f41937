"""httpcore, and httpx with it: close idle connections; a pool connects anew when it is next used.

Closing a client of httpx would be for good, closing the pool inside it is not.
"""

from __future__ import annotations

from typing import Any

from refork.quiescers import Rest
from refork.quiescers.threads import counted


def quiesce(pools: list[Any]) -> Rest | None:
    """Close what the pools keep."""
    closed = 0
    for pool in pools:
        closed += len(pool.connections)
        if hasattr(pool, "aclose"):
            # The connections belong to an event loop that has ended: they can only be let go.
            pool._connections = []  # noqa: SLF001
            pool._requests = []  # noqa: SLF001
        else:
            pool.close()
    return Rest(f"closed {counted(closed, 'connection')}") if closed else None
