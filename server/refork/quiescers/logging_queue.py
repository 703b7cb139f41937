"""logging.handlers: stop the threads of QueueListeners in the mold, start them in each worker.

What the mold itself logs meanwhile waits in the queue, and is written before each fork, or every worker would write it.
"""

from __future__ import annotations

import queue
import sys
from typing import Any

from refork.quiescers import Rest
from refork.quiescers.threads import counted, owner_of, running


def quiesce(_: list[Any]) -> Rest | None:
    """Stop them: what waits in their queues is written first."""
    kind = sys.modules["logging.handlers"].QueueListener
    listeners = [owner for thread in running() if isinstance(owner := owner_of(thread), kind)]
    for listener in listeners:
        listener.stop()
    if not listeners:
        return None
    return Rest(
        f"stopped {counted(len(listeners), 'listener')}",
        wake=lambda: [listener.start() for listener in listeners],
        before_fork=lambda: [_write(listener) for listener in listeners],
    )


def _write(listener: Any) -> None:
    while True:
        try:
            record = listener.dequeue(False)
        except queue.Empty:
            return
        listener.handle(record)
