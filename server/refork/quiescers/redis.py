"""redis-py: hang up; a pool connects anew when it is next used.

A forked pool forgets the connections it had, but a subscription goes on with its own: those are looked for as well.
"""

from __future__ import annotations

from typing import Any

from refork.quiescers import Rest
from refork.quiescers.threads import counted


def quiesce(found: list[Any]) -> Rest | None:
    """Disconnect all pools, and what is connected outside of them."""
    pools = [each for each in found if hasattr(each, "make_connection")]
    used = 0
    for pool in pools:
        used += bool(getattr(pool, "_available_connections", ()) or getattr(pool, "_in_use_connections", ()))
        if type(pool).__module__.startswith("redis.asyncio"):
            pool.reset()  # their event loop has ended: they can only be let go
        else:
            pool.disconnect()
    others = [each for each in found if getattr(each, "_sock", None) is not None]
    for connection in others:
        connection.disconnect()
    did = [counted(number, noun) for number, noun in ((used, "pool"), (len(others), "connection")) if number]
    return Rest(f"disconnected {' and '.join(did)}") if did else None
