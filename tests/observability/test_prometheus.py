"""A real Prometheus scrapes a real server, and its queries return what the status says."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import shutil
import subprocess
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from refork import api
from tests.integration.server import PATIENCE, Server, free_port, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.integration.conftest import Serve

PROMETHEUS = shutil.which("prometheus")
pytestmark = pytest.mark.skipif(PROMETHEUS is None, reason="prometheus is not installed: apt-get install prometheus")

ROOT = Path(__file__).parents[2]
QUERY = re.compile(r"^\| [^|`]+\? \| `([^`]*refork_[^`]*)` \|", re.MULTILINE)
"""A row of a table of questions and queries."""

MIB = 1024 * 1024
CONFIGURATION = """
global: {{scrape_interval: 500ms, scrape_timeout: 500ms}}
scrape_configs:
- job_name: refork
  static_configs:
  - targets: ["127.0.0.1:{port}"]
"""


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
        answer = self.ask("/api/v1/query", query=expression)
        assert answer is not None
        assert answer["status"] == "success", answer
        return [(result["metric"], float(result["value"][1])) for result in answer["data"]["result"]]

    def number(self, expression: str) -> float | None:
        """Evaluate an expression with one result; None if there is none."""
        results = self.query(expression)
        assert len(results) <= 1, results
        return results[0][1] if results else None


@pytest.fixture
def watched(serve: Serve, tmp_path: Path) -> Iterator[tuple[Server, Prometheus]]:
    """Boot a server, and a Prometheus that has scraped it."""
    target, port = free_port(), free_port()
    server = serve("--metrics-bind", f"127.0.0.1:{target}", workers=3)
    directory = tmp_path / "prometheus"
    directory.mkdir()
    (directory / "prometheus.yml").write_text(CONFIGURATION.format(port=target))
    assert PROMETHEUS is not None
    command = [
        PROMETHEUS,
        f"--config.file={directory / 'prometheus.yml'}",
        f"--storage.tsdb.path={directory / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (directory / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        prometheus = Prometheus(port)
        try:
            until(lambda: prometheus.ask("/api/v1/query", query="up"), what="Prometheus")
            until(lambda: prometheus.number("up == 1"), what="the first scrape")
            yield server, prometheus
        finally:
            process.terminate()
            process.wait(PATIENCE)


def agree(
    server: Server,
    prometheus: Prometheus,
    expression: str,
    figure: Callable[[api.Status], float | None],
    *,
    within: float = 0.0,
) -> None:
    """Wait until a query returns what the status says at the same time, to a share of it."""

    def look() -> bool:
        before, seen, after = figure(server.status()), prometheus.number(expression), figure(server.status())
        if before is None or after is None or seen is None:
            return False
        return any(abs(seen - told) <= within * abs(told) for told in (before, after))

    until(look, what=f"{expression} to be what the status says")


def totals(status: api.Status) -> api.Totals:
    assert status.totals is not None
    return status.totals


def test_queries_return_what_the_status_says(watched: tuple[Server, Prometheus]) -> None:
    """Memory, gain, requests, workers and reforks, before and after a refork."""
    server, prometheus = watched
    for worker in server.wait_steady().workers:
        server.get_from(worker.pid, f"/eval/bool(kept)or(kept.append(b'x'*{20 * MIB})or(True))")
    agree(server, prometheus, "refork_gain_predicted_bytes", lambda status: status.gain.predicted, within=0.01)
    until(lambda: (prometheus.number("refork_gain_predicted_bytes") or 0) >= 40 * MIB, what="the predicted gain")
    agree(server, prometheus, "sum(refork_memory_gained_bytes)", lambda s: sum(w.gained or 0 for w in s.workers))

    server.succeed(server.refork())
    agree(server, prometheus, "refork_generation", lambda status: status.generation)
    agree(server, prometheus, "refork_gain_realised_bytes", lambda status: status.gain.realised)
    agree(server, prometheus, "sum(refork_requests_total)", lambda s: sum(slot.requests for slot in s.served))
    agree(server, prometheus, 'refork_workers{state="ready"}', lambda status: status.ready)
    agree(server, prometheus, "refork_sealed_objects", lambda s: max(m.seal.total_objects for m in s.molds if m.seal))
    memory = "sum by (instance) (refork_memory_{}_bytes)"
    agree(server, prometheus, memory.format("pss"), lambda status: totals(status).pss, within=0.01)
    agree(server, prometheus, memory.format("rss"), lambda status: totals(status).rss, within=0.01)
    agree(server, prometheus, memory.format("uss"), lambda status: totals(status).uss, within=0.01)
    share = "refork_memory_saved_bytes / on (instance) sum by (instance) (refork_memory_rss_bytes)"
    agree(server, prometheus, share, lambda status: totals(status).saved / totals(status).rss, within=0.01)
    agree(server, prometheus, "refork_memory_shared_ratio", lambda status: totals(status).shared_ratio, within=0.01)

    succeeded = 'refork_reforks_total{trigger="command",outcome="succeeded",kind="refork"}'
    assert prometheus.number(succeeded) == 1
    assert prometheus.number("sum(refork_reforks_total)") == 1
    assert prometheus.number('refork_rollout_step_duration_seconds_count{step="rolling"}') == 1
    rolling = next(step for step in server.status().steps if step.phase is api.Phase.ROLLING)
    assert prometheus.number('refork_rollout_step_duration_seconds_sum{step="rolling"}') == rolling.seconds
    (info, one), *_ = prometheus.query("refork_info")
    status = server.status()
    assert (info["version"], info["worker_class"], info["sealing"], one) == (status.version, "sync", status.sealing, 1)


def test_the_control_group_is_what_the_status_says(watched: tuple[Server, Prometheus]) -> None:
    """Usage, working set, and a limit where there is one."""
    server, prometheus = watched
    status = server.wait_status(lambda status: status.sampling.seconds > 0, what="a sample")
    if status.cgroup is None:
        pytest.skip("this server is in no control group that counts memory")
    names = ("usage", "working_set")
    for name in names:
        agree(
            server,
            prometheus,
            f"refork_cgroup_memory_{name}_bytes",
            lambda status, name=name: None if status.cgroup is None else getattr(status.cgroup, name),
            within=0.05,
        )
    limit = prometheus.number("refork_cgroup_memory_limit_bytes")
    assert limit == status.cgroup.limit


def test_the_documented_queries_can_be_asked(watched: tuple[Server, Prometheus]) -> None:
    """Each query of README and of docs/METRICS.md is understood, and those that need no history have an answer."""
    _, prometheus = watched
    pages = [ROOT / "README.md", ROOT / "docs" / "METRICS.md"]
    queries = [query for page in pages for query in QUERY.findall(page.read_text())]
    assert len(queries) >= 8
    for query in queries:
        results = prometheus.query(query)
        optional = ("rate(", "increase(", "> 0", "limit", "realised")
        assert results or any(word in query for word in optional), query


def test_reforks_leave_no_series_behind(watched: tuple[Server, Prometheus]) -> None:
    """However many processes come and go, the series are those of the slots."""
    server, prometheus = watched
    server.succeed(server.refork())
    count = 'count({__name__=~"refork_.*"})'
    until(lambda: prometheus.number("refork_gain_realised_bytes") is not None, what="a scrape after the first refork")
    gained = 'count(refork_memory_erosion_bytes_per_second{slot=~"[012]"}) == 3'
    until(lambda: prometheus.number(gained), what="rates of all workers")
    before = prometheus.number(count)
    for generation in range(2, 5):
        server.succeed(server.refork())
        server.wait_steady(generation=generation)
    until(lambda: prometheus.number("refork_generation") == 4, what="a scrape after the last refork")
    until(lambda: prometheus.number(gained), what="rates of all workers")
    assert prometheus.number(count) == before
    answer = prometheus.ask("/api/v1/labels")
    assert "pid" not in answer["data"]
    assert {"role", "slot"} <= set(answer["data"])


def test_the_probes_answer_like_probes(serve: Serve) -> None:
    """Alive from the first moment; ready when as many workers serve as are wanted; GET only."""
    port = free_port()
    server = serve("--metrics-bind", f"127.0.0.1:{port}", workers=2)

    def probe(path: str, method: str = "GET") -> int:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        with contextlib.closing(connection):
            connection.request(method, path)
            return connection.getresponse().status

    assert probe("/healthz") == 200
    until(lambda: probe("/readyz") == 200, what="readiness")
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        assert {probe(path, method) for path in ("/metrics", "/healthz", "/readyz")} == {405}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    with contextlib.closing(connection):
        connection.request("GET", "/v1/status")
        told = msgspec.json.decode(connection.getresponse().read(), type=api.Status)
    assert told.pid == server.monitor
