"""The control endpoints' application: HTTP in, a ``Steerable`` driven, typed JSON out, one audit line a command.

It is the same at the unix socket and over TCP. What differs is how one knows who asks; that is passed in. Loaded late,
because it takes memory.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import msgspec

from refork import api
from refork.answers import reply
from refork.endpoint import Lines, peer_of
from refork.readings import Readings, add_routes
from refork.routes import ROUTES
from refork.web import Application

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from refork.answers import Answer
    from refork.control import Steerable
    from refork.endpoint import Log, Stay
    from refork.events import Events
    from refork.web import Guard, Request

    type Identify = Callable[[Request], Awaitable[str]]

BODY_LIMIT = 16 * 1024


def application(
    steerable: Steerable,
    events: Events,
    *,
    identify: Identify,
    stay: Stay,
    log: Log,
) -> Application:
    """Build the application of one endpoint.

    Args:
        steerable: what is driven.
        events: what is published.
        identify: names who asks, or raises ``api.Refusal``.
        stay: is told of a connection that lasts.
        log: gets the audit lines.
    """
    readings = Readings(steerable.status, events, routes=ROUTES, stay=stay)
    app = Application(guard=_known_only(identify, log=log), close=readings.close, log=log)
    add_routes(app, ROUTES, readings, _Commands(steerable, log=log))
    return app


async def identify_by_kernel(request: Request) -> str:
    """Name the process at the other end of a unix socket; it was let in before it said a word."""
    peer = None if request.transport.is_closing() else peer_of(request.transport)
    if peer is None:
        # A command whose sender has gone already is not carried out.
        raise ConnectionResetError("the client has gone")
    return f"uid={peer.uid} pid={peer.pid}"


def _known_only(identify: Identify, *, log: Log) -> Guard:
    """Make a guard that lets nobody by without knowing who it is, and reads nothing of what they send."""
    lines = Lines()

    async def guard(request: Request) -> None:
        try:
            _refuse_web_pages(request)
            request.who = await identify(request)
        except api.Refusal as refusal:
            if lines.allow(asyncio.get_running_loop().time()):
                line = "command=%s %s answer=%d reason=%s more=%d"
                reason = json.dumps(refusal.reason)
                log.warning(line, request.name, await _whence(request), refusal.status, reason, lines.take_missed())
            raise

    return guard


def _refuse_web_pages(request: Request) -> None:
    """Behind any forwarded port, a browser would carry somebody else's command."""
    if request.header("origin") is not None:
        raise api.Refusal("requests from web pages (with an Origin header) are not taken", status=403)


async def _whence(request: Request) -> str:
    """Name the other end of a connection, whoever it may be: that is known before anything is proved."""
    return f"address={request.address}" if request.address else await identify_by_kernel(request)


class _Commands:
    """Translates between HTTP and one ``Steerable``; each handler has the name of its route."""

    def __init__(self, steerable: Steerable, *, log: Log) -> None:
        self._steerable = steerable
        self._log = log

    async def operation(self, request: Request) -> Answer:
        operation = self._steerable.operation(request.parameters["operation"])
        if operation is None:
            raise api.Refusal("the server knows no operation of this id", status=404)
        return reply(operation)

    async def refork(self, request: Request) -> Answer:
        return await self._obey(request, shape=api.ReforkCommand, act=self._steerable.refork)

    async def rebase(self, request: Request) -> Answer:
        return await self._obey(request, shape=api.RebaseCommand, act=self._steerable.rebase)

    async def workers(self, request: Request) -> Answer:
        return await self._obey(request, shape=api.WorkersCommand, act=self._steerable.workers)

    async def doctor(self, request: Request) -> Answer:
        return await self._obey(request, shape=api.DoctorCommand, act=self._steerable.doctor)

    async def _obey[Command: msgspec.Struct](
        self, request: Request, *, shape: type[Command], act: Callable[[Command], api.Accepted]
    ) -> Answer:
        words = [f"command={request.name}"]
        try:
            command = _read(await request.body(limit=BODY_LIMIT), shape)
            words += _words(command)
            accepted = act(command)
        except ConnectionError:
            raise
        except Exception as error:
            refusal = error if isinstance(error, api.Refusal) else api.Refusal(repr(error), status=500)
            line = "%s %s answer=%d reason=%s"
            self._log.warning(line, " ".join(words), request.who, refusal.status, json.dumps(refusal.reason))
            raise
        self._log.info("%s %s answer=202 operation=%s", " ".join(words), request.who, accepted.operation)
        return reply(accepted, status=202)


def _read[Command: msgspec.Struct](body: bytes, shape: type[Command]) -> Command:
    try:
        return msgspec.json.decode(body or b"{}", type=shape)
    except msgspec.ValidationError as error:
        raise api.Refusal(str(error), status=422) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise api.Refusal(f"the body is no JSON: {error}", status=400) from error


def _words(command: msgspec.Struct) -> list[str]:
    """Write what is asked for, as far as it is said; free text is quoted."""
    said = {name: value for name, value in msgspec.structs.asdict(command).items() if value not in {None, ""}}
    why = said.pop("reason", None)
    words = [f"{name}={value}" for name, value in said.items()]
    return words if why is None else [*words, f"why={json.dumps(why)}"]
