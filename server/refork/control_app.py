"""The routes of the control endpoint: HTTP in, a ``Steerable`` driven, typed JSON out, one audit line a command.

Whoever gets here was admitted by ``refork.control``. Loaded late, because it imports the web framework.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import msgspec
from aiohttp import web

from refork import api
from refork.answers import always_answer, refuse, reply
from refork.endpoint import Log, Peer, peer_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from refork.control import Steerable

BODY_LIMIT = 16 * 1024


def application(steerable: Steerable, *, log: Log) -> web.Application:
    """Build the application for one server."""
    routes = _Routes(steerable, log=log)
    app = web.Application(client_max_size=BODY_LIMIT, middlewares=[always_answer(log), _no_browser])
    app.router.add_get("/v1/status", routes.status)
    app.router.add_get("/v1/operations/{operation}", routes.operation)
    app.router.add_post("/v1/refork", routes.refork)
    app.router.add_post("/v1/rebase", routes.rebase)
    app.router.add_post("/v1/workers", routes.workers)
    return app


@web.middleware
async def _no_browser(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Refuse what a web page sends: behind any forwarded port, a browser would carry somebody else's command."""
    if "Origin" in request.headers:
        return refuse("requests from web pages (with an Origin header) are not taken", status=403)
    return await handler(request)


class _Routes:
    """Translates between HTTP and one ``Steerable``."""

    def __init__(self, steerable: Steerable, *, log: Log) -> None:
        self._steerable = steerable
        self._log = log

    async def status(self, request: web.Request) -> web.Response:
        del request
        return reply(self._steerable.status())

    async def operation(self, request: web.Request) -> web.Response:
        rollout = self._steerable.operation(request.match_info["operation"])
        if rollout is None:
            return refuse("the server knows no operation of this id", status=404)
        return reply(rollout)

    async def refork(self, request: web.Request) -> web.Response:
        return await self._obey(request, shape=api.ReforkCommand, act=self._steerable.refork)

    async def rebase(self, request: web.Request) -> web.Response:
        return await self._obey(request, shape=api.RebaseCommand, act=self._steerable.rebase)

    async def workers(self, request: web.Request) -> web.Response:
        return await self._obey(request, shape=api.WorkersCommand, act=self._steerable.workers)

    async def _obey[Command: msgspec.Struct](
        self, request: web.Request, *, shape: type[Command], act: Callable[[Command], api.Accepted]
    ) -> web.Response:
        peer = _peer(request)
        words = [f"command={request.path.rpartition('/')[2]}"]
        try:
            command = msgspec.json.decode(await request.read() or b"{}", type=shape)
            words += [f"{name}={value}" for name, value in msgspec.structs.asdict(command).items() if value is not None]
            accepted = act(command)
        except msgspec.ValidationError as error:
            return self._refuse(words, peer, reason=str(error), status=422)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return self._refuse(words, peer, reason=f"the body is no JSON: {error}", status=400)
        except web.HTTPRequestEntityTooLarge:
            return self._refuse(words, peer, reason=f"the body has more than {BODY_LIMIT} bytes", status=413)
        except api.Refusal as refusal:
            return self._refuse(words, peer, reason=refusal.reason, status=409)
        except Exception as error:
            self._refuse(words, peer, reason=repr(error), status=500)
            raise
        self._log.info(
            "%s uid=%d pid=%d answer=202 operation=%s", " ".join(words), peer.uid, peer.pid, accepted.operation
        )
        return reply(accepted, status=202)

    def _refuse(self, words: list[str], peer: Peer, *, reason: str, status: int) -> web.Response:
        line = "%s uid=%d pid=%d answer=%d reason=%s"
        self._log.warning(line, " ".join(words), peer.uid, peer.pid, status, json.dumps(reason))
        return refuse(reason, status=status)


def _peer(request: web.Request) -> Peer:
    """Name who commands; a command whose sender has gone already is not carried out."""
    peer = peer_of(request.transport) if request.transport is not None else None
    if peer is None:
        raise ConnectionResetError("the client has gone")
    return peer
