"""A real Prometheus: started with targets and rules, asked over its API."""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import subprocess
import urllib.parse
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.integration.server import PATIENCE, free_port, until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

PROMETHEUS = shutil.which("prometheus")
needs_prometheus = pytest.mark.skipif(
    PROMETHEUS is None, reason="prometheus is not installed: apt-get install prometheus"
)


@dataclass(frozen=True, slots=True)
class Target:
    """What is scraped: ``HOST:PORT``, and the labels that its series get, as a PodMonitor would give them."""

    address: str
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Series:
    """One series of an answer: its labels, and its values by time."""

    labels: dict[str, str]
    values: list[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Prometheus:
    """A running Prometheus."""

    port: int

    def ask(self, path: str, **parameters: str) -> Any:
        """Ask its API; None when it does not answer yet."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        with contextlib.closing(connection), contextlib.suppress(ConnectionError):
            connection.request("GET", f"{path}?{urllib.parse.urlencode(parameters)}")
            answer = connection.getresponse()
            body = answer.read()
            if answer.status in {200, 400}:
                return json.loads(body)
        return None

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Evaluate an expression now: labels and value of each result."""
        results = self._results("/api/v1/query", query=expression)
        return [(result["metric"], float(result["value"][1])) for result in results]

    def range(self, expression: str, *, start: float, end: float, step: float) -> list[Series]:
        """Evaluate an expression over time; instants are Unix times, the step is in seconds."""
        results = self._results(
            "/api/v1/query_range", query=expression, start=f"{start:.3f}", end=f"{end:.3f}", step=f"{step:g}"
        )
        return [
            Series(result["metric"], [(float(at), float(value)) for at, value in result["values"]])
            for result in results
        ]

    def number(self, expression: str) -> float | None:
        """Evaluate an expression with one result; None if there is none."""
        results = self.query(expression)
        assert len(results) <= 1, results
        return results[0][1] if results else None

    def _results(self, path: str, **parameters: str) -> list[Any]:
        answer = self.ask(path, **parameters)
        assert answer is not None
        assert answer["status"] == "success", answer
        found: list[Any] = answer["data"]["result"]
        return found


@contextlib.contextmanager
def scraping(
    directory: Path, targets: Sequence[Target], *, rules: Sequence[Path] = (), interval: str = "500ms"
) -> Iterator[Prometheus]:
    """Start one in a directory of its own, and wait until it has scraped every target."""
    assert PROMETHEUS is not None
    directory.mkdir()
    configuration = directory / "prometheus.yml"
    configuration.write_text(yaml.safe_dump(_configuration(targets, rules, interval)))
    port = free_port()
    command = [
        PROMETHEUS,
        f"--config.file={configuration}",
        f"--storage.tsdb.path={directory / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (directory / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        prometheus = Prometheus(port)
        try:
            until(lambda: prometheus.ask("/api/v1/query", query="up"), what="Prometheus")
            until(lambda: prometheus.number("sum(up)") == len(targets), what="the first scrapes")
            yield prometheus
        finally:
            process.terminate()
            process.wait(PATIENCE)


def _configuration(targets: Sequence[Target], rules: Sequence[Path], interval: str) -> dict[str, Any]:
    return {
        "global": {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval},
        "rule_files": [str(path) for path in rules],
        "scrape_configs": [
            {
                "job_name": "refork",
                "static_configs": [{"targets": [target.address], "labels": dict(target.labels)} for target in targets],
            }
        ],
    }
