"""From a drained worker to a mold: clear away what served, make sure that nothing unsafe to fork is left.

What a fork cannot carry is a thread (it is gone in the child, and so is the hope that it ever releases a lock) and a
connection (two processes that speak on one corrupt it). A worker that still has either when it has drained is not
promoted, and says which.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import stat
import sys
import threading
import time
from typing import TYPE_CHECKING

from refork import channel as wire
from refork.lineage import mold_signals

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refork.mold import Mold
    from refork.worker import Worker

THREAD_PATIENCE = 2.0
"""Seconds for threads that were told to end, an event loop's executor for one, to do so."""


def promote(worker: Worker, generation: int) -> Mold | None:
    """Make a mold of a worker whose loop has ended; None, with the reason sent, if it must not be one."""
    from refork.mold import Mold  # noqa: PLC0415 - the two roles follow each other in turn

    lineage = worker.lineage
    try:
        lineage.cfg.before_promote(worker.gunicorn_worker)
    except Exception as error:
        lineage.log.exception("the hook before_promote failed")
        worker.channel.send(wire.PromotionRefused(wire.clip(f"the hook before_promote failed: {error!r}")))
        return None
    mold_signals(lineage.log)
    _clear(worker)
    found = _findings(ours=worker.channel.fileno())
    if found:
        reason = f"worker[{worker.slot}] is not safe to fork from: {'; '.join(found)}"
        lineage.log.warning("%s", reason)
        worker.channel.send(wire.PromotionRefused(wire.clip(reason)))
        return None
    worker.channel.send(wire.Drained())
    worker.gunicorn_worker = None
    return Mold(lineage, worker.channel, generation, promoted=True)


def _clear(worker: Worker) -> None:
    """Close what gunicorn's worker had open for itself and leaves to the end of the process."""
    signal.set_wakeup_fd(-1)
    for fd in worker.gunicorn_worker.PIPE:
        os.close(fd)
    worker.gunicorn_worker.PIPE = []
    worker.lineage.close_listeners()
    asyncio = sys.modules.get("asyncio")
    if asyncio is not None:
        asyncio.set_event_loop(None)


def _findings(*, ours: int) -> list[str]:
    """What makes a fork unsafe, each in a few words."""
    threads = _threads()
    deadline = time.monotonic() + THREAD_PATIENCE
    while threads and time.monotonic() < deadline:
        time.sleep(0.01)
        threads = _threads()
    connections = list(_connections(ours))
    if connections:
        gc.collect()  # the connection may only be waiting for its last reference cycle to be broken
        connections = list(_connections(ours))
    return threads + connections


def _threads() -> list[str]:
    main = threading.main_thread()
    named = [thread for thread in threading.enumerate() if thread is not main]
    found = [f"thread {thread.name!r} is running" for thread in named]
    native = len(os.listdir("/proc/self/task")) - 1 - len(named)
    if native > 0:
        found.append(f"{native} native thread{'s' if native > 1 else ''} not started by Python")
    return found


def _connections(ours: int) -> Iterator[str]:
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        try:
            if fd == ours or not stat.S_ISSOCK(os.fstat(fd).st_mode):
                continue
            with socket.socket(fileno=os.dup(fd)) as end:
                # Datagrams (syslog, statsd) are whole messages: two processes may send them on one socket.
                if end.type != socket.SOCK_STREAM:
                    continue
                peer = end.getpeername()
        except OSError:
            continue  # closed meanwhile, or not connected
        if isinstance(peer, tuple):
            yield f"connection to {peer[0]}:{peer[1]} is open"
        elif peer:
            shown = peer if isinstance(peer, str) else peer.decode(errors="replace")
            yield f"connection to {shown} is open"
