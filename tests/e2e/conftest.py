"""A restricted namespace of whatever cluster ``KUBECONFIG`` names, with both charts in it, from this checkout.

Nothing is pulled that a node has already, nothing needs a load balancer, storage, or a second node. What is beyond the
namespace is the CRD and the operator's ClusterRoles; all of it is gone in the end.
"""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from tests.e2e.charts import helm
from tests.e2e.cluster import Cluster, until
from tests.e2e.load import Load

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
OPERATOR, APP = ROOT / "helm/refork", ROOT / "helm/refork-app"
CRD = "reforkpolicies.refork.dev"
SERVER_NAME = "shop.example.org"

IMAGE = os.environ.get("REFORK_E2E_IMAGE", "")
OPERATOR_IMAGE = os.environ.get("REFORK_E2E_OPERATOR_IMAGE", f"{IMAGE}-operator")
TAG = os.environ.get("REFORK_E2E_TAG", "")
PULL_POLICY = os.environ.get("REFORK_E2E_PULL_POLICY", "IfNotPresent")

SHOP = """
import os

CACHE = {}
PID = str(os.getpid())


def application(environ, start_response):
    '''Answer from a catalogue that each worker reads at its first request, as lazily loading applications do.'''
    if not CACHE:
        CACHE.update((number, f"article {number}") for number in range(700_000))
    words = [CACHE[number] for number in range(0, len(CACHE), 500)]
    start_response("200 OK", [("Content-Type", "text/plain"), ("X-Worker-Pid", PID)])
    return [words[-1].encode()]
"""
"""About 90 MiB a worker, of objects that are read again and again."""


def reason_to_skip() -> str:
    """Say what is missing for a run; nothing if nothing is."""
    if not os.environ.get("KUBECONFIG"):
        return "KUBECONFIG names none"
    if not IMAGE or not TAG:
        return "REFORK_E2E_IMAGE and REFORK_E2E_TAG name no image that the cluster has"
    return "" if shutil.which("kubectl") else "there is no kubectl on the PATH"


def image(repository: str) -> dict[str, Any]:
    """Make the values of an image."""
    return {"repository": repository, "tag": TAG, "pullPolicy": PULL_POLICY}


class Releases:
    """The releases of one run; those that are asked for are installed when they are first asked for.

    ``before`` names what was in the namespace when none was installed yet.
    """

    def __init__(self, cluster: Cluster, *, crd: bool) -> None:
        self.cluster = cluster
        self._crd = crd
        self.before: set[str] = set()
        self.installed: dict[str, tuple[Path, dict[str, Any]]] = {}

    def install(self, name: str, chart: Path, values: dict[str, Any]) -> None:
        """Install a chart, once, and wait for no more than a minute until it is ready."""
        if name not in self.installed:
            self.installed[name] = (chart, values)
            helm("install", name, chart=chart, values=values, namespace=self.cluster.namespace)

    def upgrade(self, name: str, **changes: Any) -> None:
        """Upgrade a release with other values."""
        chart, values = self.installed[name]
        self.installed[name] = (chart, values | changes)
        helm("upgrade", name, chart=chart, values=values | changes, namespace=self.cluster.namespace)

    def test(self, name: str) -> None:
        """Run the tests that the chart of a release brings."""
        helm("test", name, namespace=self.cluster.namespace)

    def uninstall(self) -> None:
        """Uninstall everything, the operator last."""
        while self.installed:
            helm("uninstall", list(self.installed)[-1], namespace=self.cluster.namespace)
            self.installed.popitem()

    def operator(self) -> str:
        """Have an operator for this namespace."""
        values = {
            "image": image(OPERATOR_IMAGE),
            "watch": {"namespaces": [self.cluster.namespace]},
            "crds": {"enabled": self._crd, "keep": False},
            "settle": 2,
            "statusInterval": 10,
        }
        self.install("refork", OPERATOR, values)
        return "refork-operator"

    def app(self, name: str, control: dict[str, Any], **more: Any) -> str:
        """Have an application with two pods of four workers, which reforks only when it is told to."""
        operator = {"namespace": self.cluster.namespace, "serviceAccount": self.operator()}
        values = {
            "image": image(IMAGE),
            "app": "shop:application",
            "extraArgs": ["--refork-after=0"],
            "resources": {"requests": {"cpu": "50m", "memory": "256Mi"}, "limits": {"memory": "1Gi"}},
            "volumes": [{"name": "shop", "configMap": {"name": "shop"}}],
            "volumeMounts": [{"name": "shop", "mountPath": "/app"}],
            "control": {"operator": operator} | control,
        }
        self.install(name, APP, values | more)
        return name

    def with_a_policy(self) -> str:
        """Have an application with a policy, which believes the ServiceAccount of the operator, over TLS."""
        control = {
            "auth": "ServiceAccount",
            "tls": {"secretName": "shop-tls", "serverName": SERVER_NAME, "caSecretName": "shop-ca"},
        }
        policy = {
            "mode": "Enforce",
            "interval": "2s",
            "triggers": [{"metric": "PredictedGain", "threshold": "100Mi", "sustainedFor": "15s"}],
            "minAge": "0s",
        }
        return self.app("shop", control, policy={"enabled": True, "spec": policy})

    def without_a_policy(self) -> str:
        """Have an application that knows a token, made by the chart, and is reforked when somebody says so."""
        return self.app("plain", {"auth": "Token", "plaintext": True})

    def load(self, name: str) -> Load:
        """Send requests to a release."""
        return Load(self.cluster, name, image={"image": f"{IMAGE}:{TAG}", "imagePullPolicy": PULL_POLICY})


def prepare(cluster: Cluster) -> set[str]:
    """Make what a person has before they install anything: the namespace, the application, its certificate.

    Returns the names of what is in the namespace then, with what the cluster puts into each.
    """
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    cluster.apply(
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": cluster.namespace, "labels": labels}},
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "shop"}, "data": {"shop.py": SHOP}},
    )
    authority = trustme.CA()
    issued = authority.issue_cert(SERVER_NAME)
    chain = b"".join(pem.bytes() for pem in issued.cert_chain_pems)
    key = issued.private_key_pem.bytes()
    cluster.secret("shop-tls", kind="kubernetes.io/tls", tls_crt=chain, tls_key=key)
    cluster.secret("shop-ca", ca_crt=authority.cert_pem.bytes())
    given = {"serviceaccount/default", "configmap/kube-root-ca.crt"}
    return until(lambda: cluster.names() if given <= cluster.names() else None, what="what the cluster gives") or given


@pytest.fixture(scope="session")
def releases() -> Iterator[Releases]:
    """A namespace in which nothing is installed yet; it is removed in the end, and what is installed in it."""
    why = reason_to_skip()
    if why:
        pytest.skip(f"needs a cluster: {why}")
    cluster = Cluster(f"refork-e2e-{uuid.uuid4().hex[:6]}")
    found = Releases(cluster, crd=not cluster.kubectl("get", "crd", CRD, "--ignore-not-found"))
    try:
        found.before = prepare(cluster)
        yield found
    finally:
        try:
            found.uninstall()
        finally:
            cluster.kubectl("delete", "namespace", cluster.namespace, "--wait=false", check=False)


@pytest.fixture
def cluster(releases: Releases, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """The namespace. What happened in it is printed when a test has failed."""
    failed = request.session.testsfailed
    yield releases.cluster
    if request.session.testsfailed > failed:
        print(releases.cluster.story())
