"""The life of one operator process: stand by, become the active one, work, end cleanly.

A standby holds nothing but its probes and its candidacy. When the Lease is lost, the process ends at once instead of
trying to stop what is under way: whoever takes over carries on with it.
"""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING

from refork_operator.cluster import ClusterError, connect
from refork_operator.engine import Engine
from refork_operator.events import Events
from refork_operator.leader import Leader, LeaseLostError
from refork_operator.logs import Log
from refork_operator.metrics import Metrics
from refork_operator.podclient import PodClient
from refork_operator.probes import Probes
from refork_operator.tokens import Tokens
from refork_operator.watch import Watcher

if TYPE_CHECKING:
    from refork_operator.cluster import Cluster
    from refork_operator.settings import Settings

_FLUSH_SECONDS = 2.0


class Process:
    """One operator."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._log = Log()
        self._metrics = Metrics()
        self._leader: Leader | None = None
        self._watcher: Watcher | None = None
        self._engine: asyncio.Task[None] | None = None

    async def run(self) -> int:
        """Run until told to end; return the exit status."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        probes = Probes(metrics=self._metrics, healthy=self._sick, ready=self._unready)
        try:
            await probes.start(*self._settings.address)
        except OSError as error:
            self._log.error("not listening", address=self._settings.listen, error=error)
            return 1
        self._log.info("listening", address="{}:{}".format(*probes.address), pid=os.getpid())
        try:
            cluster = await connect(self._settings, metrics=self._metrics)
        except ClusterError as error:
            self._log.error("no cluster", error=error)
            return 1
        self._log.info("started", server=cluster.server, dry_run=self._settings.dry_run)
        try:
            return await self._until(stop, cluster)
        finally:
            await cluster.close()
            await probes.stop()

    async def _until(self, stop: asyncio.Event, cluster: Cluster) -> int:
        """Work until the signal, the loss of the Lease, or an accident."""
        work = asyncio.create_task(self._work(cluster))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({work, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not work.done():
            work.cancel()
        try:
            await work
        except asyncio.CancelledError:
            self._log.info("stopping")
        except LeaseLostError as error:
            self._log.error("lease lost", error=error)
            return 1
        except Exception as error:  # noqa: BLE001 - the last word of a process that cannot go on
            self._log.error("failed", error=repr(error))
            return 1
        await self._release()
        self._log.info("stopped")
        return 0

    async def _release(self) -> None:
        if self._leader is not None:
            await self._leader.release()

    async def _work(self, cluster: Cluster) -> None:
        """Wait for our turn, then do everything until something ends. Raises LeaseLostError."""
        holding: set[asyncio.Task[None]] = set()
        if self._settings.leader_elect:
            self._leader = self._candidate(cluster)
            await self._leader.acquire()
            holding.add(asyncio.create_task(self._leader.hold()))
        self._metrics.leader.set(1)
        client = PodClient(seconds=self._settings.poll_timeout, limit=self._settings.body_limit)
        events = Events(cluster, log=self._log, instance=self._settings.identity)
        engine = self._build_engine(cluster, client=client, events=events)
        self._watcher = Watcher(engine, cluster=cluster, settings=self._settings, log=self._log)
        cluster.on_list = self._watcher.listed
        tasks = {*holding, asyncio.create_task(self._watch_and_run(engine, self._watcher, events))}
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            self._metrics.leader.set(0)
            for task in tasks:
                task.cancel()
            await client.close()

    async def _watch_and_run(self, engine: Engine, watcher: Watcher, events: Events) -> None:
        """See the cluster, then watch it and work; ends when the watching ends."""
        await watcher.prepare()
        self._engine = asyncio.create_task(engine.run())
        watching = asyncio.create_task(watcher.run())
        try:
            done, _ = await asyncio.wait({self._engine, watching}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            await events.flush(seconds=_FLUSH_SECONDS)
        finally:
            self._engine.cancel()
            watching.cancel()
            await asyncio.wait({self._engine, watching})

    def _candidate(self, cluster: Cluster) -> Leader:
        return Leader(
            cluster,
            namespace=self._settings.lease_namespace,
            name=self._settings.lease_name,
            identity=self._settings.identity,
            timing=self._settings.timing,
            log=self._log,
        )

    def _build_engine(self, cluster: Cluster, *, client: PodClient, events: Events) -> Engine:
        leader = self._leader
        return Engine(
            settings=self._settings,
            cluster=cluster,
            client=client,
            tokens=Tokens(cluster, file=self._settings.token_file),
            events=events,
            metrics=self._metrics,
            log=self._log,
            may_act=leader.holds if leader is not None else lambda: True,
        )

    def _sick(self) -> str:
        """Say why the process should be restarted; nothing if it should not."""
        return "the engine has stopped" if self._engine is not None and self._engine.done() else ""

    def _unready(self) -> str:
        """Say why this process would be of no use yet. A standby is ready: it waits for its turn."""
        if self._leads() and (self._watcher is None or not self._watcher.synced):
            return "the cluster was not seen yet"
        return ""

    def _leads(self) -> bool:
        return self._leader is None or self._leader.holds()
