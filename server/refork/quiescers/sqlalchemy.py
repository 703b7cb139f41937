"""SQLAlchemy: dispose of the connections of all engines; an engine makes a new pool when it is next used."""

from __future__ import annotations

from typing import Any

from refork.quiescers import Rest
from refork.quiescers.threads import counted


def quiesce(engines: list[Any]) -> Rest | None:
    """Dispose of what they have."""
    used = [engine for engine in engines if _open(engine.pool)]
    for engine in engines:
        # The connections of an asynchronous engine belong to a loop that has ended: they can only be let go.
        engine.dispose(close=not getattr(engine.dialect, "is_async", False))
    return Rest(f"disposed of the connections of {counted(len(used), 'engine')}") if used else None


def _open(pool: Any) -> bool:
    checked_in = getattr(pool, "checkedin", None)
    return checked_in is None or checked_in() > 0
