"""An HTTP endpoint that a monitor can afford: small until it is used, and no client's trouble is another's.

The monitor keeps workers alive; answering questions is what it does besides. So:

- What speaks HTTP (uvicorn's protocol, and the application behind it) is loaded by the first client that may ask
  something, not at boot.
- Who may ask is decided before a byte is read, from the credentials that the kernel recorded when the client connected
  (unix(7), SO_PEERCRED). A stranger is told so in one fixed answer; nothing of what it sends is parsed.
- One request a connection, and a few seconds for all of it. A client that is slow, silent or endless is cut off.
- Seats are limited. When all are taken, the one that sat longest goes: it is the one that hangs. Strangers have seats
  of their own, and cannot take those of others.
- A TLS handshake is a part of those few seconds, in a seat: a client that does not finish it is like any other.

This module knows sockets and connections. It knows no routes, no commands and no metrics.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from refork.bind import BACKLOG
from refork.process import give_memory_back

if TYPE_CHECKING:
    from collections.abc import Callable

    from refork.tls import Certificates
    from refork.web import Application
    from refork.web_server import WebServer

    type Stay = Callable[[asyncio.BaseTransport, Callable[[], None]], None]

SECONDS_TO_ASK_AND_BE_ANSWERED = 10.0
SECONDS_TO_FINISH_AT_STOP = 1.0
SEATS = 64

_UCRED = struct.Struct("3i")

_TURNED_AWAY = b'{"error":"only root and the user that runs the server may use this socket"}'
_TURNED_AWAY_ANSWER = (
    b"HTTP/1.1 403 Forbidden\r\nContent-Type: application/json\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(_TURNED_AWAY), _TURNED_AWAY)
)


class Log(Protocol):
    """The part of a logger that the endpoints use; gunicorn's and the standard library's both have it."""

    def info(self, msg: str, /, *args: object) -> None:
        """Write what is as it should be."""

    def warning(self, msg: str, /, *args: object) -> None:
        """Write what was refused."""

    def error(self, msg: str, /, *args: object) -> None:
        """Write what should not have happened."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Who connected, according to the kernel. ``pid`` is 0 for a process outside our pid namespace."""

    pid: int
    uid: int


def peer_of(transport: asyncio.BaseTransport) -> Peer | None:
    """Ask the kernel who is at the other end; None where it cannot know (TCP)."""
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family != socket.AF_UNIX:
        return None
    pid, uid, _ = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return Peer(pid=pid, uid=uid)


class Lines:
    """How many lines of a log others may cause: some at once, then one a second, and how many there were besides."""

    def __init__(self, *, at_once: int = 20) -> None:
        self._at_once = at_once
        self._left = float(at_once)
        self._asked_at = 0.0
        self._missed = 0

    def allow(self, now: float) -> bool:
        """Whether there may be a line now."""
        self._left = min(float(self._at_once), self._left + max(0.0, now - self._asked_at))
        self._asked_at = now
        if self._left < 1:
            self._missed += 1
            return False
        self._left -= 1
        return True

    def take_missed(self) -> int:
        """Return how many lines there could not be since this was asked last."""
        missed, self._missed = self._missed, 0
        return missed


def anyone(_: Peer | None) -> bool:
    """Let everybody in: for what is read-only."""
    return True


