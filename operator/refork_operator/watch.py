"""Watching the cluster, which is kopf's work: lists, watches, bookmarks, expired versions, broken connections.

Only event handlers are used. kopf's other kinds would write finalizers and progress into the objects of our users, and
an object must never depend on the operator being there. kopf does not tell what vanished while a watch was broken; so
whenever it lists pods again, we do, too, and compare.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import kopf

from refork_operator import paths
from refork_operator.cluster import ClusterError
from refork_operator.names import GROUP, PLURAL, VERSION, WATCHED_KINDS

if TYPE_CHECKING:
    from collections.abc import Callable

    from refork_operator.cluster import Cluster
    from refork_operator.engine import Engine
    from refork_operator.logs import Log
    from refork_operator.settings import Settings

_NOT_FOUND = 404
_RETRY_SECONDS = 2.0
_APPS = "apps"


class Watcher:
    """Feeds an engine with what the cluster shows."""

    def __init__(self, engine: Engine, *, cluster: Cluster, settings: Settings, log: Log) -> None:
        self._engine = engine
        self._cluster = cluster
        self._settings = settings
        self._log = log
        self._listed_again = asyncio.Event()
        self.synced = False

    def listed_again(self, resource: str) -> None:
        """Hear that kopf has begun a list anew."""
        if resource == "pods" and self.synced:
            self._listed_again.set()

    async def prepare(self) -> None:
        """See the whole cluster once, so that nothing is decided on a part of it; waits for the CRD if need be."""
        said = ""
        while True:
            try:
                await self._list_policies()
                await self._list_owners()
                await self._list_pods()
            except ClusterError as error:
                if str(error) != said:
                    said = str(error)
                    self._log.warning("cluster not seen yet", error=said, hint=_hint(error))
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                self._engine.complete()
                self.synced = True
                return

    async def run(self) -> None:
        """Watch until cancelled, or until kopf is told to end by a signal."""
        async with asyncio.TaskGroup() as group:
            comparing = group.create_task(self._compare_for_ever())
            await kopf.operator(
                registry=self._registry(),
                settings=self._kopf_settings(),
                clusterwide=not self._settings.namespaces,
                namespaces=self._settings.namespaces,
                standalone=True,
                # kopf would ask for the name of its user, and a container's user may have none.
                identity=cast("Any", self._settings.identity),
            )
            comparing.cancel()

    async def _list_policies(self) -> None:
        for namespace in self._settings.namespaces or (None,):
            async for raw in self._cluster.items(paths.collection(PLURAL, namespace=namespace)):
                self._engine.put_policy(raw)

    async def _list_owners(self) -> None:
        for kind, resource in WATCHED_KINDS.items():
            for namespace in self._settings.namespaces or (None,):
                async for raw in self._cluster.items(paths.collection(resource, namespace=namespace)):
                    self._engine.put_owner(raw, kind=kind)

    async def _list_pods(self) -> None:
        query = {"labelSelector": self._settings.pod_selector} if self._settings.pod_selector else {}
        for namespace in self._settings.namespaces or (None,):
            keys = set()
            async for raw in self._cluster.items(paths.collection("pods", namespace=namespace), **query):
                keys.add((raw["metadata"]["namespace"], raw["metadata"]["name"]))
                self._engine.put_pod(raw)
            self._engine.keep_pods(keys, namespace=namespace)

    async def _compare_for_ever(self) -> None:
        while True:
            await self._listed_again.wait()
            await asyncio.sleep(_RETRY_SECONDS)
            self._listed_again.clear()
            try:
                await self._list_pods()
            except ClusterError as error:
                self._log.warning("pods not listed", error=error)

    def _registry(self) -> kopf.OperatorRegistry:
        registry = kopf.OperatorRegistry()

        @kopf.on.login(registry=registry)
        async def login(**_: Any) -> kopf.AiohttpSession:
            return kopf.AiohttpSession(aiohttp_session=self._cluster.session(), server=self._cluster.server)

        self._handle(registry, "", "v1", "pods", self._pod)
        self._handle(registry, GROUP, VERSION, PLURAL, self._policy)
        for kind, resource in WATCHED_KINDS.items():
            self._handle(registry, _APPS, "v1", resource, self._owner_handler(kind))
        return registry

    def _handle(
        self,
        registry: kopf.OperatorRegistry,
        group: str,
        version: str,
        resource: str,
        take: Callable[[str | None, Any], None],
    ) -> None:
        @kopf.on.event(group, version, resource, registry=registry, id=f"watch-{resource}")
        async def handler(event: Any, **_: Any) -> None:
            take(event["type"], event["object"])

    def _pod(self, kind: str | None, raw: Any) -> None:
        if kind == "DELETED":
            self._engine.drop_pod((raw["metadata"]["namespace"], raw["metadata"]["name"]))
        else:
            self._engine.put_pod(raw)

    def _policy(self, kind: str | None, raw: Any) -> None:
        if kind == "DELETED":
            self._engine.drop_policy((raw["metadata"]["namespace"], raw["metadata"]["name"]))
        else:
            self._engine.put_policy(raw)

    def _owner_handler(self, owner: str) -> Callable[[str | None, Any], None]:
        def take(kind: str | None, raw: Any) -> None:
            if kind == "DELETED":
                self._engine.drop_owner(raw, kind=owner)
            else:
                self._engine.put_owner(raw, kind=owner)

        return take

    def _kopf_settings(self) -> kopf.OperatorSettings:
        settings = kopf.OperatorSettings()
        settings.scanning.disabled = True
        settings.posting.enabled = False
        settings.peering.standalone = True
        settings.watching.server_timeout = 240
        settings.watching.inactivity_timeout = 300
        settings.watching.connect_timeout = 10
        settings.networking.request_timeout = 30
        settings.queueing.idle_timeout = 1.0
        if self._settings.pod_selector:
            settings.watching.label_selectors["pods"] = self._settings.pod_selector
        return settings


def _hint(error: ClusterError) -> str:
    if error.status == _NOT_FOUND:
        return f"is the CustomResourceDefinition {PLURAL}.{GROUP} installed?"
    return "" if error.status not in (401, 403) else "does the operator's ServiceAccount have its Role?"
