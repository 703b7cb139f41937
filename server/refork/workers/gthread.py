"""gunicorn's threaded worker: its pool is shut down but not waited for, and a thread must not live through a fork."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gunicorn.workers import gthread

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor


class Gthread:
    """Mixin: keep idle connections for ``drain_seconds``, and come back without the pool's threads."""

    cfg: Any
    tpool: ThreadPoolExecutor | None

    def run(self) -> None:
        """Serve until asked to stop, then wait for the pool.

        A thread still in a request past ``graceful_timeout`` is waited for too: it is the promotion's deadline, and
        the monitor's kill after it, that ends this, not a fork with a thread in an unknown place.
        """
        gthread.STOP_KEEPALIVE_LINGER = self.cfg.drain_seconds
        super().run()  # type: ignore[misc]
        if self.tpool is not None:
            self.tpool.shutdown(wait=True)
            self.tpool = None
