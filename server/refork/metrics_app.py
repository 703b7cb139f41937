"""What Prometheus may know: the status of the server as metrics, and two probes.

One ``api.Status`` becomes metric families (``refork.families``), and those become text (``refork.exposition``). Nothing
is measured here: a scrape reads what the monitor knows already, so that no number of scrapers can slow the processes
that serve. There is no registry, so the metrics of an application that is its own client of Prometheus never mix with
these.

Loaded late, by the first scrape or probe, because it takes memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from refork.answers import Answer, say
from refork.api import Refusal
from refork.exposition import wants_openmetrics, write
from refork.families import families
from refork.page import DOCUMENT, HEADERS
from refork.readings import Readings, add_routes
from refork.routes import READ_ONLY
from refork.web import Application

if TYPE_CHECKING:
    from collections.abc import Callable

    from refork import api
    from refork.endpoint import Log, Stay
    from refork.events import Events
    from refork.web import Request


def render(status: api.Status, *, accept: str = "") -> tuple[bytes, str]:
    """Write a status as the scraper wants it (text or OpenMetrics): the body and its content type."""
    return write(families(status), openmetrics=wants_openmetrics(accept))


def application(
    status: Callable[[], api.Status],
    events: Events,
    *,
    stay: Stay,
    log: Log,
) -> Application:
    """Build the web application: the live page, ``/metrics``, the probes, and what may be read under ``/v1``."""

    async def metrics(request: Request) -> Answer:
        body, content_type = render(status(), accept=request.header("accept") or "")
        return Answer(body, headers={"Content-Type": content_type})

    async def healthz(_: Request) -> Answer:
        return say("ok\n")

    async def readyz(_: Request) -> Answer:
        now = status()
        ready = now.ready >= max(now.wanted, 1)
        return say(f"ready={now.ready} wanted={now.wanted}\n", status=200 if ready else 503)

    async def page(_: Request) -> Answer:
        return Answer(DOCUMENT, headers=HEADERS)

    readings = Readings(status, events, routes=READ_ONLY, stay=stay)
    app = Application(guard=_own_pages_only, close=readings.close, log=log)
    for name, handler in {"": page, "metrics": metrics, "healthz": healthz, "readyz": readyz}.items():
        app.add(f"/{name}", handler, name=name or "page", methods=("GET", "HEAD"))
    add_routes(app, READ_ONLY, readings)
    return app


async def _own_pages_only(request: Request) -> None:
    """Refuse what a page from elsewhere sends: no site that somebody looks at should take a listener's place."""
    origin = request.header("origin")
    if origin is not None and origin.partition("://")[2] != request.header("host"):
        raise Refusal("requests from web pages of other sites are not taken", status=403)
