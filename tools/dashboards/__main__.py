"""Play a small fleet for some minutes, and draw what its dashboards show: two pictures for the documentation.

usage: python -m tools.dashboards [--seconds 420] [--into docs/images]
"""

from __future__ import annotations

import argparse
import logging
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.observability.dashboard import FLEET, POD, Dashboard, interpolate
from tests.observability.prometheus import Series
from tools.dashboards.page import WIDTH, Shown
from tools.dashboards.shop import SCRAPE, opened

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.integration.server import Server
    from tests.observability.dashboard import Panel, Query
    from tests.observability.prometheus import Prometheus

STEP, BAR = 3, 15
"""Seconds from one point of a line, and from one bar, to the next."""

EVERYTHING = {"namespace": ".+", "job": ".+"}
ONE = {"namespace": "shop", "job": "web", "pod": "web-0"}

log = logging.getLogger("dashboards")


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tools.dashboards", description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=int, default=420, help="how long the fleet is under load")
    parser.add_argument("--into", type=Path, default=Path("docs/images"), help="the directory of the pictures")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with tempfile.TemporaryDirectory() as scratch, opened(Path(scratch)) as shop:
        log.info("the fleet is under load for %d s", options.seconds)
        _live(shop.pods[-1].server, seconds=options.seconds)
        for path, values in ((FLEET, EVERYTHING), (POD, ONE)):
            shown = ask(Dashboard.read(path), values, shop.prometheus, start=shop.began, end=time.time())
            draw(shown, options.into / f"{path.stem}.png", scratch=Path(scratch))


def _live(server: Server, *, seconds: int) -> None:
    """Let time go by, and halfway have one server fail to refork."""
    time.sleep(seconds / 2)
    for worker in server.status().workers:
        server.get_from(worker.pid, "/thread")
    server.fail(server.refork())
    time.sleep(seconds / 2)


def ask(dashboard: Dashboard, values: Mapping[str, str], prometheus: Prometheus, *, start: float, end: float) -> Shown:
    """Ask all queries of all panels."""
    # As Grafana does: one scrape more than a step, or what rises between two steps would be in neither of them.
    macros = {"__rate_interval": f"{BAR + SCRAPE}s", "__range": f"{end - start:.0f}s", "datasource": "prometheus"}

    def answer(panel: Panel, query: Query) -> list[Series]:
        expression = interpolate(query.expression, macros | values)
        if query.instant:
            return [Series(labels, [(end, value)]) for labels, value in prometheus.query(expression)]
        bars = panel.raw["fieldConfig"]["defaults"].get("custom", {}).get("drawStyle") == "bars"
        return prometheus.range(expression, start=start, end=end, step=BAR if bars else STEP)

    results = {panel.title: [answer(panel, query) for query in panel.queries] for panel in dashboard.panels}
    shown = {name: "All" if value == ".+" else value for name, value in values.items()}
    return Shown(dashboard, results, shown, start, end)


def draw(shown: Shown, picture: Path, *, scratch: Path) -> None:
    """Have a headless Chromium make the picture. Raises CalledProcessError when it does not."""
    chromium = shutil.which("chromium")
    assert chromium is not None, "chromium is not installed: apt-get install chromium"
    page = scratch / f"{picture.stem}.html"
    page.write_text(shown.html())
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
    size = f"--window-size={WIDTH},{shown.height}"
    picture.parent.mkdir(parents=True, exist_ok=True)
    command = [chromium, *flags, size, f"--screenshot={picture.resolve()}", page.as_uri()]
    subprocess.run(command, check=True, capture_output=True)  # noqa: S603 - our own page
    log.info("drawn: %s", picture)


if __name__ == "__main__":
    main()
