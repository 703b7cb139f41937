"""A namespace of a real cluster, with the operator and an application in it; whatever ``KUBECONFIG`` names.

It runs where pods are restricted, on one node, with images loaded by hand: nothing is pulled that is there already,
nothing needs a
volume, a load balancer or another namespace. Only the CRD is cluster-wide, and it stays.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]
FILES = ROOT / "helm/refork/files"
IMAGE = os.environ.get("REFORK_E2E_IMAGE", "")
TAG = os.environ.get("REFORK_E2E_TAG", "")
PULL_POLICY = os.environ.get("REFORK_E2E_PULL_POLICY", "IfNotPresent")
PATIENCE = float(os.environ.get("REFORK_E2E_PATIENCE", "180"))
CONTROL_PORT = 9091
TOKEN = uuid.uuid4().hex + uuid.uuid4().hex

APP = """
CACHE = []


def application(environ, start_response):
    if environ["PATH_INFO"] == "/grow" and not CACHE:
        CACHE.append(bytes(bytearray(range(256)) * (24 << 12)))
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(len(CACHE)).encode()]
"""
GROW = """
import urllib.request
for _ in range(60):
    urllib.request.urlopen("http://127.0.0.1:8000/grow", timeout=5).read()
"""


def reason_to_skip() -> str:
    """Say what is missing for a run; nothing if nothing is."""
    if not os.environ.get("KUBECONFIG"):
        return "KUBECONFIG names none"
    if not IMAGE:
        return "REFORK_E2E_IMAGE names no image that the cluster has (REFORK_E2E_TAG may hold its tag)"
    return "" if shutil.which("kubectl") else "there is no kubectl on the PATH"


def until[Found](look: Callable[[], Found], *, what: str, seconds: float = PATIENCE) -> Found:
    """Wait until something is so, and return it."""
    deadline = time.monotonic() + seconds
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.5)


class Cluster:
    """One namespace of the cluster."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace

    def kubectl(self, *words: str, stdin: str | None = None, check: bool = True) -> str:
        command = ["kubectl", "--namespace", self.namespace, *words]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=120, check=False)
        assert not check or done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout

    def apply(self, *manifests: dict[str, Any]) -> None:
        self.kubectl("apply", "--server-side", "-f", "-", stdin=yaml.safe_dump_all(manifests))

    def get(self, kind: str, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.kubectl("get", kind, name, "-o", "json"))
        return found

    def pods(self, app: str) -> list[dict[str, Any]]:
        listed = json.loads(self.kubectl("get", "pods", "-l", f"app={app}", "-o", "json"))["items"]
        return [pod for pod in listed if "deletionTimestamp" not in pod["metadata"]]

    def annotation(self, kind: str, name: str, key: str) -> str:
        return str((self.get(kind, name)["metadata"].get("annotations") or {}).get(f"refork.dev/{key}", ""))

    def rolled_out(self, name: str) -> None:
        self.kubectl("rollout", "status", f"deployment/{name}", f"--timeout={PATIENCE:.0f}s")

    def story(self) -> str:
        """What one wants to read when a test has failed."""
        words = [("get", "pods,rfp", "-o", "wide"), ("get", "events"), ("logs", "-l", "app=operator", "--tail=60")]
        return "\n\n".join(self.kubectl(*word, check=False) for word in words)


def restricted(container: dict[str, Any]) -> dict[str, Any]:
    """Make the spec of a pod that the restricted Pod Security Standard admits."""
    security = {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    image = f"{IMAGE}:{TAG}" if TAG else IMAGE
    whole = {"image": image, "imagePullPolicy": PULL_POLICY, "securityContext": security, **container}
    whole["volumeMounts"] = [*container.get("volumeMounts", []), {"name": "tmp", "mountPath": "/tmp"}]
    profile = {"type": "RuntimeDefault"}
    return {
        "securityContext": {"runAsNonRoot": True, "runAsUser": 65532, "fsGroup": 65532, "seccompProfile": profile},
        "containers": [whole],
        "volumes": [{"name": "tmp", "emptyDir": {}}],
    }


def deployment(name: str, *, replicas: int, spec: dict[str, Any]) -> dict[str, Any]:
    labels = {"app": name}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": spec},
        },
    }


