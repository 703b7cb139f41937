"""Thread pools of concurrent.futures (also asyncio's and asgiref's): wait for their threads to end, keep the pools.

A pool whose threads have ended, and that has been told to forget them, starts new ones with the next call.
"""

from __future__ import annotations

import queue
import sys
import threading
from typing import Any

from refork.quiescers import Rest
from refork.quiescers.threads import counted, ended, running

SECONDS_TO_END = 5.0


def quiesce(_: list[Any]) -> Rest | None:
    """End the threads of all pools that are in use."""
    pools = _pools_with_threads()
    rested = [pool for pool in pools if _rest(pool)]
    if not pools:
        return None
    return Rest(f"ended the threads of {counted(len(rested), 'pool')} of {len(pools)}")


def _pools_with_threads() -> list[Any]:
    known = sys.modules["concurrent.futures.thread"]._threads_queues  # noqa: SLF001 - there is no other way from here
    pools: dict[int, Any] = {}
    for thread in running():
        if thread not in known:
            continue
        arguments = getattr(thread, "_args", None)
        pool = arguments[0]() if arguments else None  # a weak reference
        if pool is not None and not pool._shutdown:  # noqa: SLF001 - one that was shut down ends by itself
            pools[id(pool)] = pool
    return list(pools.values())


def _rest(pool: Any) -> bool:
    threads = list(pool._threads)  # noqa: SLF001
    pool.shutdown(wait=False)
    if not ended(threads, seconds=SECONDS_TO_END):
        return False
    while True:
        try:
            pool._work_queue.get_nowait()  # noqa: SLF001 - the word to end, which each thread passed on
        except queue.Empty:
            break
    pool._threads.clear()  # noqa: SLF001
    pool._idle_semaphore = threading.Semaphore(0)  # noqa: SLF001
    pool._shutdown = False  # noqa: SLF001
    return True
