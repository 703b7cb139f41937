"""gunicorn's own ASGI worker.

It decides whether a connection is kept when it writes the headers of a response and once more when the response is
complete. A stop in between turns an announced keep-alive into a close, and a client that has sent its next request
loses it. Here a stop begins with a drain: while it lasts the worker counts as alive, a request that is under way is
answered as if nothing were, every later one with ``Connection: close``, and a connection that has been idle for
``drain_seconds`` is closed. All this is done to connections when the drain begins: until then they are gunicorn's own,
and cost what they cost there.

And, if asked to, what lifespan startup has loaded is carried across the promotion.
"""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from gunicorn.asgi.protocol import ASGIProtocol
from gunicorn.workers import gasgi

from refork.workers import SERVER_ERROR
from refork.workers.counting import counted
from refork.workers.lifespan import KeptLifespan, keep
from refork.workers.sections import sections_left

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable

    from refork.workers.counting import Application, Event, Receive, Send

POLL = 0.02
"""Seconds between two looks at what is still open."""


class _Protocol(ASGIProtocol):  # type: ignore[misc]
    """A connection that its worker knows of, and that counts what it answers.

    It counts where a response begins, and who is still under way is asked once in a heartbeat: one function more around
    each request would be a hundredth of all that is done for a small answer. For HTTP/2, whose responses begin
    elsewhere, there is one.
    """

    app: Any
    made = False
    """Whether it is there: with TLS that is only after the handshake."""
    _under_way: Any = None
    """The request that was handled when the drain began: what its response has announced nobody knows."""

    def __init__(self, worker: Any) -> None:
        super().__init__(worker)
        self._row = worker.tmp.row
        worker.connections.add(self)
        if worker.draining:
            self.drain()

    @property
    def serves_http1(self) -> bool:
        """Whether it is open and neither a WebSocket nor HTTP/2, which have an ending of their own."""
        return self.made and not self._conn_lost_handled and self._websocket is None and self.reader is None

    @property
    def in_flight(self) -> int:
        """How many requests it handles."""
        return int(self.serves_http1 and self._current_request is not None) + len(self._h2_tasks)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.made = True
        super().connection_made(transport)

    def _handle_http2_connection(self, *args: Any, **names: Any) -> Coroutine[Any, Any, None]:
        self.app = counted(self.app, self._row)
        return super()._handle_http2_connection(*args, **names)  # type: ignore[no-any-return]

    def _send_response_start(
        self,
        status: int,
        headers: Any,
        request: Any,
        close: bool = False,  # noqa: FBT001, FBT002 - gunicorn's signature
    ) -> None:
        self._row.answer()
        if status >= SERVER_ERROR:
            self._row.fail()
        super()._send_response_start(status, headers, request, close)

    def _send_error_response(self, status: int, *args: Any) -> None:
        if status == SERVER_ERROR:  # the application has given no answer; other errors are of what is no request
            self._row.answer()
            self._row.fail()
        super()._send_error_response(status, *args)

    def drain(self) -> None:
        """Let the response to the next request be the last."""
        self._under_way = self._current_request
        self.__class__ = _Draining


class _Draining(_Protocol):
    """A connection whose worker is to stop."""

    _idle_since: float | None = None

    def _will_close(self, request: Any, response_requires_close: bool) -> bool:  # noqa: FBT001 - gunicorn's signature
        return request is not self._under_way or super()._will_close(request, response_requires_close)

    def close_if_idle(self, *, now: float, longer_than: float) -> None:
        """Close the connection if it has waited for a request for so many seconds, as far as this is called often."""
        if not self._awaiting_request or self._finishing_calls:
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = now
        if self._idle_since is not None and now - self._idle_since >= longer_than:
            self._keepalive_timeout()


# The class looks its protocol up in its module; there is no other way to say which.
gasgi.ASGIProtocol = _Protocol


class Asgi:
    """Mixin for ``gunicorn.workers.gasgi.ASGIWorker``."""

    counts_its_requests = True

    asgi: Any
    cfg: Any
    lifespan: Any
    log: Any
    loop: asyncio.AbstractEventLoop
    max_requests: int
    servers: Iterable[Any] = ()
    state: dict[str, Any]
    tmp: Any
    _main: asyncio.Task[Any] | None = None
    _drainer: asyncio.Task[Any] | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.draining = False
        super().__init__(*args, **kwargs)
        self.connections: WeakSet[_Protocol] = WeakSet()

    def load_wsgi(self) -> None:
        """Load the application; and let it be kept, and its requests be limited."""
        super().load_wsgi()  # type: ignore[misc]
        kept = KeptLifespan.of(self.asgi)
        if kept is not None:
            self.state.update(kept.state)
            self.asgi = kept.without_lifespan(self.asgi)
        if self.max_requests < sys.maxsize:
            self.asgi = self._limited(self.asgi, self.max_requests)
            self.max_requests = sys.maxsize

    def _limited(self, app: Application, left: int) -> Application:
        """Return an application that begins a drain after so many requests: gunicorn's worker would just stop."""

        async def limited(scope: Event, receive: Receive, send: Send) -> None:
            nonlocal left
            try:
                await app(scope, receive, send)
            finally:
                left -= scope["type"] == "http"
                if left <= 0 and not self.draining:
                    self.log.info("Autorestarting worker after current request.")
                    self.handle_exit_signal()

        return limited

    def notify(self) -> None:
        """Beat, and tell of the requests that are being handled."""
        self.tmp.row.see(sum(connection.in_flight for connection in self.connections))
        super().notify()  # type: ignore[misc]

    def handle_exit_signal(self) -> None:
        """Begin to drain; before there is anything to drain, just stop."""
        if self.draining:
            return
        if self._main is None or not self.servers:
            super().handle_exit_signal()  # type: ignore[misc]
            return
        self.draining = True
        for connection in list(self.connections):  # those to come do it by themselves
            connection.drain()
        self._drainer = self.loop.create_task(self._drain(self._main))

    async def _drain(self, main: asyncio.Task[Any]) -> None:
        for server in self.servers:
            server.close()
        began = now = self.loop.time()
        while self._open(handshakes=now < began + self.cfg.drain_seconds) and now < began + self.cfg.graceful_timeout:
            for connection in list(self.connections):
                connection.close_if_idle(now=now, longer_than=self.cfg.drain_seconds)
            await asyncio.sleep(POLL)
            now = self.loop.time()
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
