"""A real Prometheus scrapes a real server, and its queries return what the status says."""

from __future__ import annotations

import contextlib
import http.client
import re
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from refork import api
from tests.integration.server import PATIENCE, Server, free_port, until
from tests.observability.prometheus import Prometheus, Target, needs_prometheus, scraping

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.integration.conftest import Serve

pytestmark = needs_prometheus

ROOT = Path(__file__).parents[2]
QUERY = re.compile(r"^\| [^|`]+\? \| `([^`]*refork_[^`]*)` \|", re.MULTILINE)
"""A row of a table of questions and queries."""

MIB = 1024 * 1024


@pytest.fixture
def watched(serve: Serve, tmp_path: Path) -> Iterator[tuple[Server, Prometheus]]:
    """Boot a server, and a Prometheus that has scraped it."""
    address = f"127.0.0.1:{free_port()}"
    server = serve("--metrics-bind", address, workers=3)
    with scraping(tmp_path / "prometheus", [Target(address)]) as prometheus:
        yield server, prometheus


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


def test_the_queries_of_readme_return_the_numbers_of_the_status(watched: tuple[Server, Prometheus]) -> None:
    """Each of them, after a refork that had something to win."""
    server, prometheus = watched
    for worker in server.wait_steady().workers:
        server.get_from(worker.pid, f"/eval/bool(kept)or(kept.append(b'x'*{8 * MIB})or(True))")
    server.succeed(server.refork())
    for worker in server.wait_steady(generation=1).workers:
        server.get_from(worker.pid, f"/eval/len(kept)>1or(kept.append(b'x'*{4 * MIB})or(True))")

    def kept(status: api.Status) -> float | None:
        gain = status.gain
        return None if gain.realised is None or not gain.promised else gain.realised / gain.promised

    figures: dict[str, Callable[[api.Status], float | None]] = {
        "sum by (instance) (refork_memory_pss_bytes)": lambda status: totals(status).pss,
        "refork_memory_saved_bytes": lambda status: totals(status).saved,
        "refork_gain_predicted_bytes": lambda status: status.gain.predicted,
        "refork_gain_realised_bytes / refork_gain_promised_bytes": kept,
    }
    assert QUERY.findall((ROOT / "README.md").read_text()) == list(figures)
    for query, figure in figures.items():
        agree(server, prometheus, query, figure, within=0.01)


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
