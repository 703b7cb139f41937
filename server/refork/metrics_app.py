"""What Prometheus may know: the status of the server as metrics, and two probes.

A collector turns one ``api.Status`` into metric families (``refork.families``). It measures nothing by itself: a scrape
reads what the monitor knows already, so that no number of scrapers can slow the processes that serve. There is no
global registry, so the metrics of an application that is its own client of Prometheus never mix with these.

Loaded late, by the first scrape or probe, because it imports the web framework and the Prometheus client.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector, CollectorRegistry

from refork.answers import always_answer
from refork.families import families
from refork.page import DOCUMENT, HEADERS
from refork.readings import add_readings

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator

    from prometheus_client.core import Metric

    from refork import api
    from refork.endpoint import Log
    from refork.events import Events


class StatusCollector(Collector):
    """Yields the metric families of one status."""

    def __init__(self, status: api.Status) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        """Return them all."""
        return families(self._status)


def render(status: api.Status, *, accept: str = "") -> tuple[bytes, str]:
    """Write a status as the scraper wants it (text or OpenMetrics): the body and its content type."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(StatusCollector(status))
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


def application(
    status: Callable[[], api.Status],
    events: Events,
    *,
    stay: Callable[[asyncio.BaseTransport], None],
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
