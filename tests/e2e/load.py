"""Requests from inside the cluster, each of which has to be answered: the load client of the benchmarks, in a pod."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from benchmarks import _load
from tests.e2e.cluster import until

if TYPE_CHECKING:
    from tests.e2e.cluster import Cluster

_STOP = "import os; os.kill(1, 15)"
_ENDED = ("Succeeded", "Failed")


class Load:
    """Requests to the Service of a release, from when it is entered until it is stopped."""

    def __init__(self, cluster: Cluster, release: str, *, image: dict[str, Any]) -> None:
        self._cluster = cluster
        self._image = image
        self._name = f"load-{release}"
        service = cluster.get("service", release)["spec"]
        # By address, so that a cluster's name service has no part in it.
        self._url = f"http://{service['clusterIP']}:{service['ports'][0]['port']}/"

    def __enter__(self) -> Self:
        with open(_load.__file__, encoding="utf-8") as file:
            script = file.read()
        meta = {"name": self._name}
        self._cluster.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"load.py": script}})
        self._cluster.apply({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": self._spec()})
        until(lambda: _load.STARTED in self._said(), what="requests that begin")
        return self

    def __exit__(self, *_: object) -> None:
        self._cluster.kubectl("delete", "pod,configmap", self._name, "--grace-period=1", "--ignore-not-found")

    def stop(self) -> _load.Report:
        """Begin no more requests, and tell what became of all."""
        self._cluster.kubectl("exec", self._name, "--", "python3", "-c", _STOP)
        until(lambda: self._cluster.get("pod", self._name)["status"]["phase"] in _ENDED, what="the end of the load")
        return _load.Report.from_json(self._said().strip().splitlines()[-1])

    def _said(self) -> str:
        return self._cluster.kubectl("logs", self._name, check=False)

    def _spec(self) -> dict[str, Any]:
        words = ["--connections", "8", "--rate", "60", "--timeout", "30", "--json"]
        container = {
            "name": "load",
            **self._image,
            "command": ["python3", "/load/load.py", self._url, *words],
            "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "256Mi"}},
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            },
            "volumeMounts": [{"name": "load", "mountPath": "/load"}],
        }
        return {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 65532,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [container],
            "volumes": [{"name": "load", "configMap": {"name": self._name}}],
        }
