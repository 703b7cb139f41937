"""A cluster in a box: the fake API server with the real CRD and the real roles, fake pods, and operator processes."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import yaml

from tests.fakes.apiserver import Account, ApiServer
from tests.fakes.pods import FakePod, FakePods
from tests.helm import harness

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]
OPERATOR_TOKEN = "operator-token"
PATIENCE = 30.0


def until[Found](look: Callable[[], Found], *, seconds: float = PATIENCE, what: str = "") -> Found:
    """Wait until something is so, and return it."""
    deadline = time.monotonic() + seconds
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what or look}"
        time.sleep(0.02)


def account(name: str, release: harness.Release) -> Account:
    """Find out what a release of the chart lets its operator do, as an API server does: from binding to role."""
    everywhere: list[harness.Object] = []
    inside: dict[str, list[harness.Object]] = {}
    for binding in (*release.of("ClusterRoleBinding"), *release.of("RoleBinding")):
        namespace, ref = binding["metadata"].get("namespace"), binding["roleRef"]
        roles = [each for each in release.of(ref["kind"]) if each["metadata"]["name"] == ref["name"]]
        (role,) = [each for each in roles if each["metadata"].get("namespace") == namespace]
        (everywhere if namespace is None else inside.setdefault(namespace, [])).extend(role["rules"])
    return Account(name, rules=everywhere, namespaces=inside)


class Process:
    """An operator process, whose log lines can be waited for."""

    def __init__(self, *options: str, kubeconfig: Path, env: dict[str, str] | None = None) -> None:
        paths = os.pathsep.join(str(ROOT / name) for name in ("server", "operator"))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "refork_operator", "--kubeconfig", str(kubeconfig), "--listen", "127.0.0.1:0",
             "--log-format", "text", "--log-level", "DEBUG", *options],
            env={**os.environ, "PYTHONPATH": paths, "POD_NAMESPACE": "refork", **(env or {})},
            stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip())

    def says(self, pattern: str, *, seconds: float = PATIENCE) -> str:
        """Wait for a log line."""

        def look() -> str | None:
            return next((line for line in list(self.lines) if re.search(pattern, line)), None)

        return until(look, seconds=seconds, what=f"{pattern!r} in the log:\n" + "\n".join(self.lines[-40:])) or ""

    @property
    def url(self) -> str:
        """Where its metrics and probes are."""
        return "http://" + self.says(r"listening address=").split("address=")[1].split()[0]

    def metric(self, name: str, **labels: str) -> float:
        """Read one sample of its metrics; 0 if there is none."""
        for line in httpx.get(self.url + "/metrics").text.splitlines():
            found = re.fullmatch(r"([a-z_]+)(?:\{(.*)\})? (\S+)", line)
            wanted = [f'{key}="{value}"' for key, value in labels.items()]
            if found and found[1] == name and all(label in (found[2] or "") for label in wanted):
                return float(found[3])
        return 0.0

    def kill(self) -> None:
        """Kill it, as a node does that goes down."""
        self.process.kill()
        self.process.wait(10)

    def stop(self, *, seconds: float = 15.0) -> int:
        """End it as the kubelet does, and return its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(seconds)
            except subprocess.TimeoutExpired:
                self.process.kill()
                raise
        return self.process.returncode


