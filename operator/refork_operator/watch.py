"""Watching the cluster, which is kopf's work: lists, watches, bookmarks, expired versions, broken connections.

Only event handlers are used. kopf's other kinds would write finalizers and progress into the objects of our users, and
an object must never depend on the operator being there. kopf does not tell what vanished while a watch was broken; so
whenever it has listed a resource, we do, too, and forget what is not there. Objects are told apart by their uid: an
end that is heard late is not the end of another one of the same name.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import kopf

from refork_operator import paths
from refork_operator.cluster import ClusterError
from refork_operator.names import GROUP, PLURAL, VERSION, WATCHED_KINDS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from refork_operator.cluster import Body, Cluster
    from refork_operator.engine import Engine
    from refork_operator.logs import Log
    from refork_operator.pods import Key
    from refork_operator.settings import Settings

_NOT_FOUND = 404
_RETRY_SECONDS = 2.0
_APPS = "apps"


@dataclass(frozen=True, slots=True)
class _Feed:
    """How the objects of one resource reach the engine; ``known`` tells which it believes to be there, by uid."""

    group: str
    version: str
    resource: str
    put: Callable[[Body], None]
    drop: Callable[[Key, str], None]
    known: Callable[[], dict[Key, str]]
    selector: str = ""


class Watcher:
    """Feeds an engine with what the cluster shows."""

    def __init__(self, engine: Engine, *, cluster: Cluster, settings: Settings, log: Log) -> None:
        self._engine = engine
        self._cluster = cluster
        self._settings = settings
        self._log = log
        self._feeds = {feed.resource: feed for feed in self._make_feeds()}
        self._listed: set[str] = set()
        self._listed_again = asyncio.Event()
        self.synced = False

    def _make_feeds(self) -> list[_Feed]:
        """List what is watched, in the order in which it is looked at first: pods are judged by all the others."""
        engine = self._engine
        policies = _Feed(GROUP, VERSION, PLURAL, engine.put_policy, engine.drop_policy, engine.known_policies)
        owners = [
            _Feed(
                _APPS,
                "v1",
                resource,
                partial(engine.put_owner, kind=kind),
                partial(engine.drop_owner, kind=kind),
                partial(engine.known_owners, kind=kind),
            )
            for kind, resource in WATCHED_KINDS.items()
        ]
        selector = self._settings.pod_selector
        pods = _Feed("", "v1", "pods", engine.put_pod, engine.drop_pod, engine.known_pods, selector)
        return [policies, *owners, pods]

    def listed(self, resource: str) -> None:
        """Hear that kopf has listed a resource: at first, and whenever a watch could not be resumed."""
        if resource in self._feeds:
            self._listed.add(resource)
            self._listed_again.set()

    async def prepare(self) -> None:
        """See the whole cluster once, so that nothing is decided on a part of it; waits for the CRD if need be."""
        said = ""
        while True:
            try:
                for feed in self._feeds.values():
                    async for raw in self._list(feed):
                        self._put(feed, raw)
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

    async def _list(self, feed: _Feed) -> AsyncIterator[Body]:
        query = {"labelSelector": feed.selector} if feed.selector else {}
        for namespace in self._settings.namespaces or (None,):
            async for raw in self._cluster.items(paths.collection(feed.resource, namespace=namespace), **query):
                yield raw

    async def _compare_for_ever(self) -> None:
        while True:
            await self._listed_again.wait()
            await asyncio.sleep(_RETRY_SECONDS)
            self._listed_again.clear()
            resources, self._listed = self._listed, set()
            for resource in sorted(resources):
                try:
                    await self._compare(self._feeds[resource])
                except ClusterError as error:
                    self._log.warning("not listed", resource=resource, error=error)
                    self.listed(resource)

    async def _compare(self, feed: _Feed) -> None:
        """Forget what was there before this list, and is not in it."""
        before = feed.known()
        there = {raw["metadata"]["uid"] async for raw in self._list(feed)}
        for key, uid in before.items():
            if uid not in there:
                feed.drop(key, uid)

    def _take(self, feed: _Feed, *, kind: str | None, raw: Body) -> None:
        if kind == "DELETED":
            feed.drop(_key(raw), raw["metadata"]["uid"])
        else:
            self._put(feed, raw)

    def _put(self, feed: _Feed, raw: Body) -> None:
        try:
            feed.put(raw)
        except Exception as error:  # noqa: BLE001 - one odd object must not keep the others from being seen
            self._log.error("not understood", resource=feed.resource, name="/".join(_key(raw)), error=repr(error))

    def _registry(self) -> kopf.OperatorRegistry:
        registry = kopf.OperatorRegistry()

        @kopf.on.login(registry=registry)
        async def login(**_: Any) -> kopf.AiohttpSession:
            return kopf.AiohttpSession(aiohttp_session=self._cluster.session(), server=self._cluster.server)

        for feed in self._feeds.values():
            self._handle(registry, feed)
        return registry

    def _handle(self, registry: kopf.OperatorRegistry, feed: _Feed) -> None:
        @kopf.on.event(feed.group, feed.version, feed.resource, registry=registry, id=f"watch-{feed.resource}")
        async def handler(event: Any, **_: Any) -> None:
            self._take(feed, kind=event["type"], raw=event["object"])

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


def _key(raw: Body) -> Key:
    return raw["metadata"]["namespace"], raw["metadata"]["name"]


def _hint(error: ClusterError) -> str:
    if error.status == _NOT_FOUND:
        return f"is the CustomResourceDefinition {PLURAL}.{GROUP} installed?"
    return "" if error.status not in (401, 403) else "does the operator's ServiceAccount have its Role?"
