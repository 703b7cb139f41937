"""What may be read, at either endpoint: the status, the events, the OpenAPI document.

The metrics endpoint serves it to anybody who can reach it, the control endpoint to those who may command.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from refork.answers import Answer, reply
from refork.openapi import document
from refork.streams import Streams

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from refork import api
    from refork.endpoint import Stay
    from refork.events import Events
    from refork.routes import Route
    from refork.web import Application, Request


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

    async def status(self, _: Request) -> Answer:
        """Answer with the status."""
        return reply(self._status())

    async def openapi(self, _: Request) -> Answer:
        """Answer with the document."""
        return Answer(document(self._routes))


def add_routes(app: Application, routes: Sequence[Route], *handlers: object) -> None:
    """Serve routes by the handlers that have their names."""
    for route in routes:
        handler = next(getattr(holder, route.name) for holder in handlers if hasattr(holder, route.name))
        app.add(route.path, handler, name=route.name, methods=(route.method,))
