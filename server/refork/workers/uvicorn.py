"""uvicorn's worker class for gunicorn.

uvicorn closes idle connections the moment it stops, whether or not a request is under way on them, and raises the
signal that stopped it a second time when it is done. Both are put right here; and, if asked to, what lifespan startup
has loaded is carried across the promotion.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import Any

from uvicorn.server import Server

from refork.workers import WORKER_BOOT_ERROR
from refork.workers.counting import counted
from refork.workers.lifespan import KeptLifespan, keep
from refork.workers.sections import sections_left

_CLOSE = (b"connection", b"close")


class _Server(Server):
    """A server that answers what is still under way before it closes anything."""

    def __init__(self, worker: Any) -> None:
        super().__init__(config=worker.config)
        self._worker = worker

    async def startup(self, sockets: Any = None) -> None:
        kept = KeptLifespan.of(self._worker.app.wsgi())
        if kept is not None:
            self.lifespan = kept.for_uvicorn()
        await super().startup(sockets=sockets)

    async def shutdown(self, sockets: Any = None) -> None:
        await self._drain()
        if self._worker.tmp.promoting() and self._worker.cfg.lifespan_keep:
            self._keep_lifespan()
        await super().shutdown(sockets=sockets)

    async def _drain(self) -> None:
        for server in self.servers:
            server.close()
        self.config.encoded_headers.append(_CLOSE)
        self.server_state.default_headers = [*self.server_state.default_headers, _CLOSE]
        deadline = asyncio.get_running_loop().time() + self._worker.cfg.drain_seconds
        # The connections are uvicorn's, and tell nobody of their end.
        while self.server_state.connections and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        await sections_left(self._worker)

    def _keep_lifespan(self) -> None:
        name = type(self.lifespan).main.__qualname__ if hasattr(self.lifespan, "main") else ""
        for task in asyncio.all_tasks():
            if name and getattr(task.get_coro(), "__qualname__", "") == name:
                keep(self._worker.app.wsgi(), task=task, state=self.lifespan.state)
                self.force_exit = True  # skips lifespan shutdown, and nothing else once connections are drained


class Uvicorn:
    """Mixin for ``uvicorn_worker.UvicornWorker``."""

    counts_its_requests = True

    config: Any
    sockets: Any
    tmp: Any
    wsgi: Any

    def init_signals(self) -> None:
        """Let the second SIGTERM do nothing: uvicorn raises it for a supervisor that waits for a death by signal."""
        super().init_signals()  # type: ignore[misc]
        signal.signal(signal.SIGTERM, lambda *_: None)

    async def _serve(self) -> None:
        self.config.app = self.wsgi
        self.config.load()
        self.config.loaded_app = counted(self.config.loaded_app, self.tmp.row)
        server = _Server(self)
        self._install_sigquit_handler()  # type: ignore[attr-defined]
        await server.serve(sockets=self.sockets)
        if not server.started:
            sys.exit(WORKER_BOOT_ERROR)
