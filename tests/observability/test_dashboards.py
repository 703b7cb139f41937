"""The dashboards of the chart: every query returns data of real servers, and everything is where it should be."""

from __future__ import annotations

import html
import itertools
import math
import re
import time
from typing import TYPE_CHECKING

import pytest

from tests.integration.server import until
from tests.observability.dashboard import FLEET, POD, Dashboard, Query, interpolate
from tests.observability.prometheus import needs_prometheus
from tools.dashboards.__main__ import ask

if TYPE_CHECKING:
    from pathlib import Path

    from tests.observability.prometheus import Prometheus
    from tests.observability.stage import Stage

pytestmark = [needs_prometheus, pytest.mark.xdist_group("observability")]

WIDTH = 24
UNITS = {"short", "bytes", "percentunit", "reqps", "cps", "s"}
"""Those that the panels use, by Grafana's names; one that it does not know is shown as a suffix, without an error."""

MACROS = {"__rate_interval": "3s", "__range": "5m", "datasource": "prometheus"}
EVERYTHING = {"namespace": ".+", "job": ".+"}
ONE_POD = {"namespace": "shop", "job": "web", "pod": "web-0"}
LIMITED_POD = ONE_POD | {"pod": "web-limited"}
"""The same server where its container has a limit: without one there is no line, and no query could draw it."""

BOARDS = [FLEET, POD]


def queries() -> list[pytest.param]:
    """All queries of both dashboards, each a case of its own."""
    cases = []
    for path, values in ((FLEET, EVERYTHING), (POD, ONE_POD)):
        for query in Dashboard.read(path).queries():
            chosen = LIMITED_POD if path == POD and "_limit_bytes" in query.expression else values
            cases.append(pytest.param(query, MACROS | chosen, id=f"{path.stem}: {query.where} {query.ref}"))
    return cases


@pytest.mark.parametrize(("query", "values"), queries())
def test_every_query_returns_data(stage: Stage, query: Query, values: dict[str, str]) -> None:
    """Asked of a Prometheus that scraped a real server and a real operator, each has an answer with a number in it."""
    expression = interpolate(query.expression, values)

    def look() -> bool:
        return any(not math.isnan(value) for value in answers(stage.prometheus, query, expression, stage.began))

    until(look, what=f"an answer to {expression}", seconds=15)


def answers(prometheus: Prometheus, query: Query, expression: str, began: float) -> list[float]:
    """Ask as Grafana does: for now, or for the time that is shown."""
    if query.instant:
        return [value for _, value in prometheus.query(expression)]
    series = prometheus.range(expression, start=began, end=time.time(), step=1)
    return [value for one in series for _, value in one.values]


def test_a_failed_refork_and_an_error_are_seen(stage: Stage) -> None:
    """The panels that should show nothing show something when it happens: it happened on this stage."""
    fleet = Dashboard.read(FLEET)
    for title in ("Reforks failed", "Reforks succeeded"):
        [query] = next(panel for panel in fleet.panels if panel.title == title).queries
        expression = interpolate(query.expression, MACROS | EVERYTHING | {"job": "web"})
        until(lambda asked=expression: (stage.prometheus.number(asked) or 0) >= 1, what=title)
    assert stage.prometheus.number('sum(refork_request_errors_total{pod="web-0"})') == 1


def test_counters_of_the_operator_begin_at_zero(stage: Stage) -> None:
    """A series that is born with its first event hides it from increase(): the first failure has to be a rise."""
    failed = 'refork_operator_reforks_total{policy="shop/web",outcome="Failed"}'
    until(lambda: stage.prometheus.number(failed) == 0, what=failed)
    restarts = 'refork_operator_watch_restarts_total{resource="pods"}'
    until(lambda: stage.prometheus.number(restarts) is not None, what=restarts)


@pytest.mark.parametrize("path", BOARDS, ids=lambda path: path.stem)
def test_a_dashboard_is_found_by_its_name_and_chooses_its_prometheus(path: Path) -> None:
    """The uid is that of the file and of the links, and no data source of ours is wired in."""
    raw = Dashboard.read(path).raw
    assert raw["uid"] == path.stem
    assert raw["schemaVersion"] == 42
    names = [variable["name"] for variable in raw["templating"]["list"]]
    assert names == ["datasource", "namespace", "job"] + ["pod"] * (path == POD)
    sources = set(re.findall(r'"uid": "([^"]*)"', path.read_text())) - {raw["uid"]}
    assert sources == {"${datasource}", "-- Grafana --"}
    assert "id" not in raw, "the id is Grafana's to give"


