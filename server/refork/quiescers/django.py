"""Django: close the database connections of this thread, and its connection pools; the next query opens them anew."""

from __future__ import annotations

import sys
from typing import Any

from refork.quiescers import Rest
from refork.quiescers.threads import counted


def quiesce(_: list[Any]) -> Rest | None:
    """Close them all."""
    if not sys.modules["django.conf"].settings.configured:  # loaded, by another library perhaps, but not used
        return None
    connections = sys.modules["django.db"].connections
    used = connections.all(initialized_only=True)
    opened = [connection for connection in used if connection.connection is not None]
    for connection in used:
        connection.close()
        if hasattr(connection, "close_pool"):
            connection.close_pool()
    return Rest(f"closed {counted(len(opened), 'connection')}") if opened else None
