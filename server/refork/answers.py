"""How the monitor's endpoints answer: typed JSON, whatever happens, and one request a connection.

The one place where an error becomes an HTTP answer. It imports the web framework and is therefore imported late, by
what ``refork.endpoint`` builds for its first client.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec
from aiohttp import web

from refork import api

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aiohttp.typedefs import Middleware

    from refork.endpoint import Log


def reply(answer: msgspec.Struct, *, status: int = 200) -> web.Response:
    """Answer with a type of ``refork.api``."""
    return web.Response(body=msgspec.json.encode(answer), status=status, content_type="application/json")


def refuse(error: str, *, status: int, retry_after: float = 0) -> web.Response:
    """Answer with one sentence that says why not, and perhaps with the seconds after which to try again."""
    response = reply(api.Refused(error=error), status=status)
    if retry_after > 0:
        response.headers["Retry-After"] = str(math.ceil(retry_after))
    if status == web.HTTPUnauthorized.status_code:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


def always_answer(log: Log) -> Middleware:
    """Make a middleware that turns every error into a typed answer, and closes the connection after it."""

    @web.middleware
    async def middleware(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        try:
            response = await handler(request)
        except web.HTTPException as error:
            response = _from_exception(error)
        except web.RequestPayloadError:
            response = refuse("the body is no valid HTTP body", status=400)
        except ConnectionError:
            raise
        except Exception as error:  # noqa: BLE001  (a bug in an answer must not cost the monitor more than the answer)
            log.error("endpoint path=%s answer=500 error=%r", request.path, error)
            response = refuse("the server could not answer: its log says why", status=500)
        response.force_close()
        return response

    return middleware


def _from_exception(error: web.HTTPException) -> web.Response:
    sentences = {404: "there is nothing at this address", 413: "the body is too large"}
    allowed = error.headers.get("Allow", "")
    sentence = f"this address takes {allowed} only" if allowed else sentences.get(error.status, error.reason)
    response = refuse(sentence, status=error.status)
    if allowed:
        response.headers["Allow"] = allowed
    return response
