"""The two formats that Prometheus reads, written directly.

The client library's own writers check and escape each label of each sample anew, which for the 1,500 samples of a
server with 64 workers takes 10 to 20 ms, in the monitor's event loop. Here a label set is made into text once and used
for all metrics of its place, and a sample is one line of formatting. The tests read the result with the library's
parsers, and with promtool.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

OPENMETRICS = "application/openmetrics-text"
_CONTENT_TYPES = {
    False: "text/plain; version=0.0.4; charset=utf-8",
    True: f"{OPENMETRICS}; version=1.0.0; charset=utf-8",
}

type Sample = tuple[str, float]
"""What follows the name of the metric (labels, as ``labels()`` writes them), and the value."""


class Kind(StrEnum):
    """The types of metrics that there are here, as OpenMetrics calls them."""

    GAUGE = "gauge"
    COUNTER = "counter"
    HISTOGRAM = "histogram"
    INFO = "info"


@dataclass(frozen=True, slots=True)
class Family:
    """A metric with all its samples. The name of a counter has no ``_total``, nor that of an info ``_info``."""

    name: str
    kind: Kind
    help: str
    samples: Sequence[Sample]


_SUFFIX = {Kind.COUNTER: "_total", Kind.INFO: "_info"}
_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


def labels(**values: object) -> str:
    """Write a label set; the values may hold anything."""
    if not values:
        return ""
    return "{" + ",".join(f'{name}="{str(value).translate(_ESCAPES)}"' for name, value in values.items()) + "}"


def wants_openmetrics(accept: str) -> bool:
    """Whether a scraper likes OpenMetrics at least as much as the plain text, by its Accept header."""
    liked = dict.fromkeys((OPENMETRICS, "text/plain"), 0.0)
    for choice in accept.lower().split(","):
        kind, *parameters = (part.strip() for part in choice.split(";"))
        if kind in liked:
            liked[kind] = max(liked[kind], _quality(parameters))
    return liked[OPENMETRICS] > 0 and liked[OPENMETRICS] >= liked["text/plain"]


def write(families: Iterable[Family], *, openmetrics: bool) -> tuple[bytes, str]:
    """Write them all: the body and its content type."""
    lines: list[str] = []
    for family in families:
        suffix = _SUFFIX.get(family.kind, "")
        sampled = family.name + suffix
        kind = family.kind.value
        described = family.name
        if not openmetrics:  # which knows no info, and calls a counter by the name of its sample
            kind = "gauge" if family.kind is Kind.INFO else kind
            described = sampled
        lines.append(f"# HELP {described} {family.help}\n# TYPE {described} {kind}\n")
        lines.extend([f"{sampled}{what} {value!r}\n" for what, value in family.samples])
    if openmetrics:
        lines.append("# EOF\n")
    return "".join(lines).encode(errors="replace"), _CONTENT_TYPES[openmetrics]


def _quality(parameters: Iterable[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return float(value)
            except ValueError:
                return 0.0
    return 1.0
