"""The addresses under ``/v1``: one table, from which both endpoints take their routes and the OpenAPI document is made.

So what is documented is what is served, and the other way round. The handlers belong to ``refork.control_app`` and
``refork.readings``; a route names its handler.
"""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPMethod
from typing import TYPE_CHECKING

from refork import api

if TYPE_CHECKING:
    import msgspec

GET, POST = HTTPMethod.GET, HTTPMethod.POST

JSON, STREAM = "application/json", "text/event-stream"


@dataclass(frozen=True, slots=True)
class Route:
    """One address and method.

    Attributes:
        name: of the handler, and of the operation in the OpenAPI document.
        answer: what a success is: its status and its type; None for what no type describes.
        body: the type that a command is read as.
        refusals: statuses of refusals that only this route has.
        read_only: it changes nothing, and is served at the metrics bind too.
    """

    name: str
    method: HTTPMethod
    path: str
    summary: str
    status: int = 200
    answer: type[msgspec.Struct] | None = None
    body: type[api.ReforkCommand | api.RebaseCommand | api.WorkersCommand | api.DoctorCommand] | None = None
    refusals: tuple[int, ...] = ()
    content: str = JSON
    read_only: bool = True


_OF_COMMANDS = (400, 409, 413, 422, 429)


def _command(
    name: str,
    body: type[api.ReforkCommand | api.RebaseCommand | api.WorkersCommand | api.DoctorCommand],
    summary: str,
) -> Route:
    return Route(
        name,
        POST,
        f"/v1/{name}",
        summary,
        status=202,
        answer=api.Accepted,
        body=body,
        refusals=_OF_COMMANDS,
        read_only=False,
    )


ROUTES = (
    Route("status", GET, "/v1/status", "Everything that the server knows about itself.", answer=api.Status),
    Route(
        "events",
        GET,
        "/v1/events",
        "What happens, as it happens: server-sent events. The first one is the status.",
        content=STREAM,
        refusals=(503,),
    ),
    Route("openapi", GET, "/v1/openapi.json", "This document."),
    Route(
        "operation",
        GET,
        "/v1/operations/{operation}",
        "How an operation goes, or has ended: one under way, or one of the last hundred.",
        answer=api.OperationStatus,
        refusals=(404,),
        read_only=False,
    ),
    _command("refork", api.ReforkCommand, "Promote a warm worker to mold, and renew all workers from it."),
    _command("rebase", api.RebaseCommand, "Load the application afresh, and renew all workers from it."),
    _command("workers", api.WorkersCommand, "Change the number of workers."),
    _command("doctor", api.DoctorCommand, "Promote a worker on trial, to see whether it is safe to fork from."),
)

READ_ONLY = tuple(route for route in ROUTES if route.read_only)
