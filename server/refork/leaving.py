"""How a worker ends: as the interpreter does, unless a native library would then crash.

libuv, which is in uvloop, resolves host names in threads of its own. A process that is forked while they exist makes
new ones when it needs them; but one that never needs them waits, when the library is unloaded, for threads that it does
not have, and dies of it (SIGSEGV). So descendants of such a process end without unloading libraries.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import NoReturn

_CRASHING = frozenset({"libuv-worker"})

_would_crash = False


def look_before_fork() -> None:
    """Note, in a mold, whether its descendants would crash."""
    global _would_crash  # noqa: PLW0603 - it is a fact about the process, and inherited with it
    if not _would_crash:
        _would_crash = any(name in _CRASHING for name in _thread_names())


def leave(status: int) -> NoReturn:
    """End the process."""
    if not _would_crash:
        sys.exit(status)
    threading._shutdown()  # type: ignore[attr-defined]  # noqa: SLF001 - what the interpreter does, in its order
    atexit._run_exitfuncs()  # noqa: SLF001
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    os._exit(status)


def _thread_names() -> list[str]:
    tasks = os.listdir("/proc/self/task")
    return [_name(task) for task in tasks] if len(tasks) > 1 else []


def _name(task: str) -> str:
    try:
        with open(f"/proc/self/task/{task}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().rstrip("\n")
    except OSError:
        return ""
