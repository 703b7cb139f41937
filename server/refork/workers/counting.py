"""Count the requests of an ASGI application from around it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    from refork.scoreboard import Row

    type Event = MutableMapping[str, Any]
    type Receive = Callable[[], Awaitable[Event]]
    type Send = Callable[[Event], Awaitable[None]]
    type Application = Callable[[Event, Receive, Send], Awaitable[None]]


def counted(app: Application, row: Row) -> Application:
    """Return an application that does what ``app`` does and counts its HTTP requests in ``row``."""

    async def counting(scope: Event, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        error = False

        def observing(message: Event) -> Awaitable[None]:
            nonlocal error
            if message["type"] == "http.response.start":
                error = message["status"] >= 500  # noqa: PLR2004 - a status class, not a magic value
            return send(message)

        row.begin()
        try:
            await app(scope, receive, observing)
        except Exception:
            error = True
            raise
        finally:
            row.end(error=error)

    return counting
