"""A dashboard as an HTML page: each panel at its place, drawn with the results of its queries."""

from __future__ import annotations

import time
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from tools.dashboards.charts import Line, chart, spark
from tools.dashboards.frames import Field, field, legend, rows
from tools.dashboards.numbers import show

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.observability.dashboard import Dashboard, Panel
    from tests.observability.prometheus import Series

WIDTH = 1600
_MARGIN, _GAP, _ROW, _HEAD = 16, 8, 38, 64
_COLUMN = (WIDTH - 2 * _MARGIN) / 24
_PADDING, _TITLE, _LEGEND = 12, 32, 26
_BESIDE = 150
"""The width of a legend on the right."""

_LEAST_SHARE = 0.16
"""Of the widest bar: a narrower part has no room for its value."""

STYLE = """
* { box-sizing: border-box; margin: 0 }
body { background: #111217; color: #ccccdc; font: 13px Inter, "Liberation Sans", Arial, sans-serif; width: 1600px }
header { height: 64px; padding: 16px 20px; display: flex; gap: 10px; align-items: center }
header h1 { font-size: 18px; font-weight: 500; margin-right: 14px }
.chip { border: 1px solid #2c3037; border-radius: 2px; padding: 6px 10px; background: #181b1f }
.chip b { color: #6e9fff; font-weight: 500; margin-right: 8px }
.time { margin-left: auto }
main { position: relative }
.panel { position: absolute; background: #181b1f; border: 1px solid #24272d; border-radius: 3px; overflow: hidden }
.panel h2 { font-size: 14px; font-weight: 500; padding: 8px 12px 0; height: 32px; white-space: nowrap }
.row { position: absolute; font-size: 16px; font-weight: 500; padding: 5px 4px }
.row::before { content: "⌄"; margin-right: 8px; color: #8e8e9c }
.stats { display: flex; position: absolute; inset: 30px 0 0 0 }
.stat { flex: 1; display: flex; flex-direction: column; align-items: center; justify-content: center; z-index: 1 }
.stat .name { font-size: 14px; margin-bottom: 2px } .stat .value { font-weight: 500; white-space: nowrap }
.spark { position: absolute; left: 0; bottom: 0 }
svg text { font-size: 12px } .body { padding: 0 4px }
.legend { padding: 2px 12px; height: 26px; white-space: nowrap; overflow: hidden; font-size: 12px }
.legend i { display: inline-block; width: 14px; height: 4px; border-radius: 2px; margin: 0 6px 2px 0 }
.legend span { margin-right: 16px }
.beside { display: flex } .beside .legend { height: auto } .beside .legend span { display: block; margin: 0 0 3px }
table { border-collapse: collapse; width: 100% } th { color: #6e9fff; font-weight: 500; text-align: left }
th, td { padding: 0 10px; height: 36px; border-bottom: 1px solid #24272d; white-space: nowrap }
.number { text-align: right } .link { color: #6e9fff; text-decoration: underline }
.gauge { display: flex; align-items: center; gap: 8px } .gauge div { flex: 1; height: 20px }
.gauge div div { border-radius: 2px; opacity: 0.9 } .gauge span { width: 76px; text-align: right }
.bars { padding: 6px 12px; height: calc(100% - 36px) }
.bars { display: flex; flex-direction: column; justify-content: space-evenly }
.bar { display: flex; align-items: center; gap: 10px } .bar .name { width: 92px; text-align: right }
.bar .track { flex: 1; display: flex; height: 22px } .bar .value { width: 70px }
.bar .track div { opacity: 0.85; text-align: center; color: #111217; line-height: 22px; white-space: nowrap }
"""


