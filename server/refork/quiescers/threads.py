"""Small questions about threads that several quiescers ask."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable


def running() -> list[threading.Thread]:
    """Return the threads beside the main one."""
    main = threading.main_thread()
    return [thread for thread in threading.enumerate() if thread is not main]


def target_of(thread: threading.Thread) -> Any:
    """Return what the thread runs, while it does."""
    return getattr(thread, "_target", None)


def owner_of(thread: threading.Thread) -> Any:
    """Return the object whose method the thread runs, if it runs one."""
    return getattr(target_of(thread), "__self__", None)


def ended(threads: Iterable[threading.Thread], *, seconds: float) -> bool:
    """Wait for threads that were told to end; whether all have."""
    deadline = time.monotonic() + seconds
    waited = list(threads)
    for thread in waited:
        thread.join(max(0.0, deadline - time.monotonic()))
    return not any(thread.is_alive() for thread in waited)


def counted(number: int, noun: str) -> str:
    """Write a number of things."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
