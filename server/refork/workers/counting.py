"""Count the requests of an ASGI application from around it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from refork.workers import SERVER_ERROR

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
        failed = False

        def observing(message: Event) -> Awaitable[None]:
            nonlocal failed
            if "status" in message:  # it begins a response, or is a hint (1xx) before that
                failed = message["status"] >= SERVER_ERROR
            return send(message)

        row.begin()
        try:
            await app(scope, receive, observing)
        except Exception:
            failed = True
            raise
        finally:
            if failed:
                row.fail()
            row.end()

    return counting
