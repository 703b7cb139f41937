"""What the operator keeps of a Deployment, StatefulSet or DaemonSet: who it is, and what is asked of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from refork_operator.names import GROUP, REQUESTED_AT
from refork_operator.pods import Workload
from refork_operator.quantity import parse_instant

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Owner:
    """One workload. ``template_request`` is the value that its pods are born with."""

    workload: Workload
    uid: str
    created: float
    annotations: Mapping[str, str] = field(default_factory=dict)
    template_request: str | None = None


def parse(raw: Mapping[str, Any], *, kind: str) -> Owner:
    """Read a raw workload."""
    meta = raw["metadata"]
    template = ((raw.get("spec") or {}).get("template") or {}).get("metadata") or {}
    return Owner(
        workload=Workload(kind, meta["namespace"], meta["name"]),
        uid=meta["uid"],
        created=parse_instant(meta.get("creationTimestamp")) or 0.0,
        annotations={k: v for k, v in (meta.get("annotations") or {}).items() if k.startswith(f"{GROUP}/")},
        template_request=(template.get("annotations") or {}).get(REQUESTED_AT),
    )
