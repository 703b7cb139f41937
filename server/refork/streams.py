"""``GET /v1/events``: what the monitor publishes, sent to whoever keeps the connection open.

A stream outlives the seconds that a request has, so it gives its seat back and takes one of a few places of its own.
It ends by itself after a quarter of an hour, because whoever was let in then may not be let in now; clients come back
by themselves (that is what server-sent events do). A client that reads too slowly is cut off.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from refork.answers import fields
from refork.api import Refusal
from refork.events import Dropped
from refork.routes import STREAM

if TYPE_CHECKING:
    from collections.abc import Callable

    from refork import api
    from refork.endpoint import Stay
    from refork.events import Events, Listener
    from refork.web import Request

PLACES = 32
SECONDS_BETWEEN_SIGNS_OF_LIFE = 15.0
SECONDS_TO_TAKE_AN_EVENT = 10.0
SECONDS_A_STREAM_LASTS = 900.0
MILLISECONDS_TO_COME_BACK = 2000

_SIGN_OF_LIFE = b":\n\n"
_FIELDS = fields({"Content-Type": STREAM, "Cache-Control": "no-store", "X-Accel-Buffering": "no"})


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

    async def handle(self, request: Request) -> None:
        """Answer with events until the client goes, or has to go."""
        if len(self._open) >= PLACES:
            soon = MILLISECONDS_TO_COME_BACK / 1000
            raise Refusal(f"{PLACES} clients listen already", status=503, retry_after=soon)
        listener = self._events.listen(self._status())
        self._open.add(listener)
        try:
            await self._stream(request, listener)
        finally:
            self._open.discard(listener)
            self._events.leave(listener)

    def close(self) -> None:
        """Let all listeners go: the server stops."""
        for listener in self._open:
            listener.close()

    async def _stream(self, request: Request, listener: Listener) -> None:
        await request.begin(200, _FIELDS)
        self._stay(request.transport, listener.close)
        try:
            async with asyncio.timeout(SECONDS_A_STREAM_LASTS):
                await _send(request, listener)
        except (Dropped, TimeoutError):
            request.transport.abort()
        else:
            await request.end()


async def _send(request: Request, listener: Listener) -> None:
    await request.write(b"retry: %d\n\n" % MILLISECONDS_TO_COME_BACK)
    while (taken := await listener.take(within=SECONDS_BETWEEN_SIGNS_OF_LIFE)) is not None:
        async with asyncio.timeout(SECONDS_TO_TAKE_AN_EVENT):
            await request.write(taken or _SIGN_OF_LIFE)
