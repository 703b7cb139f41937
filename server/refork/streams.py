"""``GET /v1/events``: what the monitor publishes, sent to whoever keeps the connection open.

A stream outlives the seconds that a request has, so it gives its seat back and takes one of a few places of its own.
It ends by itself after a quarter of an hour, because whoever was let in then may not be let in now; clients come back
by themselves (that is what server-sent events do). A client that reads too slowly is cut off.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from aiohttp import web

from refork.answers import refuse
from refork.events import Dropped
from refork.routes import STREAM

if TYPE_CHECKING:
    from collections.abc import Callable

    from refork import api
    from refork.endpoint import Stay
    from refork.events import Events, Listener

PLACES = 32
SECONDS_BETWEEN_SIGNS_OF_LIFE = 15.0
SECONDS_TO_TAKE_AN_EVENT = 10.0
SECONDS_A_STREAM_LASTS = 900.0
MILLISECONDS_TO_COME_BACK = 2000

_SIGN_OF_LIFE = b":\n\n"


class Streams:
    """The streams of one endpoint.

    Args:
        events: what is published.
        status: makes the first event of each stream.
        stay: is told of a connection that may keep open.
    """

    def __init__(self, events: Events, status: Callable[[], api.Status], *, stay: Stay) -> None:
        self._events = events
        self._status = status
        self._stay = stay
        self._open: set[Listener] = set()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer with events until the client goes, or has to go."""
        if len(self._open) >= PLACES:
            return refuse(f"{PLACES} clients listen already", status=503, retry_after=MILLISECONDS_TO_COME_BACK / 1000)
        listener = self._events.listen(self._status())
        self._open.add(listener)
        try:
            return await self._stream(request, listener)
        finally:
            self._open.discard(listener)
            self._events.leave(listener)

    async def close(self, _: web.Application) -> None:
        """Let all listeners go: the server stops."""
        for listener in self._open:
            listener.close()

    async def _stream(self, request: web.Request, listener: Listener) -> web.StreamResponse:
        headers = {"Content-Type": STREAM, "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        response = web.StreamResponse(headers=headers)
        response.force_close()
        await response.prepare(request)
        if request.transport is not None:
            self._stay(request.transport, listener.close)
        try:
            async with asyncio.timeout(SECONDS_A_STREAM_LASTS):
                await self._send(response, listener)
        except (Dropped, TimeoutError, ConnectionError):
            if request.transport is not None:
                request.transport.abort()
        return response

    async def _send(self, response: web.StreamResponse, listener: Listener) -> None:
        await response.write(b"retry: %d\n\n" % MILLISECONDS_TO_COME_BACK)
        while (taken := await listener.take(within=SECONDS_BETWEEN_SIGNS_OF_LIFE)) is not None:
            async with asyncio.timeout(SECONDS_TO_TAKE_AN_EVENT):
                await response.write(taken or _SIGN_OF_LIFE)
