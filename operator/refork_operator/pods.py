"""What the operator keeps of a pod: a few facts, not the object.

Pods come as raw objects and go into the store as one small frozen record each, because a cluster has thousands and
deserialising them into a client library's models costs more than all of the operator's own work.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from refork_operator.names import DEFAULT_PORT, GROUP
from refork_operator.quantity import QuantityError, parse_bytes, parse_instant

if TYPE_CHECKING:
    from collections.abc import Mapping

type Key = tuple[str, str]
"""Namespace and name."""


@dataclass(frozen=True, slots=True)
class Workload:
    """The workload that a pod belongs to, as far as the pod tells."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind}/{self.name}"


@dataclass(frozen=True, slots=True)
class Pod:
    """One pod; instants are Unix times, sizes in bytes.

    Attributes:
        annotations: those of our group only.
        ports: container ports by name.
        memory_request: of the container that has the control port, or of the first; so is ``memory_limit``.
    """

    namespace: str
    name: str
    uid: str
    created: float
    workload: Workload
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    ip: str = ""
    node: str = ""
    ready: bool = False
    terminating: bool = False
    finished: bool = False
    ports: Mapping[str, int] = field(default_factory=dict)
    memory_request: int | None = None
    memory_limit: int | None = None

    @property
    def key(self) -> Key:
        """Namespace and name."""
        return self.namespace, self.name

    @property
    def label(self) -> str:
        """The name in logs."""
        return f"{self.namespace}/{self.name}"

    def port(self, wanted: str | int) -> int | None:
        """Find the number of a port that is given by number or by name."""
        if isinstance(wanted, int):
            return wanted
        return int(wanted) if wanted.isascii() and wanted.isdigit() else self.ports.get(wanted)


def parse(raw: Mapping[str, Any], *, port: str | int = DEFAULT_PORT) -> Pod:
    """Read a raw pod; ``port`` tells which of its containers is the one that matters."""
    meta, spec, status = raw["metadata"], raw.get("spec") or {}, raw.get("status") or {}
    containers = spec.get("containers") or []
    ports = {
        item["name"]: item["containerPort"]
        for container in containers
        for item in container.get("ports") or ()
        if "name" in item
    }
    resources = _container(containers, port=port).get("resources") or {}
    return Pod(
        namespace=meta["namespace"],
        name=meta["name"],
        uid=meta["uid"],
        created=parse_instant(meta.get("creationTimestamp")) or 0.0,
        workload=_workload(meta),
        labels=meta.get("labels") or {},
        annotations={k: v for k, v in (meta.get("annotations") or {}).items() if k.startswith(f"{GROUP}/")},
        ip=status.get("podIP", ""),
        node=spec.get("nodeName", ""),
        ready=any(c.get("type") == "Ready" and c.get("status") == "True" for c in status.get("conditions") or ()),
        terminating="deletionTimestamp" in meta,
        finished=status.get("phase") in ("Succeeded", "Failed"),
        ports=ports,
        memory_request=_size(resources, "requests"),
        memory_limit=_size(resources, "limits"),
    )


def _container(containers: list[dict[str, Any]], *, port: str | int) -> dict[str, Any]:
    for container in containers:
        if any(port in (item.get("name"), item.get("containerPort")) for item in container.get("ports") or ()):
            return container
    return containers[0] if containers else {}


def _size(resources: Mapping[str, Any], which: str) -> int | None:
    try:
        return parse_bytes((resources.get(which) or {})["memory"])
    except (KeyError, QuantityError):
        return None


def _workload(meta: Mapping[str, Any]) -> Workload:
    """Name the workload: the controller, or for a ReplicaSet the Deployment whose template's hash it carries."""
    owner = next((ref for ref in meta.get("ownerReferences") or () if ref.get("controller")), None)
    if owner is None:
        return Workload("Pod", meta["namespace"], meta["name"])
    kind, name = owner["kind"], owner["name"]
    template = (meta.get("labels") or {}).get("pod-template-hash", "")
    if kind == "ReplicaSet" and template and name.endswith(f"-{template}"):
        return Workload("Deployment", meta["namespace"], name.removesuffix(f"-{template}"))
    return Workload(kind, meta["namespace"], name)
