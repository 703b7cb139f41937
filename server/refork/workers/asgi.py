"""gunicorn's own ASGI worker.

Three things are added: it notices a stop at once instead of with its next heartbeat; idle keep-alive connections are
closed after ``drain_seconds`` instead of holding up the drain; and, if asked to, what lifespan startup has loaded is
carried across the promotion.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from gunicorn.asgi.protocol import ASGIProtocol
from gunicorn.workers import gasgi

from refork.workers.counting import counted
from refork.workers.lifespan import KeptLifespan, keep

if TYPE_CHECKING:
    from collections.abc import Iterable


class _Protocol(ASGIProtocol):  # type: ignore[misc]
    """A connection that its worker knows of, so that it can be told to end."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.worker.connections.add(self)
        super().connection_made(transport)


# The class looks its protocol up in its module; there is no other way to say which.
gasgi.ASGIProtocol = _Protocol


class Asgi:
    """Mixin for ``gunicorn.workers.gasgi.ASGIWorker``."""

    counts_its_requests = True

    asgi: Any
    cfg: Any
    lifespan: Any
    loop: asyncio.AbstractEventLoop
    servers: Iterable[Any]
    state: dict[str, Any]
    tmp: Any
    _main: asyncio.Task[Any] | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.connections: WeakSet[_Protocol] = WeakSet()

    def load_wsgi(self) -> None:
        """Load the application, and count its requests."""
        super().load_wsgi()  # type: ignore[misc]
        kept = KeptLifespan.of(self.asgi)
        if kept is not None:
            self.state.update(kept.state)
            self.asgi = kept.without_lifespan(self.asgi)
        self.asgi = counted(self.asgi, self.tmp.row)

    def handle_exit_signal(self) -> None:
        """Stop, and wake up from the sleep between two heartbeats: the loop takes a cancellation for a stop."""
        super().handle_exit_signal()  # type: ignore[misc]
        if self.servers and self._main is not None:
            self._main.cancel()

    async def _serve(self) -> None:
        self._main = asyncio.current_task()
        await super()._serve()  # type: ignore[misc]

    async def _shutdown(self) -> None:
        self._main = None
        linger = self.loop.call_later(self.cfg.drain_seconds, self._close_idle)
        if self.tmp.promoting() and self.cfg.lifespan_keep and self.lifespan is not None:
            keep(self.app.wsgi(), task=self.lifespan._task, state=self.state)  # type: ignore[attr-defined]  # noqa: SLF001
            self.lifespan = None
        await super()._shutdown()  # type: ignore[misc]
        linger.cancel()

    def _close_idle(self) -> None:
        for connection in list(self.connections):
            if connection._keepalive_handle is not None:  # noqa: SLF001 - armed exactly while it is idle
                connection._keepalive_timeout()  # noqa: SLF001