class Box:
    """The cluster of one test."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.api = ApiServer().start()
        release = harness.render(harness.OPERATOR)
        self.api.install(release.one("CustomResourceDefinition"))
        self.api.accounts[OPERATOR_TOKEN] = account("operator", release)
        self.pods = FakePods().start()
        self.kubeconfig = self._write("kubeconfig", self.api.kubeconfig(OPERATOR_TOKEN))
        self.admin = self._write("admin", self.api.kubeconfig())
        self.processes: list[Process] = []
        self._number = 0

    def _write(self, name: str, content: Any) -> Path:
        path = self.directory / name
        path.write_text(yaml.safe_dump(content))
        return path

    def close(self) -> None:
        for process in self.processes:
            if process.process.poll() is None:
                process.kill()
        self.pods.stop()
        self.api.stop()

    def operator(self, *options: str, **more: Any) -> Process:
        """Start an operator with short times."""
        process = Process("--settle", "0.2", "--poll-timeout", "1", *options, kubeconfig=self.kubeconfig, **more)
        self.processes.append(process)
        return process

    def deployment(
        self, name: str, *, replicas: int, kind: str = "Deployment", namespace: str = "default", **facts: Any
    ) -> list[FakePod]:
        """Create a workload and its pods, which answer."""
        plural = {"Deployment": "deployments", "StatefulSet": "statefulsets", "DaemonSet": "daemonsets"}[kind]
        self.api.create(
            plural,
            {
                "metadata": {"name": name, "namespace": namespace, "creationTimestamp": "2026-01-01T00:00:00Z"},
                "spec": {"replicas": replicas, "template": {"metadata": {"labels": {"app": name}}}},
            },
        )
        return [
            self.pod(f"{name}-7d9f-{number}", app=name, kind=kind, namespace=namespace, **facts)
            for number in range(replicas)
        ]

    def pod(self, name: str, *, namespace: str = "default", app: str = "web", kind: str = "", ready: bool = True,
            annotations: dict[str, str] | None = None, **facts: Any) -> FakePod:  # fmt: skip
        """Create a pod that answers."""
        fake = self.pods.add(self._number, **facts)
        self._number += 1
        labels, owners = {"app": app}, []
        if kind == "Deployment":
            labels["pod-template-hash"] = "7d9f"
            owners = [{"kind": "ReplicaSet", "name": f"{app}-7d9f", "uid": "1", "controller": True}]
        elif kind:
            owners = [{"kind": kind, "name": app, "uid": "1", "controller": True}]
        self.api.create(
            "pods",
            {
                "metadata": {
                    "name": name,
                    "namespace": namespace,
                    "labels": labels,
                    "annotations": annotations or {},
                    "ownerReferences": owners,
                    "creationTimestamp": "2026-01-01T00:00:00Z",
                },
                "spec": {
                    "nodeName": f"node-{self._number % 3}",
                    "containers": [
                        {
                            "name": "app",
                            "ports": [{"name": "refork-control", "containerPort": self.pods.port}],
                            "resources": {"requests": {"memory": "2Gi"}, "limits": {"memory": "4Gi"}},
                        }
                    ],
                },
                "status": {
                    "phase": "Running",
                    "podIP": fake.address,
                    "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
                },
            },
        )
        return fake

    def policy(self, name: str = "policy", *, namespace: str = "default", **spec: Any) -> dict[str, Any]:
        """Create a policy with short times."""
        whole = {
            "selector": {"matchLabels": {"app": "web"}},
            "mode": "Enforce",
            "interval": "1s",
            "triggers": [{"metric": "PredictedGain", "threshold": "64Mi", "sustainedFor": "1s"}],
            "cooldown": {"pod": "10m"},
            "maxConcurrent": "100%",
            "minAge": "0s",
        } | spec
        return self.api.create("reforkpolicies", {"metadata": {"name": name, "namespace": namespace}, "spec": whole})

    def annotations(self, plural: str, name: str) -> dict[str, str]:
        found: dict[str, str] = self.api.get(plural, name)["metadata"].get("annotations") or {}
        return found

    def outcome(self, plural: str, name: str) -> str:
        return self.annotations(plural, name).get("refork.dev/outcome", "")

    def events(self, reason: str = "") -> list[dict[str, Any]]:
        return [event for event in self.api.list("events") if reason in ("", event["reason"])]

    def status(self, name: str = "policy") -> dict[str, Any]:
        found: dict[str, Any] = self.api.get("reforkpolicies", name).get("status") or {}
        return found

    def condition(self, kind: str, name: str = "policy") -> dict[str, Any]:
        conditions = self.status(name).get("conditions") or []
        return next((item for item in conditions if item["type"] == kind), {})

    def kubectl(self, *arguments: str, check: bool = True, stdin: str | None = None) -> str:
        """Run the real kubectl as an administrator."""
        program = os.environ.get("KUBECTL") or shutil.which("kubectl")
        if program is None:
            pytest.skip("no kubectl on the PATH, and KUBECTL names none")
        done = subprocess.run(
            [program, "--kubeconfig", str(self.admin), *arguments],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            input=stdin,
            env={**os.environ, "HOME": str(self.directory)},
        )
        assert not check or done.returncode == 0, done.stderr
        return done.stdout + ("" if check else done.stderr)


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    """An empty cluster with what the operator's chart installs. In the end, nothing may have been forbidden."""
    cluster = Box(tmp_path)
    yield cluster
    cluster.close()
    assert not cluster.api.asked(who="operator", status=403)