class _Seats:
    """A limited number of connections; a new one sends away the one that sat longest."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken: dict[asyncio.Transport, None] = {}

    def take(self, transport: asyncio.Transport) -> None:
        self._taken[transport] = None
        if len(self._taken) > self._limit:
            longest = next(iter(self._taken))
            self.leave(longest)
            longest.abort()

    def leave(self, transport: asyncio.Transport) -> None:
        self._taken.pop(transport, None)

    def clear(self) -> None:
        for transport in list(self._taken):
            transport.abort()
        self._taken.clear()


class _Seated(asyncio.Protocol):
    """A connection that has a seat and a deadline."""

    def __init__(self, seats: _Seats) -> None:
        self._seats = seats
        self._transport: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._seats.take(transport)
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(SECONDS_TO_ASK_AND_BE_ANSWERED, transport.abort)

    def get_up(self) -> None:
        """Give the seat back, and with it the deadline."""
        if self._deadline is not None:
            self._deadline.cancel()
        if self._transport is not None:
            self._seats.leave(self._transport)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self.get_up()
        self._transport = None


class _Stranger(_Seated):
    """Somebody who may not ask: hears so after the first word, whatever the word."""

    def data_received(self, data: bytes) -> None:
        del data
        if self._transport is not None:
            self._transport.write(_TURNED_AWAY_ANSWER)
            self._transport.close()


class _Guest(_Seated):
    """Somebody who may ask: every event goes on to what speaks HTTP."""

    def __init__(self, seats: _Seats, *, endpoint: Endpoint) -> None:
        super().__init__(seats)
        self._endpoint = endpoint
        self.shown: asyncio.BaseTransport | None = None
        self.gone: Callable[[], None] = lambda: None
        self._inner: asyncio.Protocol | None = None
        self._welcome: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if self._transport is not None:
            self._transport.pause_reading()
            self._welcome = asyncio.get_running_loop().create_task(self._hand_over())

    async def _hand_over(self) -> None:
        shown = await self._transport_for_inner()
        inner = None if shown is None else self._endpoint.protocol(shown)
        if self._transport is None:
            return
        if shown is None or inner is None:
            self._transport.abort()
            return
        self._inner = inner
        self._endpoint.hand_over(shown, self)
        inner.connection_made(shown)
        shown.resume_reading()

    async def _transport_for_inner(self) -> asyncio.Transport | None:
        return self._transport

    def data_received(self, data: bytes) -> None:
        if self._inner is not None:
            self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received() if self._inner is not None else None

    def pause_writing(self) -> None:
        if self._inner is not None:
            self._inner.pause_writing()

    def resume_writing(self) -> None:
        if self._inner is not None:
            self._inner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._endpoint.lost(self)
        if self._inner is not None:
            self._inner.connection_lost(exc)


class _EncryptedGuest(_Guest):
    """Somebody who has to speak TLS first. What follows the handshake at once waits for what speaks HTTP."""

    def __init__(self, seats: _Seats, *, endpoint: Endpoint, certificates: Certificates) -> None:
        super().__init__(seats, endpoint=endpoint)
        self._certificates = certificates
        self._early = bytearray()

    async def _hand_over(self) -> None:
        await super()._hand_over()
        if self._inner is not None and self._early:
            self._inner.data_received(bytes(self._early))
            self._early.clear()

    async def _transport_for_inner(self) -> asyncio.Transport | None:
        raw = self._transport
        if raw is None:
            return None
        loop = asyncio.get_running_loop()
        try:
            shown = await loop.start_tls(raw, self, self._certificates.context(), server_side=True)
        except (OSError, TimeoutError) as error:  # ssl.SSLError is an OSError
            self._endpoint.handshake_failed(raw, error)
            raw.abort()
            # Where the connection was lost in the handshake, the protocol behind it is not told.
            self.connection_lost(None)
            return None
        if shown is not None:
            shown.pause_reading()
        return shown

    def data_received(self, data: bytes) -> None:
        if self._inner is None:
            self._early += data
        else:
            super().data_received(data)


class _Doorman(asyncio.Protocol):
    """Looks at who connected, and shows them to a seat."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        seated = self._endpoint.seat(peer_of(transport))
        transport.set_protocol(seated)
        seated.connection_made(transport)


