"""kombu, and Celery with it: close the connections that tasks are sent on; the next task opens new ones.

A connection to Redis comes with an epoll descriptor, and the connection is held outside redis-py's pools.
"""

from __future__ import annotations

import sys
from typing import Any

from refork.quiescers import Rest
from refork.quiescers.threads import counted


def quiesce(_: list[Any]) -> Rest | None:
    """Close what the pools hold, and have Celery ask for new ones; what its result backend holds is redis-py's."""
    pools = sys.modules["kombu.pools"]
    used = [pool for pool in pools._all_pools() if _is_open(pool)]  # noqa: SLF001 - reset() asks for the same
    pools.reset()
    celery = sys.modules.get("celery._state")
    for app in list(celery._get_active_apps()) if celery is not None else ():  # noqa: SLF001 - there is no other way
        app._pool = None  # noqa: SLF001 - as in a process that Celery has forked
        amqp = vars(app).get("amqp")
        if amqp is not None:
            amqp._producer_pool = None  # noqa: SLF001
    return Rest(f"closed {counted(len(used), 'pool')}") if used else None


def _is_open(pool: Any) -> bool:
    return bool(pool._dirty or pool._resource.queue)  # noqa: SLF001 - in public it tells only how many it may hold
