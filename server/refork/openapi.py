"""The OpenAPI document of an endpoint, made from the table of routes and the types of ``refork.api``.

Nothing about the interface is written here a second time: what a body may be is what msgspec accepts, what is answered
is what msgspec encodes.
"""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Any

import msgspec

from refork import __version__, api
from refork.routes import JSON, ROUTES, STREAM

if TYPE_CHECKING:
    from collections.abc import Sequence

    from refork.routes import Route

_PARAMETER = re.compile(r"\{(\w+)\}")

_REFUSALS = {
    400: "The body is no JSON, or the request no HTTP.",
    401: "There is no valid proof of who asks.",
    403: "Who asks may not; or the request comes from a web page.",
    404: "The server knows no such operation.",
    409: "The server will not do it now; the sentence says why.",
    413: "The body is too large.",
    422: "The body is JSON, but no such command.",
    429: "Such a command was carried out a moment ago.",
    503: "Too many listen already.",
}
_WITH_RETRY_AFTER = {429, 503}
_ALWAYS = (400, 401, 403)

_ABOUT = """\
Look at a running refork server, and tell it what to do. Sizes are in bytes, durations in seconds, instants in Unix
time. Clients should expect fields that are not described here. One connection is one request.
"""

_ABOUT_EVENTS = "Server-sent events; `event` is the name, `data` is JSON: "


@cache
def document(routes: Sequence[Route] = ROUTES) -> bytes:
    """Write the document for an endpoint that serves these routes."""
    shapes = {shape for route in routes for shape in (route.answer, route.body) if shape is not None}
    shapes |= {api.Refused, *api.EVENTS.values()}
    ordered = sorted(shapes, key=lambda shape: shape.__name__)
    _, schemas = msgspec.json.schema_components(ordered, ref_template="#/components/schemas/{name}")
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {"title": "refork", "version": __version__, "description": _ABOUT},
            "paths": paths,
            "components": {
                "schemas": schemas,
                "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            },
            # The kernel, a client certificate or a token says who asks: the document cannot tell which door it is for.
            "security": [{}, {"token": []}],
        }
    )


def _operation(route: Route) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.name,
        "summary": route.summary,
        "responses": {str(route.status): _answer(route)}
        | {str(status): _refusal(status) for status in sorted({*_ALWAYS, *route.refusals})},
    }
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in _PARAMETER.findall(route.path)
    ]
    if parameters:
        operation["parameters"] = parameters
    if route.body is not None:
        required = any(field.required for field in msgspec.structs.fields(route.body))
        operation["requestBody"] = {"required": required, "content": {JSON: {"schema": _reference(route.body)}}}
    return operation


def _answer(route: Route) -> dict[str, Any]:
    if route.content == STREAM:
        carried = ", ".join(f"`{name}` ({shape.__name__})" for name, shape in api.EVENTS.items())
        return {"description": f"{_ABOUT_EVENTS}{carried}.", "content": {STREAM: {"schema": {"type": "string"}}}}
    schema = {"type": "object"} if route.answer is None else _reference(route.answer)
    return {"description": route.summary, "content": {route.content: {"schema": schema}}}


def _refusal(status: int) -> dict[str, Any]:
    refusal: dict[str, Any] = {
        "description": _REFUSALS[status],
        "content": {JSON: {"schema": _reference(api.Refused)}},
    }
    if status in _WITH_RETRY_AFTER:
        refusal["headers"] = {"Retry-After": {"required": True, "schema": {"type": "integer", "minimum": 0}}}
    return refusal


def _reference(shape: type[msgspec.Struct]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{shape.__name__}"}
