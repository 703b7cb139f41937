"""What may be read, at either endpoint: the status, the events, the OpenAPI document.

The metrics endpoint serves it to anybody who can reach it, the control endpoint to those who may command.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web

from refork.answers import refuse, reply
from refork.openapi import document
from refork.routes import JSON, READ_ONLY
from refork.streams import Streams

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from refork import api
    from refork.endpoint import Stay
    from refork.events import Events
    from refork.routes import Route


class Readings:
    """Handlers of the routes that change nothing; each has the name of its route."""

    def __init__(
        self,
        status: Callable[[], api.Status],
        events: Events,
        *,
        routes: Sequence[Route],
        stay: Stay,
    ) -> None:
        self._status = status
        self._routes = tuple(routes)
        self._streams = Streams(events, status, stay=stay)
        self.events = self._streams.handle
        self.close = self._streams.close

    async def status(self, _: web.Request) -> web.Response:
        """Answer with the status."""
        return reply(self._status())

    async def openapi(self, _: web.Request) -> web.Response:
        """Answer with the document."""
        return web.Response(body=document(self._routes), content_type=JSON)


def add_routes(app: web.Application, routes: Sequence[Route], *handlers: object) -> None:
    """Serve routes by the handlers that have their names."""
    for route in routes:
        handler = next(getattr(holder, route.name) for holder in handlers if hasattr(holder, route.name))
        app.router.add_route(route.method, route.path, handler)


def add_readings(
    app: web.Application,
    status: Callable[[], api.Status],
    events: Events,
    *,
    stay: Stay,
) -> None:
    """Serve what may be read, and nothing else, to people and pages that come from here."""
    readings = Readings(status, events, routes=READ_ONLY, stay=stay)
    add_routes(app, READ_ONLY, readings)
    app.middlewares.append(_own_pages_only)
    app.on_shutdown.append(readings.close)


@web.middleware
async def _own_pages_only(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Refuse what a page from elsewhere sends: no site that somebody looks at should take a listener's place."""
    origin = request.headers.get("Origin")
    if origin is not None and origin.partition("://")[2] != request.headers.get("Host"):
        return refuse("requests from web pages of other sites are not taken", status=403)
    return await handler(request)
