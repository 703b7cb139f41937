"""Tells whoever listens what happens in the server, and lets no listener hold anything up.

The monitor publishes; a listener has a short queue of its own. One that does not take what it is sent is dropped, not
waited for. When nobody listens, publishing costs nothing. An event is encoded once, however many listen.

The module knows no HTTP but the form of an event (server-sent events, of the HTML standard). ``refork.streams`` has
the rest.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

import msgspec

from refork import api

if TYPE_CHECKING:
    from collections.abc import Iterable

MOST_WAITING = 64
"""So many events may wait for a listener."""

_NAMES = {shape: name for name, shape in api.EVENTS.items()}


class Dropped(Exception):
    """This listener is too slow."""


def frame(event: msgspec.Struct) -> bytes:
    """Write one of ``api.EVENTS`` as it goes out; JSON has no line breaks of its own."""
    return b"event: %s\ndata: %s\n\n" % (_NAMES[type(event)].encode(), msgspec.json.encode(event))


class Listener:
    """A queue that one listener takes from."""

    def __init__(self, first: Iterable[bytes] = ()) -> None:
        self._waiting: deque[bytes] = deque(first)
        self._arrived = asyncio.Event()
        self._dropped = False
        self._closed = False

    def offer(self, frame: bytes) -> None:
        """Add an event, or give the listener up."""
        if len(self._waiting) >= MOST_WAITING:
            self._dropped = True
            self._waiting.clear()
        else:
            self._waiting.append(frame)
        self._arrived.set()

    def close(self) -> None:
        """Let the listener go once it has taken what waits."""
        self._closed = True
        self._arrived.set()

    async def take(self, *, within: float) -> bytes | None:
        """Wait for what there is to send: empty when nothing came in time, None when there is nothing more to come.

        Raises:
            Dropped: too much was waiting.
        """
        try:
            async with asyncio.timeout(within):
                await self._arrived.wait() if not self._waiting else None
        except TimeoutError:
            return b""
        if self._dropped:
            raise Dropped
        self._arrived.clear()
        taken = b"".join(self._waiting)
        self._waiting.clear()
        if self._closed:
            self._arrived.set()
            return taken or None
        return taken


class Events:
    """What happens, for everybody who listens."""

    def __init__(self) -> None:
        self._listeners: set[Listener] = set()

    @property
    def heard(self) -> bool:
        """Whether anybody listens."""
        return bool(self._listeners)

    def publish(self, event: msgspec.Struct) -> None:
        """Tell everybody: one of the types in ``api.EVENTS``."""
        if not self._listeners:
            return
        written = frame(event)
        for listener in self._listeners:
            listener.offer(written)

    def listen(self, first: msgspec.Struct) -> Listener:
        """Begin to listen; ``first`` comes before everything else."""
        listener = Listener([frame(first)])
        self._listeners.add(listener)
        return listener

    def leave(self, listener: Listener) -> None:
        """Listen no more."""
        self._listeners.discard(listener)
