"""The control endpoints' application: HTTP in, a ``Steerable`` driven, typed JSON out, one audit line a command.

It is the same at the unix socket and over TCP. What differs is how one knows who asks; that is passed in. Loaded late,
because it imports the web framework.
"""

from __future__ import annotations

import asyncio
import json
from contextvars import ContextVar
from typing import TYPE_CHECKING

import msgspec
from aiohttp import web

from refork import api
from refork.answers import always_answer, refuse, reply
from refork.endpoint import Lines, peer_of
from refork.readings import Readings, add_routes
from refork.routes import ROUTES

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aiohttp.typedefs import Middleware

    from refork.control import Steerable
    from refork.endpoint import Log, Stay
    from refork.events import Events

    type Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
    type Identify = Callable[[web.Request], Awaitable[str]]

BODY_LIMIT = 16 * 1024

_who: ContextVar[str] = ContextVar("who")
"""Who has sent the request that is being answered."""


def application(
    steerable: Steerable,
    events: Events,
    *,
    identify: Identify,
    stay: Stay,
    log: Log,
) -> web.Application:
    """Build the application of one endpoint.

    Args:
        steerable: what is driven.
        events: what is published.
        identify: names who asks, or raises ``api.Refusal``.
        stay: is told of a connection that lasts.
        log: gets the audit lines.
    """
    readings = Readings(steerable.status, events, routes=ROUTES, stay=stay)
    app = web.Application(
        client_max_size=BODY_LIMIT, middlewares=[always_answer(log), _no_browser, _known_only(identify, log=log)]
    )
    add_routes(app, ROUTES, readings, _Commands(steerable, log=log))
    app.on_shutdown.append(readings.close)
    return app


async def identify_by_kernel(request: web.Request) -> str:
    """Name the process at the other end of a unix socket; it was let in before it said a word."""
    peer = peer_of(request.transport) if request.transport is not None else None
    if peer is None:
        # A command whose sender has gone already is not carried out.
        raise ConnectionResetError("the client has gone")
    return f"uid={peer.uid} pid={peer.pid}"


@web.middleware
async def _no_browser(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse what a web page sends: behind any forwarded port, a browser would carry somebody else's command."""
    if "Origin" in request.headers:
        return refuse("requests from web pages (with an Origin header) are not taken", status=403)
    return await handler(request)


def _known_only(identify: Identify, *, log: Log) -> Middleware:
    """Make a middleware that answers nobody without knowing who it is, and reads nothing of what they send."""
    lines = Lines()

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            _who.set(await identify(request))
        except api.Refusal as refusal:
            if lines.allow(asyncio.get_running_loop().time()):
                line = "command=%s address=%s answer=%d reason=%s more=%d"
                reason = json.dumps(refusal.reason)
                more = lines.take_missed()
                log.warning(line, _name(request), request.remote, refusal.status, reason, more)
            return refuse(refusal.reason, status=refusal.status)
        return await handler(request)

    return middleware


def _name(request: web.Request) -> str:
    """Name what was asked for, in a word of our own: the path is the client's."""
    resource = request.match_info.route.resource
    return "unknown" if resource is None else resource.canonical.removeprefix("/v1/")


class _Commands:
    """Translates between HTTP and one ``Steerable``; each handler has the name of its route."""

    def __init__(self, steerable: Steerable, *, log: Log) -> None:
        self._steerable = steerable
        self._log = log

    async def operation(self, request: web.Request) -> web.Response:
        operation = self._steerable.operation(request.match_info["operation"])
        if operation is None:
            return refuse("the server knows no operation of this id", status=404)
        return reply(operation)

    async def refork(self, request: web.Request) -> web.Response:
        return await self._obey(request, shape=api.ReforkCommand, act=self._steerable.refork)

    async def rebase(self, request: web.Request) -> web.Response:
        return await self._obey(request, shape=api.RebaseCommand, act=self._steerable.rebase)

    async def workers(self, request: web.Request) -> web.Response:
        return await self._obey(request, shape=api.WorkersCommand, act=self._steerable.workers)

    async def doctor(self, request: web.Request) -> web.Response:
        return await self._obey(request, shape=api.DoctorCommand, act=self._steerable.doctor)

    async def _obey[Command: msgspec.Struct](
        self, request: web.Request, *, shape: type[Command], act: Callable[[Command], api.Accepted]
    ) -> web.Response:
        words = [f"command={_name(request)}"]
        who = _who.get()
        try:
            command = msgspec.json.decode(await request.read() or b"{}", type=shape)
            words += _words(command)
            accepted = act(command)
        except msgspec.ValidationError as error:
            return self._refuse(words, who, api.Refusal(str(error), status=422))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return self._refuse(words, who, api.Refusal(f"the body is no JSON: {error}", status=400))
        except web.HTTPRequestEntityTooLarge:
            return self._refuse(words, who, api.Refusal(f"the body has more than {BODY_LIMIT} bytes", status=413))
        except api.Refusal as refusal:
            return self._refuse(words, who, refusal)
        except Exception as error:
            self._refuse(words, who, api.Refusal(repr(error), status=500))
            raise
        self._log.info("%s %s answer=202 operation=%s", " ".join(words), who, accepted.operation)
        return reply(accepted, status=202)

    def _refuse(self, words: list[str], who: str, refusal: api.Refusal) -> web.Response:
        line = "%s %s answer=%d reason=%s"
        self._log.warning(line, " ".join(words), who, refusal.status, json.dumps(refusal.reason))
        return refuse(refusal.reason, status=refusal.status, retry_after=refusal.retry_after)


def _words(command: msgspec.Struct) -> list[str]:
    """Write what is asked for, as far as it is said; free text is quoted."""
    said = {name: value for name, value in msgspec.structs.asdict(command).items() if value not in {None, ""}}
    why = said.pop("reason", None)
    words = [f"{name}={value}" for name, value in said.items()]
    return words if why is None else [*words, f"why={json.dumps(why)}"]
