"""Events that tell the story in ``kubectl describe``: one object for each thing that happens, however often it does.

The name of an Event comes from what it says and whom it is about, so that saying it again, after a restart too, counts
it up instead of adding another. Repetitions within a minute are counted here and written together.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from refork_operator import paths
from refork_operator.cluster import ClusterError
from refork_operator.names import COMPONENT, GROUP, KIND, VERSION
from refork_operator.quantity import show_instant

if TYPE_CHECKING:
    from refork_operator.cluster import Cluster
    from refork_operator.logs import Log
    from refork_operator.pods import Pod
    from refork_operator.policy import ReforkPolicy
    from refork_operator.workloads import Owner

_QUIET_SECONDS = 60.0
_LONGEST_MESSAGE = 1000
_MOST_REMEMBERED = 5000
_BACKLOG = 1000
_CONFLICT, _NOT_FOUND = 409, 404


@dataclass(frozen=True, slots=True)
class About:
    """Whom an event is about."""

    kind: str
    api_version: str
    namespace: str
    name: str
    uid: str


@dataclass(slots=True)
class _Told:
    count: int
    written_at: float


class Events:
    """Writes events in the background, one after the other; when there are far too many, the newest are dropped."""

    def __init__(self, cluster: Cluster, *, log: Log, instance: str) -> None:
        self._cluster = cluster
        self._log = log
        self._instance = instance
        self._told: dict[str, _Told] = {}
        self._queue: asyncio.Queue[tuple[str, About, str, str, str]] = asyncio.Queue(_BACKLOG)

    def normal(self, about: About, reason: str, message: str) -> None:
        """Tell what is as it should be."""
        self._tell(about, "Normal", reason, message)

    def warning(self, about: About, reason: str, message: str) -> None:
        """Tell what somebody should look at."""
        self._tell(about, "Warning", reason, message)

    def _tell(self, about: About, kind: str, reason: str, message: str) -> None:
        message = message[:_LONGEST_MESSAGE]
        digest = hashlib.sha256(f"{about.uid}\0{kind}\0{reason}\0{message}".encode()).hexdigest()[:16]
        name = f"{about.name[:200]}.{digest}"
        told = self._told.get(name)
        if told is not None:
            told.count += 1
            if time.monotonic() - told.written_at < _QUIET_SECONDS:
                return
            told.written_at = time.monotonic()
        else:
            if len(self._told) >= _MOST_REMEMBERED:
                self._told.pop(next(iter(self._told)))
            self._told[name] = _Told(1, time.monotonic())
        try:
            self._queue.put_nowait((name, about, kind, reason, message))
        except asyncio.QueueFull:
            self._log.warning("event dropped", reason=reason, about=f"{about.kind} {about.namespace}/{about.name}")

    async def run(self) -> None:
        """Write what is told."""
        while True:
            name, about, kind, reason, message = await self._queue.get()
            try:
                await self._write(name, about, kind=kind, reason=reason, message=message)
            except ClusterError as error:
                self._log.warning("event not written", reason=reason, error=error)
            finally:
                self._queue.task_done()

    async def flush(self, *, seconds: float) -> None:
        """Wait until everything told so far is written, but not for ever."""
        try:
            await asyncio.wait_for(self._queue.join(), seconds)
        except TimeoutError:
            self._log.warning("events left unwritten", events=self._queue.qsize())

    async def _write(self, name: str, about: About, *, kind: str, reason: str, message: str) -> None:
        told = self._told.get(name) or _Told(1, 0.0)
        now = show_instant(time.time())
        collection = paths.collection("events", namespace=about.namespace)
        path = f"{collection}/{name}"
        if told.count == 1:
            try:
                await self._cluster.create(
                    collection, _event(name, about, kind, reason, message, now=now, instance=self._instance)
                )
            except ClusterError as error:
                if error.status != _CONFLICT:
                    raise
                found = await self._cluster.get(path)
                told.count += int(found.get("count") or 1)
            else:
                return
        try:
            await self._cluster.merge(path, {"count": told.count, "lastTimestamp": now})
        except ClusterError as error:
            if error.status != _NOT_FOUND:
                raise
            told.count = 1
            body = _event(name, about, kind, reason, message, now=now, instance=self._instance)
            await self._cluster.create(collection, body)


def _event(  # noqa: PLR0913 - an Event has many fields
    name: str, about: About, kind: str, reason: str, message: str, *, now: str, instance: str
) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": about.namespace},
        "involvedObject": {
            "kind": about.kind,
            "apiVersion": about.api_version,
            "namespace": about.namespace,
            "name": about.name,
            "uid": about.uid,
        },
        "type": kind,
        "reason": reason,
        "message": message,
        "count": 1,
        "firstTimestamp": now,
        "lastTimestamp": now,
        "source": {"component": COMPONENT},
        "reportingComponent": COMPONENT,
        "reportingInstance": instance[:128],
    }


def about_pod(pod: Pod) -> About:
    """Name a pod."""
    return About("Pod", "v1", pod.namespace, pod.name, pod.uid)


def about_policy(policy: ReforkPolicy) -> About:
    """Name a policy."""
    return About(KIND, f"{GROUP}/{VERSION}", policy.namespace, policy.name, policy.uid)


def about_owner(owner: Owner) -> About:
    """Name a workload."""
    workload = owner.workload
    return About(workload.kind, "apps/v1", workload.namespace, workload.name, owner.uid)
