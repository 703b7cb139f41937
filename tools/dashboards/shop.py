"""A small fleet under load, for the pictures: three workloads on refork, one of them reforked, and one that is not.

`web` has a policy that enforces, `search` one that only observes, and workers of `invoices` start a thread, which makes
its refork fail. All of them fill their caches as they serve: they erode.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.integration.server import Server
from tests.observability.plain import plain
from tests.observability.prometheus import Prometheus, Target, scraping
from tests.observability.stage import RULES, Pod, policy, workload
from tests.operator.conftest import Box

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

APP = """
import os, random, threading

PAGES, SESSIONS = {}, {}


def page(product):
    "Render a page once: lazily, as caches are filled."
    if product not in PAGES:
        PAGES[product] = [f"{product} {line} " + "x" * 48 for line in range(96)]
    return PAGES[product]


def app(environ, start_response):
    if environ["PATH_INFO"] == "/thread":
        threading.Thread(target=threading.Event().wait, name="ticker", daemon=True).start()
    size = sum(len(page(random.randrange(5000))) for _ in range(10))
    SESSIONS[random.randrange(600)] = [f"{number} " + "y" * 48 for number in range(240)]
    status = "500 Oops" if random.random() < 0.0005 else "200 OK"
    headers = [("Content-Type", "text/plain"), ("Content-Length", "5"), ("X-Worker-Pid", str(os.getpid()))]
    start_response(status, headers)
    return [b"%05d" % size]
"""
"""Pages are all there are after a while, and shared by a refork; sessions are renewed for ever, and erode again."""

WORKLOADS = {("shop", "web"): 3, ("shop", "search"): 2, ("billing", "invoices"): 1}
"""Pods of each workload."""

WORKERS = 4
SCRAPE = 3
"""Seconds from one scrape to the next, and for one: the machine may be busy."""


@dataclass(frozen=True, slots=True)
class Shop:
    """All of it, running."""

    prometheus: Prometheus
    pods: Sequence[Pod]
    began: float


@contextlib.contextmanager
def opened(directory: Path) -> Iterator[Shop]:
    """Start servers, operator, Prometheus and load."""
    box = Box(directory)
    with contextlib.ExitStack() as closing:
        closing.callback(box.close)
        operator = box.operator("--poll-timeout", "5")  # seven servers may be more than the machine has processors for
        legacy = closing.enter_context(plain(directory / "plain"))
        pods = _pods(directory)
        for pod in pods:
            closing.callback(pod.server.close)
            pod.start("--refork-after", "0", app=APP, workers=WORKERS)
        for namespace, name in WORKLOADS:
            workload(box, namespace, name)
        for pod in pods:
            box.api.create("pods", pod.manifest())
            pod.server.wait_steady()
        labels = {"namespace": "refork", "job": "refork-operator", "pod": "refork-operator-0"}
        targets = [*(pod.target for pod in pods), legacy.target, Target(operator.url.removeprefix("http://"), labels)]
        prometheus = closing.enter_context(
            scraping(directory / "prometheus", targets, rules=[RULES], interval=f"{SCRAPE}s")
        )
        began = time.time()
        _command(box)
        for pod in pods:
            closing.enter_context(pod.server.load(connections=2, pause=0.05))
        yield Shop(prometheus, pods, began)


def _pods(directory: Path) -> list[Pod]:
    names = [(*where, f"{where[1]}-{number}") for where, count in WORKLOADS.items() for number in range(count)]
    pods = []
    for number, (namespace, job, name) in enumerate(names, start=1):
        home = directory / name
        home.mkdir()
        pods.append(Pod(number, namespace, job, name, Server(home)))
    return pods


def _command(box: Box) -> None:
    gain = {"metric": "PredictedGain", "sustainedFor": "5s"}
    common = {"cooldown": {"pod": "75s"}, "maxConcurrent": 1}
    policy(box, "shop", "web", triggers=[gain | {"threshold": "48Mi"}], **common)
    policy(box, "shop", "search", triggers=[gain | {"threshold": "48Mi"}], mode="Observe", **common)
    policy(box, "billing", "invoices", triggers=[gain | {"threshold": "400Mi"}], **common)
