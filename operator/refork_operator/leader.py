"""Holding the Lease: renews it while we are the active one, and says so only as long as that is certain.

The rules are in ``refork_operator.lease``; this is their shell. A renewal that takes too long is cut off, a lost Lease
ends the process (whoever was about to act must not), and a clean end gives the Lease back at once.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from refork_operator import lease as rules
from refork_operator import paths
from refork_operator.cluster import ClusterError

if TYPE_CHECKING:
    from refork_operator.cluster import Body, Cluster
    from refork_operator.logs import Log

_NOT_FOUND, _CONFLICT = 404, 409


class LeaseLostError(Exception):
    """Somebody else may be active by now."""


class Leader:
    """One candidate for one Lease."""

    def __init__(  # noqa: PLR0913 - who we are, and where
        self, cluster: Cluster, *, namespace: str, name: str, identity: str, timing: rules.Timing, log: Log
    ) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._name = name
        self._path = paths.lease(namespace, name)
        self._identity = identity
        self._timing = timing
        self._log = log
        self._view = rules.View()
        self._ours: Body | None = None

    def holds(self) -> bool:
        """Tell whether we may act now."""
        return rules.holds(self._view, timing=self._timing, now=time.monotonic())

    async def acquire(self) -> None:
        """Wait until we are the active one."""
        while not await self._try():  # noqa: ASYNC110 - what we wait for is in another process
            await asyncio.sleep(self._timing.retry)
        self._log.info("leader", identity=self._identity, lease=f"{self._namespace}/{self._name}")

    async def hold(self) -> None:
        """Renew until that fails for too long. Raises LeaseLostError."""
        while self.holds():
            await asyncio.sleep(self._timing.retry)
            await self._try()
        raise LeaseLostError(f"the Lease was not renewed within {self._timing.renew:g} s")

    async def release(self) -> None:
        """Let the next one take over at once."""
        if not self.holds():
            return
        self._view = rules.View()
        try:
            found = await self._cluster.read(self._path, seconds=self._timing.retry)
            if (found.get("spec") or {}).get("holderIdentity") == self._identity:
                body = rules.released(found, at=time.time())
                await self._cluster.replace(self._path, body, seconds=self._timing.retry)
        except ClusterError as error:
            self._log.warning("lease not given back", error=error)

    async def _try(self) -> bool:
        """Take or renew the Lease in one attempt, which is cut off before it could outlive the Lease."""
        try:
            async with asyncio.timeout(self._timing.renew - self._timing.retry):
                return await self._attempt()
        except (ClusterError, TimeoutError) as error:
            if isinstance(error, ClusterError) and error.status == _CONFLICT:
                return False
            self._log.warning("lease not reached", error=str(error) or "timed out", holds=self.holds())
            return False

    async def _attempt(self) -> bool:
        """Read the Lease, unless the last thing we know is that we wrote it; write ourselves in if we may.

        The API server refuses the write if anything has changed since, and then the Lease is read again.
        """
        started = time.monotonic()
        found, self._ours = self._ours or await self._find(), None
        self._view = rules.observe(self._view, found, now=time.monotonic())
        if not rules.may_take(self._view, identity=self._identity, timing=self._timing, now=time.monotonic()):
            if self._view.renewed_at is not None:
                self._view = rules.View()
                raise LeaseLostError("somebody else has taken the Lease")
            return False
        body = rules.taken(found, identity=self._identity, timing=self._timing, at=time.time())
        self._ours = await self._cluster.replace(self._path, body, seconds=self._timing.renew)
        self._view = rules.renewed(rules.observe(self._view, body, now=time.monotonic()), at=started)
        return True

    async def _find(self) -> Body:
        try:
            return await self._cluster.read(self._path, seconds=self._timing.renew)
        except ClusterError as error:
            if error.status != _NOT_FOUND:
                raise
        empty: Body = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": self._name, "namespace": self._namespace},
            "spec": {},
        }
        return await self._cluster.create(paths.collection("leases", namespace=self._namespace), empty)
