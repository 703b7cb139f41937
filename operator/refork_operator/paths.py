"""Where things are in the API: the paths of the few resources that the operator touches."""

from __future__ import annotations

from refork_operator.names import GROUP, PLURAL, VERSION, WATCHED_KINDS


def collection(resource: str, *, namespace: str | None = None) -> str:
    """Return the path of all objects of a resource, in one namespace or in all."""
    root = _root(resource)
    return f"{root}/namespaces/{namespace}/{resource}" if namespace else f"{root}/{resource}"


def pod(namespace: str, name: str) -> str:
    """Return the path of a pod."""
    return f"{collection('pods', namespace=namespace)}/{name}"


def secret(namespace: str, name: str) -> str:
    """Return the path of a Secret."""
    return f"{collection('secrets', namespace=namespace)}/{name}"


def workload(kind: str, namespace: str, name: str) -> str:
    """Return the path of a Deployment, StatefulSet or DaemonSet."""
    return f"{collection(WATCHED_KINDS[kind], namespace=namespace)}/{name}"


def policy_status(namespace: str, name: str) -> str:
    """Return the path of a policy's status."""
    return f"{collection(PLURAL, namespace=namespace)}/{name}/status"


def lease(namespace: str, name: str) -> str:
    """Return the path of a Lease."""
    return f"{collection('leases', namespace=namespace)}/{name}"


def _root(resource: str) -> str:
    if resource == PLURAL:
        return f"/apis/{GROUP}/{VERSION}"
    if resource in WATCHED_KINDS.values():
        return "/apis/apps/v1"
    if resource == "leases":
        return "/apis/coordination.k8s.io/v1"
    return "/api/v1"