class Endpoint:
    """One listening socket with one web application behind it.

    Args:
        build: makes the application, when the first client comes.
        log: hears of an application that cannot be made.
        admit: who may ask.
        turned_away: is told of each one who may not.
        certificates: what TLS is spoken with; none, no TLS.
    """

    def __init__(
        self,
        build: Callable[[], Application],
        *,
        log: Log,
        admit: Callable[[Peer | None], bool] = anyone,
        turned_away: Callable[[Peer | None], None] = lambda _: None,
        certificates: Certificates | None = None,
    ) -> None:
        self._build = build
        self._log = log
        self._admit = admit
        self._turned_away = turned_away
        self._certificates = certificates
        self._seated: dict[asyncio.BaseTransport, _Guest] = {}
        self._staying: dict[_Guest, asyncio.BaseTransport] = {}
        self._guests = _Seats(SEATS)
        self._strangers = _Seats(SEATS)
        self._lines = Lines()
        self._web: WebServer | None = None
        self._server: asyncio.Server | None = None
        self._file: tuple[str, os.stat_result] | None = None

    async def start(self, sock: socket.socket) -> None:
        """Serve a listening socket, which is ours from now on."""
        name = sock.getsockname()
        if sock.family == socket.AF_UNIX and isinstance(name, str):
            self._file = (name, os.stat(name))
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Doorman(self), sock=sock, backlog=BACKLOG)

    async def stop(self) -> None:
        """Stop listening, let answers under way go out, leave no file behind."""
        if self._server is None:
            return
        self._server.close()
        self._server = None
        self._remove_file()
        web, self._web = self._web, None
        if web is not None:
            await web.stop(within=SECONDS_TO_FINISH_AT_STOP)
        self._guests.clear()
        self._strangers.clear()
        for transport in list(self._staying.values()):
            assert isinstance(transport, asyncio.Transport)
            transport.abort()

    def stay(self, transport: asyncio.BaseTransport, gone: Callable[[], None]) -> None:
        """Let a connection last, and call ``gone`` at its end: it needs no seat any more.

        Whoever allows that sees to it that there are not many.
        """
        guest = self._seated.get(transport)
        if guest is None:
            gone()
            return
        guest.get_up()
        guest.gone = gone
        self._staying[guest] = transport

    def hand_over(self, transport: asyncio.BaseTransport, guest: _Guest) -> None:
        """Remember by which transport the application knows a guest."""
        guest.shown = transport
        self._seated[transport] = guest

    def lost(self, guest: _Guest) -> None:
        """Forget a guest who has gone."""
        if self._staying.pop(guest, None) is not None:
            guest.gone()
        if guest.shown is not None:
            self._seated.pop(guest.shown, None)

    def handshake_failed(self, transport: asyncio.Transport, error: Exception) -> None:
        """Write down that somebody did not get through the TLS handshake, but let nobody fill the log."""
        if isinstance(error, ssl.SSLError) and self._lines.allow(asyncio.get_running_loop().time()):
            address = (transport.get_extra_info("peername") or ("?",))[0]
            self._log.warning("tls address=%s refused=%s more=%d", address, error.reason, self._lines.take_missed())

    def seat(self, peer: Peer | None) -> _Seated:
        """Decide what to do with a new connection."""
        if self._admit(peer):
            if self._certificates is not None:
                return _EncryptedGuest(self._guests, endpoint=self, certificates=self._certificates)
            return _Guest(self._guests, endpoint=self)
        self._turned_away(peer)
        return _Stranger(self._strangers)

    def protocol(self, transport: asyncio.Transport) -> asyncio.Protocol | None:
        """Make what speaks HTTP on one connection; None when nothing can."""
        if self._server is None:
            return None
        try:
            if self._web is None:
                self._web = _load(self._build)
            return self._web.protocol(transport)
        except Exception as error:  # noqa: BLE001  (a broken installation must not cost the monitor its life)
            self._log.error("endpoint unusable error=%r", error)
            return None

    def _remove_file(self) -> None:
        """Remove the socket's file, unless another server has put its own there since."""
        if self._file is None:
            return
        path, bound = self._file
        self._file = None
        with suppress(OSError):
            if os.path.samestat(os.lstat(path), bound):
                os.unlink(path)


def _load(build: Callable[[], Application]) -> WebServer:
    from refork.web_server import WebServer  # noqa: PLC0415  (see the header: not at boot)

    server = WebServer(build())
    give_memory_back()
    return server
