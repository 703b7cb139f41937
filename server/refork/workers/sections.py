"""Critical sections of tasks: while one is held, the event loop of a worker that is to be promoted goes on.

Afterwards would be too late. The end of the loop cancels all tasks, and a section that was cut short is what holding
one is to prevent.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from refork import fork_safety

SECONDS_TO_CONCLUDE = 4.0
"""So long before the promotion's deadline waiting ends, so that there is time to say why."""

_POLL = 0.01


async def sections_left(worker: Any) -> None:
    """Wait until no section is held; leave those that take too long on the worker as ``sections_cut``."""
    announced = worker.tmp.promotion()
    held = fork_safety.held()
    if announced is None or not held:
        return
    worker.log.info("pid=%s waits for critical sections: %s", worker.pid, ", ".join(held))
    deadline = announced[0].deadline - SECONDS_TO_CONCLUDE
    while fork_safety.held() and time.monotonic() < deadline:  # noqa: ASYNC110 - it may be left in any thread
        await asyncio.sleep(_POLL)
    worker.sections_cut = fork_safety.held()
