"""What the exporter answers: ``/metrics``, and two probes. Read-only, and the same for everybody.

Loaded late, by the first scrape or probe, because it takes memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from refork.exporter_families import families
from refork.scrapes import add_scrapes
from refork.web import Application

if TYPE_CHECKING:
    from collections.abc import Callable

    from refork.endpoint import Log
    from refork.exporter_report import Report
    from refork.web import Request


def application(report: Callable[[], Report], *, log: Log) -> Application:
    """Build the web application."""

    def readiness() -> tuple[bool, str]:
        now = report()
        return now.ready, now.readiness

    app = Application(guard=_anybody, close=lambda: None, log=log)
    add_scrapes(app, families=lambda: families(report()), readiness=readiness)
    return app


async def _anybody(_: Request) -> None:
    """Let everybody in."""