@pytest.mark.parametrize("path", BOARDS, ids=lambda path: path.stem)
def test_a_panel_says_what_it_shows_and_in_which_unit(path: Path) -> None:
    """Each has a title, a description in whole sentences, and units that Grafana knows."""
    for panel in Dashboard.read(path).panels:
        if panel.kind == "row":
            continue
        assert re.fullmatch(r"[A-Z].*\.", panel.raw["description"]), panel.title
        field = panel.raw["fieldConfig"]
        named = [item["value"] for over in field["overrides"] for item in over["properties"] if item["id"] == "unit"]
        assert {field["defaults"]["unit"], *named} <= UNITS, panel.title
    titles = [panel.title for panel in Dashboard.read(path).panels if panel.kind != "row"]
    assert len(titles) == len(set(titles))


@pytest.mark.parametrize("path", BOARDS, ids=lambda path: path.stem)
def test_panels_fill_the_page_without_gap_or_overlap(path: Path) -> None:
    """Every cell of the grid belongs to exactly one panel, and the first number is what is saved."""
    panels = Dashboard.read(path).panels
    cells: dict[tuple[int, int], str] = {}
    for panel in panels:
        x, y, width, height = panel.grid
        for cell in itertools.product(range(x, x + width), range(y, y + height)):
            assert cell not in cells, f"{panel.title} lies on {cells[cell]}"
            cells[cell] = panel.title
    bottom = 1 + max(row for _, row in cells)
    assert set(cells) == set(itertools.product(range(WIDTH), range(bottom)))
    assert panels[0].title == "Saved by sharing pages"
    assert len({panel.raw["id"] for panel in panels}) == len(panels)


@pytest.mark.parametrize("path", BOARDS, ids=lambda path: path.stem)
def test_what_is_formatted_is_there(path: Path) -> None:
    """An override, a column or a link that names a field which no query makes would change nothing, silently."""
    for panel in Dashboard.read(path).panels:
        legends = {query.legend for query in panel.queries}
        columns = {
            name
            for step in panel.raw.get("transformations", ())
            for name in step["options"].get("renameByName", {}).values()
        }
        patterns = [re.sub(r"\\\{\\\{\w+\\\}\\\}", ".+", re.escape(legend)) for legend in legends]
        for over in panel.raw.get("fieldConfig", {}).get("overrides", ()):
            name = over["matcher"]["options"]
            assert name in columns or any(re.fullmatch(p, name) for p in patterns), f"{panel.title}: {name}"
        for used in re.findall(r"__data\.fields\.(\w+)", str(panel.raw)):
            assert used in columns, f"{panel.title} links by {used}"


def test_the_dashboards_link_to_each_other() -> None:
    """From the fleet to a pod and back, with the data source and the time that were chosen."""
    fleet, pod = FLEET.read_text(), POD.read_text()
    assert "/d/refork-pod/refork-pod?var-datasource=${datasource}&var-namespace=" in fleet
    assert "/d/refork-fleet/refork-fleet?var-datasource=${datasource}" in pod
    for path in BOARDS:
        links = Dashboard.read(path).raw["links"]
        assert all(link["keepTime"] for link in links if link["url"].startswith("/d/"))


@pytest.mark.parametrize(("path", "values"), [(FLEET, EVERYTHING), (POD, ONE_POD)], ids=["fleet", "pod"])
def test_the_pictures_can_be_drawn_from_the_files(stage: Stage, path: Path, values: dict[str, str]) -> None:
    """The tool that draws them knows every kind of panel, and leaves none out."""
    shown = ask(Dashboard.read(path), values, stage.prometheus, start=stage.began, end=time.time())
    page = shown.html()
    for panel in shown.dashboard.panels:
        assert html.escape(panel.title) in page
    assert page.count('class="panel"') == sum(panel.kind != "row" for panel in shown.dashboard.panels)
