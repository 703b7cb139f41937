"""A Grafana dashboard as its JSON says it: panels, their queries, and what Grafana puts in for variables."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

FILES = Path(__file__).parents[2] / "helm/refork/files/dashboards"
FLEET, POD = FILES / "refork-fleet.json", FILES / "refork-pod.json"

_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
_LABEL_VALUES = re.compile(r"label_values\((.+), *(\w+)\)")


@dataclass(frozen=True, slots=True)
class Query:
    """One query: where it stands, its expression with variables, and whether it asks for now or for a time."""

    where: str
    expression: str
    instant: bool = False
    ref: str = "A"
    legend: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel; ``raw`` is all that the JSON says of it."""

    raw: Mapping[str, Any]

    @property
    def title(self) -> str:
        return str(self.raw["title"])

    @property
    def kind(self) -> str:
        """Grafana's name of the visualisation; ``row`` is a headline."""
        return str(self.raw["type"])

    @property
    def grid(self) -> tuple[int, int, int, int]:
        """x, y, width and height, in Grafana's units: 24 are the width of the page."""
        place = self.raw["gridPos"]
        return place["x"], place["y"], place["w"], place["h"]

    @property
    def queries(self) -> list[Query]:
        return [
            Query(self.title, target["expr"], target.get("instant", False), target["refId"], target["legendFormat"])
            for target in self.raw.get("targets", ())
        ]


@dataclass(frozen=True, slots=True)
class Dashboard:
    """One file."""

    raw: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> Dashboard:
        return cls(json.loads(path.read_text()))

    @property
    def panels(self) -> list[Panel]:
        return [Panel(raw) for raw in self.raw["panels"]]

    @property
    def variables(self) -> list[Mapping[str, Any]]:
        """The variables that are asked of Prometheus."""
        return [variable for variable in self.raw["templating"]["list"] if variable["type"] == "query"]

    def queries(self) -> Iterator[Query]:
        """Yield everything that is asked: of panels, of variables and of annotations."""
        for panel in self.panels:
            yield from panel.queries
        for variable in self.variables:
            yield Query(f"variable {variable['name']}", series_of(variable["query"]["query"]), instant=True)
        for annotation in self.raw["annotations"]["list"]:
            if "target" in annotation:
                yield Query(f"annotation {annotation['name']}", annotation["target"]["expr"])


def series_of(question: str) -> str:
    """Write Grafana's ``label_values(SERIES, LABEL)`` as PromQL: one result for each value of the label."""
    found = _LABEL_VALUES.fullmatch(question)
    assert found is not None, question
    return f"group by ({found[2]}) ({found[1]})"


def interpolate(text: str, values: Mapping[str, str]) -> str:
    """Put in values for ``$name`` and ``${name}``. A KeyError names the variable that has none."""
    return _VARIABLE.sub(lambda found: values[found[1] or found[2]], text)
