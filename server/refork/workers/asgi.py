"""gunicorn's own ASGI worker.

It decides whether a connection is kept when it writes the headers of a response and once more when the response is
complete. A stop in between turns an announced keep-alive into a close, and a client that has sent its next request
loses it. Here a stop begins with a drain: while it lasts the worker counts as alive, every response that begins
announces ``Connection: close``, and what was announced is kept to. Idle connections are closed after ``drain_seconds``.

And, if asked to, what lifespan startup has loaded is carried across the promotion.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from gunicorn.asgi.protocol import ASGIProtocol
from gunicorn.workers import gasgi

from refork.workers.counting import counted
from refork.workers.lifespan import KeptLifespan, keep
from refork.workers.sections import sections_left

if TYPE_CHECKING:
    from collections.abc import Iterable

POLL = 0.02
"""Seconds between two looks at what is still open."""


class _Protocol(ASGIProtocol):  # type: ignore[misc]
    """A connection that its worker knows of, and that decides once a request whether it is to be closed."""

    _decided: Any = None
    _closing = False
    made = False
    """Whether it is there: with TLS that is only after the handshake."""

    def __init__(self, worker: Any) -> None:
        super().__init__(worker)
        worker.connections.add(self)

    @property
    def serves_http1(self) -> bool:
        """Whether it is open and neither a WebSocket nor HTTP/2, which have an ending of their own."""
        return self.made and not self._conn_lost_handled and self._websocket is None and self.reader is None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.made = True
        super().connection_made(transport)

    def _will_close(self, request: Any, response_requires_close: bool) -> bool:  # noqa: FBT001 - gunicorn's signature
        if self._decided is not request:
            self._decided, self._closing = request, self.worker.draining
        return self._closing or super()._will_close(request, response_requires_close)

    def close_if_idle(self) -> None:
        """Close the connection if it waits for a request."""
        if self._awaiting_request and not self._finishing_calls:
            self._keepalive_timeout()


# The class looks its protocol up in its module; there is no other way to say which.
gasgi.ASGIProtocol = _Protocol


class Asgi:
    """Mixin for ``gunicorn.workers.gasgi.ASGIWorker``."""

    counts_its_requests = True

    asgi: Any
    cfg: Any
    lifespan: Any
    loop: asyncio.AbstractEventLoop
    servers: Iterable[Any] = ()
    state: dict[str, Any]
    tmp: Any
    _alive = True
    _quick_shutdown = False
    _main: asyncio.Task[Any] | None = None
    _drainer: asyncio.Task[Any] | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.draining = False
        super().__init__(*args, **kwargs)
        self.connections: WeakSet[_Protocol] = WeakSet()

    @property
    def alive(self) -> bool:
        """Whether the serving loop goes on."""
        return self._alive

    @alive.setter
    def alive(self, value: bool) -> None:
        """Let the loop end; at ``max_requests`` gunicorn does so at once, which has to be a drain as any other."""
        if value or self._quick_shutdown or not self._may_drain():
            self._alive = value
        else:
            self.handle_exit_signal()

    def _may_drain(self) -> bool:
        return bool(self.servers) and self._main is not None and not self.draining

    def load_wsgi(self) -> None:
        """Load the application, and count its requests."""
        super().load_wsgi()  # type: ignore[misc]
        kept = KeptLifespan.of(self.asgi)
        if kept is not None:
            self.state.update(kept.state)
            self.asgi = kept.without_lifespan(self.asgi)
        self.asgi = counted(self.asgi, self.tmp.row)

    def handle_exit_signal(self) -> None:
        """Begin to drain; before there is anything to drain, just stop."""
        if self._main is not None and self._may_drain():
            self.draining = True
            self._drainer = self.loop.create_task(self._drain(self._main))
        elif not self.draining:
            super().handle_exit_signal()  # type: ignore[misc]

    async def _drain(self, main: asyncio.Task[Any]) -> None:
        for server in self.servers:
            server.close()
        self.loop.call_later(self.cfg.drain_seconds, self._close_idle)
        now = self.loop.time()
        while self._open(handshakes=self.loop.time() < now + self.cfg.drain_seconds):
            if self.loop.time() >= now + self.cfg.graceful_timeout:
                break
            await asyncio.sleep(POLL)
        await sections_left(self)
        self.alive = False
        main.cancel()  # the serving loop takes it for the end of its sleep between two heartbeats

    def _open(self, *, handshakes: bool) -> bool:
        """Whether there is a connection to wait for; one in its handshake may never come to be one."""
        return any(each.serves_http1 or (handshakes and not each.made) for each in self.connections)

    async def _serve(self) -> None:
        self._main = asyncio.current_task()
        await super()._serve()  # type: ignore[misc]

    async def _shutdown(self) -> None:
        kept = KeptLifespan.of(self.app.wsgi())  # type: ignore[attr-defined]
        if self.tmp.promoting() and self.cfg.lifespan_keep and self.lifespan is not None and kept is None:
            keep(self.app.wsgi(), task=self.lifespan._task, state=self.state)  # type: ignore[attr-defined]  # noqa: SLF001
            self.lifespan = None
        await super()._shutdown()  # type: ignore[misc]

    def _close_idle(self) -> None:
        for connection in list(self.connections):
            connection.close_if_idle()
        if self.draining and self.alive:  # those that were busy may be idle by the next time
            self.loop.call_later(POLL, self._close_idle)
