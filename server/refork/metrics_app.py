"""What Prometheus may know: the status of the server as metrics, and two probes.

A collector turns one ``api.Status`` into metric families. It measures nothing by itself: a scrape reads what the
monitor knows already, so that no number of scrapers can slow the processes that serve. There is no global registry, so
the metrics of an application that is its own client of Prometheus never mix with these.

Series are named by role and slot, which stay, and never by pid, which does not: a refork every minute must not leave a
thousand dead series a day behind. Each metric is explained in docs/METRICS.md.

Loaded late, by the first scrape or probe, because it imports the web framework and the Prometheus client.
"""

from __future__ import annotations

from collections import Counter
from itertools import product
from typing import TYPE_CHECKING

from aiohttp import web
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector, CollectorRegistry

from refork import api
from refork.answers import always_answer
from refork.page import DOCUMENT, HEADERS
from refork.readings import add_readings

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable, Iterator

    from prometheus_client.core import Metric

    from refork.endpoint import Log
    from refork.events import Events

MONITOR, MOLD, WORKER = "monitor", "mold", "worker"


class StatusCollector(Collector):
    """Yields the metric families of one status."""

    def __init__(self, status: api.Status) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        """Yield them all, those about workers first."""
        yield from _about_workers(self._status)
        yield from _about_memory(self._status)
        yield from _about_requests(self._status)
        yield from _about_generations(self._status)
        yield _about_versions(self._status)


def render(status: api.Status, *, accept: str = "") -> tuple[bytes, str]:
    """Write a status as the scraper wants it (text or OpenMetrics): the body and its content type."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(StatusCollector(status))
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


def _about_workers(status: api.Status) -> Iterator[Metric]:
    states = Counter(worker.state for worker in status.workers)
    workers = GaugeMetricFamily("refork_workers", "Worker processes, by state.", labels=["state"])
    for state in api.WorkerState:
        workers.add_metric([state], states[state])
    yield workers
    yield GaugeMetricFamily("refork_workers_wanted", "Workers that there should be.", value=status.wanted)


def _about_memory(status: api.Status) -> Iterator[Metric]:
    sizes = {
        "refork_memory_rss_bytes": ("Resident memory; shared pages count in full for each process.", "rss"),
        "refork_memory_pss_bytes": ("Resident memory; each shared page divided by its users.", "pss"),
        "refork_memory_uss_bytes": ("Memory that the process shares with no other.", "uss"),
        "refork_memory_private_dirty_bytes": ("Memory that the process alone has written to.", "private_dirty"),
    }
    measured = list(_measured(status))
    for name, (meaning, size) in sizes.items():
        family = GaugeMetricFamily(name, meaning, labels=["role", "slot"])
        # During a rollout a slot has two processes for a moment, and there may be two molds: one series, their sum.
        sums: Counter[tuple[str, str]] = Counter()
        for role, slot, memory in measured:
            sums[role, slot] += getattr(memory, size)
        for (role, slot), value in sums.items():
            family.add_metric([role, slot], value)
        yield family
    if status.totals is not None:
        saved = "Sum of RSS less sum of PSS over all processes: what sharing saves now."
        yield GaugeMetricFamily("refork_memory_saved_bytes", saved, value=status.totals.saved)


def _measured(status: api.Status) -> Iterator[tuple[str, str, api.Memory]]:
    if status.monitor_memory is not None:
        yield MONITOR, "", status.monitor_memory
    for mold in status.molds:
        if mold.memory is not None:
            yield MOLD, "", mold.memory
    for worker in status.workers:
        if worker.memory is not None:
            yield WORKER, str(worker.slot), worker.memory


def _about_requests(status: api.Status) -> Iterator[Metric]:
    requests = CounterMetricFamily("refork_requests", "Requests served, by slot.", labels=["slot"])
    errors = CounterMetricFamily("refork_request_errors", "Requests that ended in an error, by slot.", labels=["slot"])
    for slot in status.served:
        requests.add_metric([str(slot.slot)], slot.requests)
        errors.add_metric([str(slot.slot)], slot.errors)
    yield requests
    yield errors


def _about_generations(status: api.Status) -> Iterator[Metric]:
    yield GaugeMetricFamily(
        "refork_generation", "Generation of the mold that forks workers now.", value=status.generation
    )
    reforks = CounterMetricFamily(
        "refork_reforks", "Reforks and rebases that have ended.", labels=["trigger", "outcome", "kind"]
    )
    # A series that appears with its first event hides that event from rate(): all of them are there from the start.
    counts = {(count.trigger, count.outcome, count.kind): count.count for count in status.rollouts}
    for labels in product(api.Trigger, api.Outcome, api.RolloutKind):
        reforks.add_metric(labels, counts.get(labels, 0))
    yield reforks
    sealed = "Objects sealed so far in the heap that workers are forked from."
    yield GaugeMetricFamily("refork_sealed_objects", sealed, value=_sealed_objects(status.molds))


def _sealed_objects(molds: Iterable[api.MoldStatus]) -> int:
    """Take the newest mold that has been sealed; the reports of all generations add up in it."""
    sealed = [(mold.generation, mold.seal.total_objects) for mold in molds if mold.seal is not None]
    return max(sealed)[1] if sealed else 0


def _about_versions(status: api.Status) -> Metric:
    facts = {
        "version": status.version,
        "python": status.python,
        "gunicorn": status.gunicorn,
        "worker_class": status.worker_class,
        "sealing": status.sealing,
    }
    return InfoMetricFamily("refork", "Versions and settings of the server, as labels; always 1.", value=facts)


def application(
    status: Callable[[], api.Status],
    events: Events,
    *,
    stay: Callable[[asyncio.BaseTransport], None],
    log: Log,
) -> web.Application:
    """Build the web application: the live page, ``/metrics``, the probes, and what may be read under ``/v1``."""

    async def metrics(request: web.Request) -> web.Response:
        body, content_type = render(status(), accept=request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        now = status()
        ready = now.ready >= max(now.wanted, 1)
        return web.Response(text=f"ready={now.ready} wanted={now.wanted}\n", status=200 if ready else 503)

    async def page(_: web.Request) -> web.Response:
        return web.Response(body=DOCUMENT, headers=HEADERS)

    app = web.Application(client_max_size=1024, middlewares=[always_answer(log)])
    app.router.add_get("/", page)
    app.router.add_get("/metrics", metrics)
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    add_readings(app, status, events, stay=stay)
    return app
