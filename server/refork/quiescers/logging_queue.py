"""logging.handlers: stop the threads of QueueListeners in the mold, start them in each worker.

What the mold itself logs meanwhile waits in the queue, and is written before each fork, or every worker would write it.
"""

from __future__ import annotations

import contextlib
import queue
import sys
from functools import partial
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
        wake=partial(_start, listeners),
        before_fork=partial(_write, listeners),
    )


def _start(listeners: list[Any]) -> None:
    for listener in listeners:
        listener.start()


def _write(listeners: list[Any]) -> None:
    for listener in listeners:
        with contextlib.suppress(queue.Empty):
            while True:
                listener.handle(listener.dequeue(False))
