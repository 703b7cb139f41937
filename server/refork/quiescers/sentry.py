"""Sentry: send what is waiting, end its threads; the SDK starts them again when a worker next has something to say.

The mold has no client: it says nothing.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from refork.quiescers import Rest
from refork.quiescers.threads import counted, ended, owner_of, running, target_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from threading import Thread

SECONDS_TO_SEND = 2.0
SECONDS_TO_END = 2.0
LONGEST_SLEEP = 15.0
"""The health monitor's thread sleeps ten seconds at a time, and cannot be woken."""


def quiesce(_: list[Any]) -> Rest | None:
    """Flush the client, end its threads, leave it as if it had not started them."""
    client = sys.modules["sentry_sdk"].get_client()
    mine = list(_threads())
    if not client.is_active():
        return None
    client.flush(timeout=SECONDS_TO_SEND)
    parts = [part for name in _PARTS if (part := getattr(client, name, None)) is not None]
    for part in parts:
        part.kill()
    worker = getattr(client.transport, "_worker", None)
    if worker is not None:
        worker.kill()
    slept = getattr(getattr(client, "monitor", None), "interval", 0.0)
    if ended(mine, seconds=SECONDS_TO_END + (slept if slept <= LONGEST_SLEEP else 0.0)):
        for part in parts:
            _renew(part)
    # What is logged in the mold would start them again.
    scope = sys.modules["sentry_sdk"].get_global_scope()
    scope.set_client(None)
    return Rest(f"sent what was waiting, ended {counted(len(mine), 'thread')}", wake=partial(scope.set_client, client))


_PARTS = ("session_flusher", "log_batcher", "metrics_batcher", "span_batcher", "metrics_aggregator", "monitor")


def _threads() -> Iterator[Thread]:
    for thread in running():
        module = getattr(target_of(thread), "__module__", None) or type(owner_of(thread)).__module__
        if str(module).startswith("sentry_sdk"):
            yield thread


def _renew(part: Any) -> None:
    """Undo ``kill()``, which is meant for the end of the process."""
    if hasattr(part, "_reset_thread_state"):
        part._reset_thread_state()  # noqa: SLF001 - what the SDK itself does in a forked process
    for name in ("_thread", "_thread_for_pid", "_flusher", "_flusher_pid"):
        if hasattr(part, name):
            setattr(part, name, None)
    if hasattr(part, "_running"):
        part._running = True  # noqa: SLF001
    requested = getattr(part, "_SessionFlusher__shutdown_requested", None)
    if requested is not None:
        requested.clear()
