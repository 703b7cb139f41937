"""Lines, areas and bars over time, as SVG: what Grafana's time series panel draws."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING

from tools.dashboards.numbers import show, ticks

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tools.dashboards.frames import Field

_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 12, 8, 22
_RIGHT_AXIS = 52
_GRID, _TEXT = "rgba(204,204,220,0.08)", "rgba(204,204,220,0.62)"
_STEPS = (5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200)

type Points = list[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Line:
    """One series and how it is shown; ``points`` are instants and values."""

    field: Field
    points: Points

    @property
    def right(self) -> bool:
        """Whether it has the axis on the right."""
        return self.field.custom.get("axisPlacement") == "right"

    @property
    def fill(self) -> float:
        """How opaque the area under it is, 0 to 1."""
        return float(self.field.custom.get("fillOpacity", 0)) / 100


@dataclass(slots=True)
class Axis:
    """Values to heights."""

    marks: list[float]
    unit: str
    bottom: float
    top: float

    @classmethod
    def over(cls, values: Iterable[float], shown: Field, *, bottom: float) -> Axis:
        """Make one from zero to the largest value, with the marks of what is shown."""
        largest = max((value for value in values if not math.isnan(value)), default=0.0)
        return cls(ticks(largest or 1.0, shown.unit, whole=shown.decimals == 0), shown.unit, bottom, _TOP)

    def y(self, value: float) -> float:
        """Tell the height of a value, in pixels from the top."""
        return self.bottom - value / self.marks[-1] * (self.bottom - self.top)


@dataclass(slots=True)
class Canvas:
    """A chart of a size in pixels, over a time."""

    width: float
    height: float
    start: float
    end: float
    parts: list[str] = field(default_factory=list)
    inset: float = _RIGHT

    def x(self, at: float) -> float:
        """Tell the place of an instant, in pixels from the left."""
        return _LEFT + (at - self.start) / (self.end - self.start) * (self.width - _LEFT - self.inset)

    @property
    def bottom(self) -> float:
        """Where zero is."""
        return self.height - _BOTTOM

    def svg(self) -> str:
        """Write all of it."""
        return f'<svg width="{self.width:.0f}" height="{self.height:.0f}">{"".join(self.parts)}</svg>'


def chart(lines: Sequence[Line], *, width: float, height: float, start: float, end: float) -> str:
    """Draw them all; those of the right axis have a scale of their own."""
    right = [line for line in lines if line.right]
    left = [line for line in lines if not line.right]
    canvas = Canvas(width, height, start, end, inset=_RIGHT_AXIS if right else _RIGHT)
    if left:
        _draw_left(canvas, left)
    if right:
        _draw_right(canvas, right)
    return canvas.svg()


def spark(points: Points, color: str, *, width: float, height: float) -> str:
    """Draw the small area under the number of a stat."""
    if len(points) < 2:  # noqa: PLR2004 - a line has two ends
        return ""
    values = [value for _, value in points if not math.isnan(value)]
    low, high = min(values), max(values)
    spread = (high - low) or 1.0
    start, end = points[0][0], points[-1][0]
    path = [
        (width * (at - start) / (end - start), height - 3 - (height - 8) * (value - low) / spread)
        for at, value in points
        if not math.isnan(value)
    ]
    edge = " ".join(f"{x:.1f},{y:.1f}" for x, y in path)
    return (
        f'<svg class="spark" width="{width:.0f}" height="{height:.0f}">'
        f'<polygon points="0,{height:.0f} {edge} {width:.0f},{height:.0f}" fill="{color}" opacity="0.22"/>'
        f'<polyline points="{edge}" fill="none" stroke="{color}" stroke-width="1.5"/></svg>'
    )


def _stack(lines: Sequence[Line]) -> list[tuple[Line, Points, Points | None]]:
    """Add each series to those below it; a series that has no value at an instant adds nothing."""
    instants = sorted({at for line in lines for at, _ in line.points})
    level = dict.fromkeys(instants, 0.0)
    shapes = []
    for line in lines:
        own = {at: value for at, value in line.points if not math.isnan(value)}
        below = [(at, level[at]) for at in instants]
        level = {at: level[at] + own.get(at, 0.0) for at in instants}
        shapes.append((line, [(at, level[at]) for at in instants], below))
    return shapes


def _under(line: Line, lines: Sequence[Line]) -> Points | None:
    """Find what a line is filled down to, if that is another line."""
    name = line.field.custom.get("fillBelowTo")
    return next((other.points for other in lines if other.field.name == name), None)


def _draw_left(canvas: Canvas, lines: Sequence[Line]) -> None:
    shown = lines[0].field
    stacked = shown.custom["stacking"]["mode"] == "normal"
    shapes = _stack(lines) if stacked else [(line, line.points, _under(line, lines)) for line in lines]
    axis = Axis.over([value for _, points, _ in shapes for _, value in points], shown, bottom=canvas.bottom)
    _draw_grid(canvas, axis)
    for line, points, below in shapes:
        if shown.custom["drawStyle"] == "bars":
            _draw_bars(canvas, axis, line, points, below or [])
        else:
            _draw_line(canvas, axis, line, points, below=below)


def _draw_grid(canvas: Canvas, axis: Axis) -> None:
    for mark in axis.marks:
        y = axis.y(mark)
        canvas.parts.append(_rule(_LEFT, y, canvas.width - canvas.inset, y))
        canvas.parts.append(_label(_LEFT - 8, y + 4, show(mark, axis.unit), anchor="end"))
    span = canvas.end - canvas.start
    room = max(2.0, (canvas.width - _LEFT - canvas.inset) / 90)
    step = next((step for step in _STEPS if span / step <= room), _STEPS[-1])
    at = math.ceil(canvas.start / step) * step
    while at <= canvas.end:
        x = canvas.x(at)
        canvas.parts.append(_rule(x, _TOP, x, canvas.bottom))
        text = time.strftime("%H:%M" if step >= 60 else "%H:%M:%S", time.gmtime(at))  # noqa: PLR2004 - a minute
        canvas.parts.append(_label(x, canvas.height - 5, text, anchor="middle"))
        at += step


def _draw_line(canvas: Canvas, axis: Axis, line: Line, points: Points, *, below: Points | None) -> None:
    color, stepped = line.field.color(), line.field.custom.get("lineInterpolation") == "stepAfter"
    known = [(at, value) for at, value in points if not math.isnan(value)]
    if not known:
        return
    edge = _path(canvas, axis, known, stepped=stepped)
    if line.fill:
        floor = [(canvas.x(at), axis.y(value)) for at, value in below] if below else []
        floor = floor or [(edge[0][0], axis.y(0)), (edge[-1][0], axis.y(0))]
        shape = " ".join(f"{x:.1f},{y:.1f}" for x, y in [*edge, *reversed(floor)])
        canvas.parts.append(f'<polygon points="{shape}" fill="{color}" opacity="{line.fill:.2f}"/>')
    width = line.field.custom.get("lineWidth", 1)
    dash = line.field.custom.get("lineStyle", {}).get("dash", [])
    dashes = f' stroke-dasharray="{" ".join(map(str, dash))}"' if dash else ""
    drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in edge)
    canvas.parts.append(f'<polyline points="{drawn}" fill="none" stroke="{color}" stroke-width="{width}"{dashes}/>')


def _path(canvas: Canvas, axis: Axis, points: Points, *, stepped: bool) -> Points:
    edge: Points = []
    for at, value in points:
        x, y = canvas.x(at), axis.y(value)
        if stepped and edge:
            edge.append((x, edge[-1][1]))
        edge.append((x, y))
    return edge


def _draw_bars(canvas: Canvas, axis: Axis, line: Line, points: Points, below: Points) -> None:
    slot = (canvas.width - _LEFT - canvas.inset) / max(1, len(points))
    for (at, top), (_, bottom) in zip(points, below, strict=True):
        if top > bottom:
            height = axis.y(bottom) - axis.y(top)
            canvas.parts.append(
                f'<rect x="{canvas.x(at) - 0.4 * slot:.1f}" y="{axis.y(top):.1f}" width="{0.8 * slot:.1f}" '
                f'height="{height:.1f}" fill="{line.field.color()}" opacity="0.85"/>'
            )


def _draw_right(canvas: Canvas, lines: Sequence[Line]) -> None:
    axis = Axis.over([value for line in lines for _, value in line.points], lines[0].field, bottom=canvas.bottom)
    for mark in axis.marks:
        canvas.parts.append(
            _label(canvas.width - canvas.inset + 6, axis.y(mark) + 4, show(mark, axis.unit), anchor="start")
        )
    for line in lines:
        _draw_line(canvas, axis, line, line.points, below=None)


def _rule(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{_GRID}"/>'


def _label(x: float, y: float, text: str, *, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{_TEXT}">{escape(text)}</text>'
