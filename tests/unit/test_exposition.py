"""refork.exposition writes what Prometheus' own parsers read back, in both formats."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from refork.exposition import Family, Kind, labels, wants_openmetrics, write

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

PROMETHEUS_2 = (
    "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)


def read(families: list[Family], parse: Callable[[str], Any], *, openmetrics: bool) -> dict[Any, float]:
    """Write and read back."""
    body, _ = write(families, openmetrics=openmetrics)
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in parse(body.decode())
        for sample in family.samples
    }


@given(st.text(), st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False))
def test_any_label_and_any_number_come_back(text: str, number: float) -> None:
    """Whatever an application calls itself: quotes, backslashes, line breaks."""
    families = [Family("refork_level", Kind.GAUGE, "A level.", [(labels(what=text, slot=3), number)])]
    text = text.encode("utf-8", "replace").decode()
    expected = {("refork_level", ("slot", "3"), ("what", text)): float(number)}
    assert read(families, parse_text, openmetrics=False) == expected
    assert read(families, parse_openmetrics, openmetrics=True) == expected


@pytest.mark.parametrize("openmetrics", [False, True])
def test_every_kind_of_metric_is_read_back(openmetrics: bool) -> None:  # noqa: FBT001
    """The two formats name the families of counters and infos differently, and their samples the same."""
    buckets = [(f"_bucket{labels(le='1.0')}", 2), (f"_bucket{labels(le='+Inf')}", 3), ("_count", 3), ("_sum", 4.5)]
    families = [
        Family("refork_level", Kind.GAUGE, "A level.", [("", 1.5)]),
        Family("refork_jobs", Kind.COUNTER, "Jobs.", [(labels(slot=0), 7)]),
        Family("refork_took_seconds", Kind.HISTOGRAM, "Took.", buckets),
        Family("refork", Kind.INFO, "Facts.", [(labels(version="1"), 1)]),
        Family("refork_unknown", Kind.GAUGE, "Nothing is known.", []),
    ]
    parse = parse_openmetrics if openmetrics else parse_text
    assert read(families, parse, openmetrics=openmetrics) == {
        ("refork_level",): 1.5,
        ("refork_jobs_total", ("slot", "0")): 7,
        ("refork_took_seconds_bucket", ("le", "1.0")): 2,
        ("refork_took_seconds_bucket", ("le", "+Inf")): 3,
        ("refork_took_seconds_count",): 3,
        ("refork_took_seconds_sum",): 4.5,
        ("refork_info", ("version", "1")): 1,
    }


@pytest.mark.parametrize(
    ("accept", "openmetrics"),
    [
        (PROMETHEUS_2, True),
        (PROMETHEUS_3, True),
        ("application/openmetrics-text", True),
        ("text/plain, application/openmetrics-text; q=0.5", False),
        ("application/openmetrics-text; q=0", False),
        ("application/openmetrics-text; q=x", False),
        ("text/html, */*", False),
        ("nonsense;;;,", False),
        ("", False),
    ],
)
def test_the_scraper_chooses_the_format(accept: str, openmetrics: bool) -> None:  # noqa: FBT001
    """OpenMetrics for who likes it at least as much; the plain text for everybody else."""
    assert wants_openmetrics(accept) is openmetrics


@given(st.text())
def test_any_header_is_an_answer(accept: str) -> None:
    """A header is anything that a client sends."""
    assert wants_openmetrics(accept) in {True, False}
