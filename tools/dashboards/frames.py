"""What queries return, as the fields and rows that a panel shows, with Grafana's transformations of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.observability.dashboard import Panel, Query
    from tests.observability.prometheus import Series

type Row = dict[str, Any]

_PALETTE = (
    *("#73BF69", "#F2CC0C", "#8AB8FF", "#FF780A", "#F2495C"),
    *("#5794F2", "#B877D9", "#705DA0", "#37872D", "#FADE2A"),
)
_NAMED = {
    "green": "#73BF69",
    "yellow": "#FADE2A",
    "orange": "#FF9830",
    "red": "#F2495C",
    "blue": "#5794F2",
    "purple": "#B877D9",
    "text": "#CCCCDC",
}


@dataclass(frozen=True, slots=True)
class Field:
    """How one series or column is to be shown; ``number`` is its place among the others."""

    name: str
    number: int
    settings: Mapping[str, Any]

    @property
    def unit(self) -> str:
        """Grafana's name of it."""
        return str(self.settings["unit"])

    @property
    def decimals(self) -> int | None:
        """How many are shown; None for as many as make sense."""
        found: int | None = self.settings.get("decimals")
        return found

    @property
    def custom(self) -> Mapping[str, Any]:
        """What only this kind of panel knows."""
        found: Mapping[str, Any] = self.settings.get("custom", {})
        return found

    def color(self, value: float = 0.0) -> str:
        """Choose the colour: fixed, of the threshold that the value has passed, or the next of the palette."""
        chosen = self.settings["color"]
        if chosen["mode"] == "fixed":
            return _plain(chosen["fixedColor"])
        if chosen["mode"] == "thresholds":
            steps = self.settings["thresholds"]["steps"]
            return _plain([step["color"] for step in steps if step["value"] is None or value >= step["value"]][-1])
        return _PALETTE[self.number % len(_PALETTE)]


def _plain(color: str) -> str:
    return _NAMED.get(color, color)


def field(panel: Panel, name: str, number: int = 0) -> Field:
    """Settle what holds for a series or column: the defaults of the panel, and the overrides for its name."""
    config = panel.raw["fieldConfig"]
    settings = dict(config["defaults"]) | {"custom": dict(config["defaults"].get("custom", {}))}
    for override in config["overrides"]:
        if override["matcher"]["options"] != name:
            continue
        for item in override["properties"]:
            key = item["id"].removeprefix("custom.")
            (settings if key == item["id"] else settings["custom"])[key] = item["value"]
    return Field(name, number, settings)


def legend(query: Query, labels: Mapping[str, str]) -> str:
    """Name a series."""
    return re.sub(r"\{\{(\w+)\}\}", lambda found: labels.get(found[1], ""), query.legend).strip()


def rows(panel: Panel, results: Sequence[list[Series]]) -> tuple[list[str], list[Row]]:
    """Make the table of a panel: the columns in their order, and the rows. ``results`` has one list for each query."""
    several = len(results) > 1
    found: list[Row] = []
    for query, series in zip(panel.queries, results, strict=True):
        column = f"Value #{query.ref}" if several else "Value"
        found += [{**one.labels, column: one.values[-1][1]} for one in series]
    columns: list[str] = []
    for step in panel.raw.get("transformations", ()):
        options = step["options"]
        match step["id"]:
            case "merge":
                found = _merged(found)
            case "sortBy":
                [order] = options["sort"]
                found.sort(key=lambda row: row.get(order["field"], 0), reverse=order.get("desc", False))
            case "limit":
                found = found[: options["limitField"]]
            case "organize":
                columns = sorted(options["indexByName"], key=options["indexByName"].get)
                names = options["renameByName"]
                found = [{names[key]: row[key] for key in columns if key in row} for row in found]
                columns = [names[key] for key in columns]
    return columns, found


def _merged(found: Sequence[Row]) -> list[Row]:
    """Join rows with the same labels, as Grafana's transformation does."""
    joined: dict[tuple[tuple[str, str], ...], Row] = {}
    for row in found:
        key = tuple(sorted((name, value) for name, value in row.items() if isinstance(value, str)))
        joined.setdefault(key, {}).update(row)
    return list(joined.values())
