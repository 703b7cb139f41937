"""What monitoring asks of refork, wherever it is asked: ``/metrics``, ``/healthz`` and ``/readyz``.

Nothing is measured here: a scrape reads what is known already, so that no number of scrapers can slow the processes
that serve. There is no registry, so the metrics of an application that is its own client of Prometheus never mix with
these.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from refork.answers import Answer, say
from refork.exposition import wants_openmetrics, write

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from refork.exposition import Family
    from refork.web import Application, Request

METHODS = ("GET", "HEAD")


def add_scrapes(
    app: Application, *, families: Callable[[], Iterable[Family]], readiness: Callable[[], tuple[bool, str]]
) -> None:
    """Serve them; ``readiness`` tells whether there is what should be, and says it in a line."""

    async def metrics(request: Request) -> Answer:
        body, content_type = write(families(), openmetrics=wants_openmetrics(request.header("accept") or ""))
        return Answer(body, headers={"Content-Type": content_type})

    async def healthz(_: Request) -> Answer:
        return say("ok\n")

    async def readyz(_: Request) -> Answer:
        ready, line = readiness()
        return say(f"{line}\n", status=200 if ready else 503)

    for name, handler in {"metrics": metrics, "healthz": healthz, "readyz": readyz}.items():
        app.add(f"/{name}", handler, name=name, methods=METHODS)