def operator(namespace: str) -> list[dict[str, Any]]:
    """Make two replicas of the operator, and what they may do."""
    rules = yaml.safe_load((FILES / "operator-rules.yaml").read_text())
    subject = {"kind": "ServiceAccount", "name": "operator", "namespace": namespace}
    spec = restricted(
        {
            "name": "operator",
            "command": ["refork-operator"],
            "args": ["--namespaces", namespace, "--settle", "2", "--status-interval", "10", "--log-format", "text"],
            "env": [
                {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                {"name": "POD_NAMESPACE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}},
            ],
            "readinessProbe": {"httpGet": {"path": "/readyz", "port": 8080}, "periodSeconds": 2},
            "livenessProbe": {"httpGet": {"path": "/healthz", "port": 8080}},
            "resources": {"requests": {"cpu": "20m", "memory": "96Mi"}, "limits": {"memory": "256Mi"}},
        }
    )
    spec["serviceAccountName"] = "operator"
    role = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "operator"}}
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": "operator"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "operator"},
        "subjects": [subject],
    }
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "operator"}},
        {**role, "rules": [*rules["watched"], *rules["secrets"], *rules["lease"]]},
        binding,
        deployment("operator", replicas=2, spec=spec),
    ]


def application() -> list[dict[str, Any]]:
    """Make three replicas of an application whose workers fill caches of their own."""
    spec = restricted(
        {
            "name": "app",
            "command": ["refork"],
            "args": [
                "app:application", "-w", "3", "-k", "sync", "-b", "0.0.0.0:8000", "--chdir", "/app",
                "--control-tcp", f"0.0.0.0:{CONTROL_PORT}", "--control-plaintext",
                "--control-token-file", "/token/token", "--metrics-bind", "0.0.0.0:9090",
            ],
            "ports": [
                {"name": "http", "containerPort": 8000},
                {"name": "refork-control", "containerPort": CONTROL_PORT},
                {"name": "metrics", "containerPort": 9090},
            ],
            "readinessProbe": {"httpGet": {"path": "/readyz", "port": 9090}, "periodSeconds": 2},
            "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"memory": "768Mi"}},
            "volumeMounts": [{"name": "app", "mountPath": "/app"}, {"name": "token", "mountPath": "/token"}],
        }
    )  # fmt: skip
    spec["volumes"] += [
        {"name": "app", "configMap": {"name": "app"}},
        {"name": "token", "secret": {"secretName": "control", "defaultMode": 0o440}},
    ]
    spec["automountServiceAccountToken"] = False
    return [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "app"}, "data": {"app.py": APP}},
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "control"}, "stringData": {"token": TOKEN}},
        deployment("web", replicas=3, spec=spec),
    ]


def policy(**spec: Any) -> dict[str, Any]:
    """Make a policy that decides within seconds."""
    whole = {
        "selector": {"matchLabels": {"app": "web"}},
        "mode": "Observe",
        "interval": "2s",
        "control": {"port": "refork-control", "tokenSecretRef": {"name": "control"}},
        "triggers": [{"metric": "PredictedGain", "threshold": "20Mi", "sustainedFor": "4s"}],
        "minGain": "8Mi",
        "minAge": "0s",
        "maxConcurrent": 1,
    } | spec
    return {"apiVersion": "refork.dev/v1alpha1", "kind": "ReforkPolicy", "metadata": {"name": "web"}, "spec": whole}


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The operator and the application, running, in a namespace that is removed in the end."""
    why = reason_to_skip()
    if why:
        pytest.skip(f"needs a cluster: {why}")
    name = f"refork-e2e-{uuid.uuid4().hex[:6]}"
    made = Cluster(name)
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    made.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    try:
        made.apply(yaml.safe_load((FILES / "reforkpolicy-crd.yaml").read_text()))
        made.kubectl("wait", "--for=condition=Established", "crd/reforkpolicies.refork.dev", "--timeout=60s")
        made.apply(*operator(name), *application())
        made.rolled_out("operator")
        made.rolled_out("web")
        yield made
    finally:
        made.kubectl("delete", "namespace", name, "--wait=false", check=False)


@pytest.fixture(autouse=True)
def tell_the_story(request: pytest.FixtureRequest) -> Iterator[None]:
    """Print what the cluster looks like when a test has failed."""
    failed = request.session.testsfailed
    yield
    if request.session.testsfailed > failed and "cluster" in request.fixturenames:
        print(request.getfixturevalue("cluster").story())
