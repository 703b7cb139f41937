"""Everything that the dashboards show, for real: servers, the operator that reforks them, an exporter, and Prometheus.

The servers are real processes, each shown to a fake API server as a pod; the operator is a real process that reads
them there, asks them over TCP, and reforks them; Prometheus scrapes all of them, with the labels that a PodMonitor
gives, and computes the rules of the chart.
"""

from __future__ import annotations

import base64
import contextlib
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from refork import api, metrics_app
from tests.integration.server import BRISK, WSGI, Server, free_port, until
from tests.observability.plain import plain
from tests.observability.prometheus import Prometheus, Target, scraping
from tests.operator.conftest import Box

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.operator.conftest import Process

RULES = Path(__file__).parents[2] / "helm/refork/files/rules/refork.rules.yaml"
TOKEN = "t" * 40
MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Pod:
    """One server as the cluster knows it: ``number`` makes its address, ``job`` is the name of its workload."""

    number: int
    namespace: str
    job: str
    name: str
    server: Server
    metrics: int = field(default_factory=free_port)
    control: int = field(default_factory=free_port)

    @property
    def address(self) -> str:
        return f"127.3.0.{self.number}"

    @property
    def target(self) -> Target:
        return Target(
            f"{self.address}:{self.metrics}", {"namespace": self.namespace, "job": self.job, "pod": self.name}
        )

    def start(self, *words: str, app: str, workers: int, **start: Any) -> None:
        """Execute the server, with a metrics and a control endpoint on the pod's address."""
        tokens = self.server.write("tokens", f"{TOKEN}\n")
        tokens.chmod(0o600)
        self.server.write("app.py", app)
        self.server.write("gunicorn.conf.py", "")
        self.server.start(
            *("-w", str(workers)),
            *("--metrics-bind", f"{self.address}:{self.metrics}"),
            *("--control-tcp", f"{self.address}:{self.control}", "--control-plaintext"),
            *("--control-token-file", str(tokens)),
            *words,
            "app:app",
            **start,
        )

    def manifest(self) -> dict[str, Any]:
        """Describe it as the API server would."""
        owner = {"kind": "ReplicaSet", "name": f"{self.job}-7d9f", "uid": "1", "controller": True}
        return {
            "metadata": {
                "name": self.name,
                "namespace": self.namespace,
                "labels": {"app": self.job, "pod-template-hash": "7d9f"},
                "annotations": {},
                "ownerReferences": [owner],
                "creationTimestamp": "2026-01-01T00:00:00Z",
            },
            "spec": {
                "nodeName": f"node-{self.number}",
                "containers": [
                    {"name": "app", "ports": [{"name": "refork-control", "containerPort": self.control}]},
                ],
            },
            "status": {
                "phase": "Running",
                "podIP": self.address,
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        }


class Limited:
    """The metrics of a server as they are in a container with a limit, which the machine of the tests may not set."""

    CGROUP = api.Cgroup(
        version=2,
        usage=400 * MIB,
        working_set=300 * MIB,
        limit=512 * MIB,
        oom_kills=0,
        psi_some_avg10=0.0,
        psi_full_avg10=0.0,
    )

    def __init__(self, pod: Pod) -> None:
        self.pod = pod
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def target(self) -> Target:
        labels = dict(self.pod.target.labels) | {"pod": f"{self.pod.job}-limited"}
        return Target(f"127.0.0.1:{self._http.server_port}", labels)

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self.pod.server

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status = msgspec.structs.replace(server.status(), cgroup=Limited.CGROUP)
                body, kind = metrics_app.render(status)
                self.send_response(200)
                self.send_header("Content-Type", kind)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the library's name
                """Say nothing."""

        return Handler


@dataclass(frozen=True, slots=True)
class Stage:
    """All of it, running."""

    box: Box
    operator: Process
    prometheus: Prometheus
    pods: Sequence[Pod]
    began: float


def workload(box: Box, namespace: str, name: str) -> None:
    """Create a Deployment, and the Secret with the token of its pods."""
    box.api.create(
        "deployments",
        {
            "metadata": {"name": name, "namespace": namespace, "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"replicas": 1, "template": {"metadata": {"labels": {"app": name}}}},
        },
    )
    token = base64.b64encode(TOKEN.encode()).decode()
    box.api.create(
        "secrets", {"metadata": {"name": f"{name}-control", "namespace": namespace}, "data": {"token": token}}
    )


def policy(box: Box, namespace: str, name: str, **spec: Any) -> None:
    """Create a policy for a workload."""
    whole = {
        "selector": {"matchLabels": {"app": name}},
        "mode": "Enforce",
        "interval": "1s",
        "control": {"tokenSecretRef": {"name": f"{name}-control"}},
        "cooldown": {"pod": "10m"},
        "maxConcurrent": "100%",
        "minAge": "0s",
        "minGain": "8Mi",
    } | spec
    box.api.create("reforkpolicies", {"metadata": {"name": name, "namespace": namespace}, "spec": whole})


@contextlib.contextmanager
def staged(directory: Path) -> Iterator[Stage]:
    """Play one server's life: workers that erode, a refork by the operator, one that fails, a rebase, an error."""
    box = Box(directory)
    with contextlib.ExitStack() as closing:
        closing.callback(box.close)
        home = directory / "server"
        home.mkdir()
        pod = Pod(1, "shop", "web", "web-0", Server(home, traces=True))
        closing.callback(pod.server.close)
        operator = box.operator()
        legacy = closing.enter_context(plain(directory / "plain"))
        pod.start(*BRISK, app=WSGI, workers=3)
        workload(box, pod.namespace, pod.job)
        box.api.create("pods", pod.manifest())
        began = time.time()
        pod.server.wait_steady()
        limited = Limited(pod)
        closing.callback(limited.close)
        labels = {"namespace": "refork", "job": "refork-operator", "pod": "refork-operator-0"}
        targets = [pod.target, limited.target, legacy.target, Target(operator.url.removeprefix("http://"), labels)]
        prometheus = closing.enter_context(scraping(directory / "prometheus", targets, rules=[RULES]))
        _live(box, pod)
        yield Stage(box, operator, prometheus, [pod], began)


def _live(box: Box, pod: Pod) -> None:
    server = pod.server
    policy(
        box,
        pod.namespace,
        pod.job,
        triggers=[{"metric": "PredictedGain", "threshold": "24Mi", "sustainedFor": "1s"}],
    )
    erode(server, 16 * MIB)
    server.wait_status(lambda status: status.generation >= 1, what="a refork by the operator")
    until(
        lambda: box.api.get("reforkpolicies", pod.job, pod.namespace)["status"]["reforks"]["succeeded"] == 1,
        what="its report",
    )
    server.wait_steady(generation=1)
    for worker in server.status().workers:
        server.get_from(worker.pid, "/thread")
    server.fail(server.refork())
    server.wait_steady()
    server.succeed(server.rebase())
    assert server.get("/error").status == 500
    erode(server, 2 * MIB)


def reported(box: Box, pod: Pod) -> dict[str, Any]:
    """Read what the policy of a pod's workload says of its reforks."""
    status = box.api.get("reforkpolicies", pod.job, pod.namespace).get("status") or {}
    found: dict[str, Any] = status.get("reforks") or {}
    return found


def erode(server: Server, size: int) -> None:
    """Have each worker keep so many bytes more."""
    for worker in server.wait_steady().workers:
        server.get_from(worker.pid, f"/eval/bool(kept)or(kept.append(b'x'*{size})or(True))")
