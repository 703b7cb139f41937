"""What Prometheus may know: the status of the server as metrics, and two probes.

One ``api.Status`` becomes metric families (``refork.families``), and those become text (``refork.exposition``). Nothing
is measured here: a scrape reads what the monitor knows already, so that no number of scrapers can slow the processes
that serve. There is no registry, so the metrics of an application that is its own client of Prometheus never mix with
these.

Loaded late, by the first scrape or probe, because it imports the web framework.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web

from refork.answers import always_answer
from refork.exposition import wants_openmetrics, write
from refork.families import families
from refork.page import DOCUMENT, HEADERS
from refork.readings import add_readings

if TYPE_CHECKING:
    from collections.abc import Callable

    from refork import api
    from refork.endpoint import Log, Stay
    from refork.events import Events


def render(status: api.Status, *, accept: str = "") -> tuple[bytes, str]:
    """Write a status as the scraper wants it (text or OpenMetrics): the body and its content type."""
    return write(families(status), openmetrics=wants_openmetrics(accept))


def application(
    status: Callable[[], api.Status],
    events: Events,
    *,
    stay: Stay,
    log: Log,
) -> web.Application:
    """Build the web application: the live page, ``/metrics``, the probes, and what may be read under ``/v1``."""

    async def metrics(request: web.Request) -> web.Response:
        body, content_type = render(status(), accept=request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        now = status()
        ready = now.ready >= max(now.wanted, 1)
        return web.Response(text=f"ready={now.ready} wanted={now.wanted}\n", status=200 if ready else 503)

    async def page(_: web.Request) -> web.Response:
        return web.Response(body=DOCUMENT, headers=HEADERS)

    app = web.Application(client_max_size=1024, middlewares=[always_answer(log)])
    app.router.add_get("/", page)
    app.router.add_get("/metrics", metrics)
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    add_readings(app, status, events, stay=stay)
    return app