@dataclass(frozen=True, slots=True)
class Shown:
    """A dashboard with the results of each panel's queries, by the panel's title; the time is in Unix seconds."""

    dashboard: Dashboard
    results: Mapping[str, Sequence[list[Series]]]
    values: Mapping[str, str]
    start: float
    end: float

    @property
    def height(self) -> int:
        """Of the whole page, in pixels."""
        bottom = max(y + height for _, y, _, height in (panel.grid for panel in self.dashboard.panels))
        return _HEAD + bottom * _ROW + _MARGIN

    def html(self) -> str:
        """Write the whole page."""
        panels = "".join(self._panel(panel) for panel in self.dashboard.panels)
        return (
            f'<!doctype html><meta charset="utf-8"><title>{escape(self.dashboard.raw["title"])}</title>'
            f"<style>{STYLE}</style>{self._head()}<main>{panels}</main>"
        )

    def _head(self) -> str:
        chosen = [(variable["label"], self.values[variable["name"]]) for variable in self.dashboard.variables]
        chips = "".join(f'<span class="chip"><b>{escape(name)}</b>{escape(value)}</span>' for name, value in chosen)
        times = " to ".join(time.strftime("%H:%M:%S", time.gmtime(at)) for at in (self.start, self.end))
        title = escape(self.dashboard.raw["title"])
        return f'<header><h1>{title}</h1>{chips}<span class="chip time">{times}</span></header>'

    def _panel(self, panel: Panel) -> str:
        x, y, width, height = panel.grid
        left, top = _MARGIN + x * _COLUMN + _GAP / 2, y * _ROW
        wide, high = width * _COLUMN - _GAP, height * _ROW - _GAP
        place = f'style="left:{left:.0f}px;top:{top}px;width:{wide:.0f}px;height:{high}px"'
        if panel.kind == "row":
            return f'<div class="row" {place}>{escape(panel.title)}</div>'
        body = self._body(panel, wide - 2, high - 2)
        return f'<div class="panel" {place}><h2>{escape(panel.title)}</h2>{body}</div>'

    # --- the kinds of panels ------------------------------------------------------------------------------------------

    def _body(self, panel: Panel, width: float, height: float) -> str:
        match panel.kind:
            case "stat":
                return self._stat(panel, width, height)
            case "timeseries":
                return self._timeseries(panel, width, height)
            case "table":
                return self._table(panel, height)
            case "bargauge":
                return self._bargauge(panel)
            case "barchart":
                return self._barchart(panel)
            case kind:
                raise NotImplementedError(f"no panel of the kind {kind} can be drawn: add it to {__name__}")

    def _named(self, panel: Panel) -> list[tuple[Field, Series]]:
        found = [
            (legend(query, series.labels), series)
            for query, results in zip(panel.queries, self.results[panel.title], strict=True)
            for series in results
        ]
        return [(field(panel, name, number), series) for number, (name, series) in enumerate(found)]

    def _stat(self, panel: Panel, width: float, height: float) -> str:
        named = self._named(panel)
        both = panel.raw["options"]["textMode"] == "value_and_name"
        texts = [show(series.values[-1][1], one.unit, one.decimals) for one, series in named]
        size = _font(texts, width / max(1, len(texts)), height)
        cells, lines = [], ""
        for (one, series), text in zip(named, texts, strict=True):
            color = one.color(series.values[-1][1])
            name = f'<div class="name">{escape(one.name)}</div>' if both else ""
            value = f'<div class="value" style="font-size:{size:.0f}px;color:{color}">{escape(text)}</div>'
            cells.append(f'<div class="stat">{name}{value}</div>')
            if panel.raw["options"]["graphMode"] == "area":
                lines += spark(series.values, color, width=width, height=0.34 * height)
        above = ' style="bottom:24%"' if lines else ""
        return f'{lines}<div class="stats"{above}>{"".join(cells) or _NOTHING}</div>'

    def _timeseries(self, panel: Panel, width: float, height: float) -> str:
        lines = [Line(one, series.values) for one, series in self._named(panel)]
        names = _legend([line.field for line in lines])
        if panel.raw["options"]["legend"]["placement"] == "right":
            drawn = self._chart(lines, width - _BESIDE, height - _TITLE)
            return f'<div class="beside"><div>{drawn}</div>{names}</div>'
        return f'<div class="body">{self._chart(lines, width, height - _TITLE - _LEGEND)}</div>{names}'

    def _chart(self, lines: Sequence[Line], width: float, height: float) -> str:
        return chart(lines, width=width - 8, height=height, start=self.start, end=self.end)

    def _table(self, panel: Panel, height: float) -> str:
        columns, found = rows(panel, self.results[panel.title])
        shown = [column for column in columns if any(column in row for row in found)]
        fields = {column: field(panel, column) for column in shown}
        room = int((height - _TITLE) // 37) - 1
        head = "".join(_headline(fields[column], _align(found, column)) for column in shown)
        most = {column: max(_number(row.get(column)) for row in found) for column in shown}
        body = "".join(
            "<tr>" + "".join(_cell(fields[column], row.get(column), most[column]) for column in shown) + "</tr>"
            for row in found[:room]
        )
        return f"<table><tr>{head}</tr>{body}</table>"

    def _bargauge(self, panel: Panel) -> str:
        named = self._named(panel)
        most = max((series.values[-1][1] for _, series in named), default=0.0) or 1.0
        bars = "".join(
            f'<div class="bar"><span class="name">{escape(one.name)}</span>'
            f'<div class="track">{_block(one.color(), series.values[-1][1] / most)}</div>'
            f'<span class="value" style="color:{one.color()}">'
            f"{escape(show(series.values[-1][1], one.unit, one.decimals))}</span></div>"
            for one, series in named
        )
        return f'<div class="bars">{bars}</div>'

    def _barchart(self, panel: Panel) -> str:
        columns, found = rows(panel, self.results[panel.title])
        name, *parts = columns
        fields = [field(panel, column, number) for number, column in enumerate(parts)]
        most = max((sum(row.get(column, 0.0) for column in parts) for row in found), default=0.0) or 1.0
        bars = "".join(
            f'<div class="bar"><span class="name">{escape(row[name])}</span><div class="track">'
            + "".join(_part(one, row.get(one.name, 0.0), most) for one in fields)
            + "</div></div>"
            for row in found
        )
        return f'<div class="bars" style="height:calc(100% - {_TITLE + _LEGEND}px)">{bars}</div>{_legend(fields)}'


_NOTHING = '<div class="stat"><div class="value" style="font-size:20px">No data</div></div>'


def _font(texts: Sequence[str], width: float, height: float) -> float:
    """Make numbers as large as the panel allows."""
    longest = max((len(text) for text in texts), default=1)
    return min(0.36 * height, (width - 2 * _PADDING) / (0.58 * longest), 72)


def _legend(fields: Sequence[Field]) -> str:
    marks = "".join(f'<span><i style="background:{one.color()}"></i>{escape(one.name)}</span>' for one in fields)
    return f'<div class="legend">{marks}</div>'


def _align(found: Sequence[Mapping[str, Any]], column: str) -> str:
    return "" if any(isinstance(row.get(column), str) for row in found) else "number"


def _headline(one: Field, align: str) -> str:
    width = one.custom.get("width")
    style = f' style="width:{width}px"' if width else ""
    return f'<th class="{align}"{style}>{escape(one.name)}</th>'


def _number(value: Any) -> float:
    return value if isinstance(value, float) else 0.0


def _block(color: str, share: float) -> str:
    return f'<div style="width:{100 * max(0.0, share):.1f}%;height:20px;background:{color}"></div>'


def _part(one: Field, value: float, most: float) -> str:
    """Draw a part of a bar, with its value in it if there is room."""
    share = value / most
    text = escape(show(value, one.unit, one.decimals)) if share > _LEAST_SHARE else ""
    return f'<div style="width:{100 * share:.1f}%;background:{one.color()}">{text}</div>'


def _cell(one: Field, value: Any, most: float) -> str:
    if value is None:
        return "<td></td>"
    if isinstance(value, str):
        return f'<td><span class="{"link" if one.settings.get("links") else ""}">{escape(value)}</span></td>'
    text = escape(show(value, one.unit, one.decimals))
    kind = one.custom.get("cellOptions", {}).get("type")
    if kind == "gauge":
        bar = _block(one.color(), value / (most or 1.0))
        return f'<td><div class="gauge"><div>{bar}</div><span style="color:{one.color()}">{text}</span></div></td>'
    color = f' style="color:{one.color(value)}"' if kind == "color-text" else ""
    return f'<td class="number"{color}>{text}</td>'
