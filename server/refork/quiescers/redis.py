"""redis-py: hang up; a pool connects anew when it is next used."""

from __future__ import annotations

from typing import Any

from refork.quiescers import Rest
from refork.quiescers.threads import counted


def quiesce(pools: list[Any]) -> Rest | None:
    """Disconnect all pools."""
    used = 0
    for pool in pools:
        used += bool(getattr(pool, "_available_connections", ()) or getattr(pool, "_in_use_connections", ()))
        if type(pool).__module__.startswith("redis.asyncio"):
            pool.reset()  # their event loop has ended: they can only be let go
        else:
            pool.disconnect()
    return Rest(f"disconnected {counted(used, 'pool')}") if used else None
