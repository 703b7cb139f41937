"""The web application of an endpoint: who may ask is asked first, each address has its handler, all get an answer.

It is a plain ASGI application (https://asgi.readthedocs.io/en/latest/specs/www.html): a dozen addresses need no
framework, and the monitor counts its memory.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from refork.answers import refuse
from refork.api import Refusal

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from refork.answers import Answer
    from refork.endpoint import Log

    type Receive = Callable[[], Awaitable[Mapping[str, Any]]]
    type Send = Callable[[dict[str, Any]], Awaitable[None]]
    type Handler = Callable[[Request], Awaitable[Answer | None]]
    type Guard = Callable[[Request], Awaitable[None]]

SECONDS_TO_HEAR_OUT = 1.0

_PARAMETER = re.compile(r"\\\{(\w+)\\\}")
_VERSIONS = frozenset({"1.0", "1.1"})


class Request:
    """What somebody asks, and the way back to them.

    Attributes:
        name: of the route that it is for.
        parameters: the variable parts of the path.
        who: names who asks, once that is known.
        transport: the connection.
    """

    def __init__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._more = True
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.transport: asyncio.Transport = scope["state"]["transport"]
        self.name = "unknown"
        self.parameters: dict[str, str] = {}
        self.who = ""

    @property
    def address(self) -> str:
        """Where it comes from; empty for a unix socket."""
        client = self._scope["client"]
        return client[0] if client else ""

    @property
    def ambiguous(self) -> bool:
        """Whether another reader could read it otherwise: it says its length twice, or is no HTTP/1."""
        both = self.header("content-length") is not None and self.header("transfer-encoding") is not None
        return both or self._scope["http_version"] not in _VERSIONS

    def headers(self, name: str) -> list[str]:
        """Return the values of all headers of this name, which is in small letters."""
        wanted = name.encode()
        return [value.decode("latin-1") for found, value in self._scope["headers"] if found == wanted]

    def header(self, name: str) -> str | None:
        """Return the value of the first header of this name."""
        return next(iter(self.headers(name)), None)

    async def body(self, *, limit: int) -> bytes:
        """Read the body.

        Raises:
            Refusal: it is too large.
            ConnectionError: the client has gone.
        """
        body = bytearray()
        while self._more:
            body += await self._part()
            if len(body) > limit:
                raise Refusal(f"the body has more than {limit} bytes", status=413)
        return bytes(body)

    async def answer(self, answer: Answer) -> None:
        """Send all of an answer."""
        await self.begin(answer.status, answer.fields())
        await self.write(answer.body)
        with suppress(TimeoutError):
            # A client that still sends when the connection is closed may lose the answer to that (RFC 9112, 9.6).
            async with asyncio.timeout(SECONDS_TO_HEAR_OUT):
                while self._more:
                    await self._part()
        await self.end()

    async def begin(self, status: int, fields: list[tuple[bytes, bytes]]) -> None:
        """Send the head of an answer."""
        await self._send({"type": "http.response.start", "status": status, "headers": fields})

    async def write(self, part: bytes) -> None:
        """Send a part of the body, when the client has taken the parts before it."""
        await self._send({"type": "http.response.body", "body": part, "more_body": True})

    async def end(self) -> None:
        """Send the end of the body."""
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _part(self) -> bytes:
        message = await self._receive()
        self._more = message.get("more_body", False)
        if message["type"] == "http.disconnect":
            raise ConnectionResetError("the client has gone")
        part: bytes = message["body"]
        return part


class Application:
    """Some addresses and their handlers.

    Args:
        guard: sees every request first, and raises ``Refusal`` for one that goes no further.
        close: is called when the server stops, to end what would not end by itself.
        log: hears of bugs.
    """

    def __init__(self, *, guard: Guard, close: Callable[[], None], log: Log) -> None:
        self._guard = guard
        self._log = log
        self._places: dict[re.Pattern[str], dict[str, tuple[str, Handler]]] = {}
        self.close = close

    def add(self, path: str, handler: Handler, *, name: str, methods: tuple[str, ...]) -> None:
        """Serve an address; ``{word}`` in it is a parameter, without a slash."""
        pattern = re.compile(_PARAMETER.sub(r"(?P<\1>[^/]+)", re.escape(path)))
        place = self._places.setdefault(pattern, {})
        place.update(dict.fromkeys(methods, (name, handler)))

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request; it is no trouble if there is nobody left to answer."""
        request = Request(scope, receive, send)
        with suppress(ConnectionError):
            answer = await self._answer(request)
            if answer is not None:
                await request.answer(answer)

    async def _answer(self, request: Request) -> Answer | None:
        try:
            handler = self._find(request)
            await self._guard(request)
            return await handler(request)
        except Refusal as refusal:
            return refuse(refusal)
        except ConnectionError:
            raise
        except Exception as error:  # noqa: BLE001  (a bug in an answer must not cost the monitor more than the answer)
            self._log.error("endpoint name=%s answer=500 error=%r", request.name, error)
            return refuse(Refusal("the server could not answer: its log says why", status=500))

    def _find(self, request: Request) -> Handler:
        for pattern, ways in self._places.items():
            match = pattern.fullmatch(request.path)
            if match is None:
                continue
            if request.method not in ways:
                return _only(", ".join(sorted(ways)))
            request.parameters = match.groupdict()
            request.name, handler = ways[request.method]
            return _unclear if request.ambiguous else handler
        return _nothing


async def _nothing(_: Request) -> Answer:
    raise Refusal("there is nothing at this address", status=404)


async def _unclear(_: Request) -> Answer:
    raise Refusal("the request is no HTTP/1.1 that can be read in one way only", status=400)


def _only(methods: str) -> Handler:
    async def handler(_: Request) -> Answer:
        return refuse(Refusal(f"this address takes {methods} only", status=405), allow=methods)

    return handler
