"""What Prometheus may know: the status of the server as metrics, and two probes.

One ``api.Status`` becomes metric families (``refork.families``), and those become text (``refork.exposition``).

Loaded late, by the first scrape or probe, because it takes memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from refork.answers import Answer
from refork.api import Refusal
from refork.exposition import wants_openmetrics, write
from refork.families import families
from refork.page import DOCUMENT, HEADERS
from refork.readings import Readings, add_routes
from refork.routes import READ_ONLY
from refork.scrapes import METHODS, add_scrapes
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

    def readiness() -> tuple[bool, str]:
        now = status()
        return now.ready >= max(now.wanted, 1), f"ready={now.ready} wanted={now.wanted}"

    async def page(_: Request) -> Answer:
        return Answer(DOCUMENT, headers=HEADERS)

    readings = Readings(status, events, routes=READ_ONLY, stay=stay)
    app = Application(guard=_own_pages_only, close=readings.close, log=log)
    app.add("/", page, name="page", methods=METHODS)
    add_scrapes(app, families=lambda: families(status()), readiness=readiness)
    add_routes(app, READ_ONLY, readings)
    return app


async def _own_pages_only(request: Request) -> None:
    """Refuse what a page from elsewhere sends: no site that somebody looks at should take a listener's place."""
    origin = request.header("origin")
    if origin is not None and origin.partition("://")[2] != request.header("host"):
        raise Refusal("requests from web pages of other sites are not taken", status=403)
