"""Writing into the cluster, for sure: what is decided is written down until it is written, or its object is gone."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from refork_operator import paths
from refork_operator.cluster import ClusterError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping
    from typing import Any

    from refork_operator.cluster import Cluster
    from refork_operator.logs import Log
    from refork_operator.pods import Pod
    from refork_operator.workloads import Owner

_ATTEMPTS = 8


class Writer:
    """Sets annotations; in a dry run it does not."""

    def __init__(self, cluster: Cluster, *, log: Log, dry_run: bool) -> None:
        self._cluster = cluster
        self._log = log
        self._dry_run = dry_run

    async def annotate_or_fail(self, pod: Pod, changes: Mapping[str, str | None]) -> None:
        """Annotate a pod; the uid makes it fail for another pod of the same name."""
        body = {"metadata": {"uid": pod.uid, "annotations": dict(changes)}}
        await self._cluster.merge(paths.pod(pod.namespace, pod.name), body)

    async def annotate(self, pod: Pod, changes: Mapping[str, str | None]) -> None:
        """Annotate a pod for sure, or until it is gone."""
        if not self._dry_run:
            await self._insist(lambda: self.annotate_or_fail(pod, changes), what=f"pod {pod.label}")

    async def annotate_owner(self, owner: Owner, changes: Mapping[str, str | None]) -> None:
        """Annotate a workload for sure, or until it is gone."""
        if self._dry_run:
            return
        workload = owner.workload
        path = paths.workload(workload.kind, workload.namespace, workload.name)
        body = {"metadata": {"uid": owner.uid, "annotations": dict(changes)}}
        await self._insist(lambda: self._cluster.merge(path, body), what=f"{workload.namespace}/{workload}")

    async def _insist(self, write: Callable[[], Coroutine[Any, Any, object]], *, what: str) -> None:
        for attempt in range(_ATTEMPTS):
            try:
                await write()
            except ClusterError as error:
                if error.gone:
                    return
                self._log.warning("not written", what=what, error=error)
                await asyncio.sleep(min(2.0**attempt, 30.0))
            else:
                return
