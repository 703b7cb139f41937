"""What policies are told, in status and gauges: soon when something happened, now and then when figures moved."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from refork_operator import paths, recommend, report
from refork_operator.cluster import ClusterError
from refork_operator.quantity import parse_instant

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from refork_operator.cluster import Cluster
    from refork_operator.logs import Log
    from refork_operator.metrics import Metrics
    from refork_operator.pods import Key
    from refork_operator.policy import ReforkPolicy
    from refork_operator.settings import Settings
    from refork_operator.store import Store
    from refork_operator.watched import Watched

_SECONDS = 1.0


class Publisher:
    """Writes the policies' status; ``gone`` is called for a policy that is not there any more."""

    def __init__(  # noqa: PLR0913 - what it reads, and where it writes
        self,
        *,
        store: Store,
        watched: Mapping[Key, Watched],
        cluster: Cluster,
        metrics: Metrics,
        settings: Settings,
        log: Log,
        gone: Callable[[Key, str], None],
    ) -> None:
        self._store = store
        self._watched = watched
        self._cluster = cluster
        self._metrics = metrics
        self._settings = settings
        self._log = log
        self._gone = gone
        self._tallies: dict[Key, report.Tally] = {}
        self._written: dict[Key, Mapping[str, Any]] = {}
        self._urgent: set[Key] = set()

    def remember(self, key: Key, status: Mapping[str, Any]) -> None:
        """Take up what was written before us."""
        if key not in self._tallies:
            self._tallies[key] = report.read_tally(status, instant=parse_instant(status.get("lastReforkTime")))
        self._written.setdefault(key, status)

    def forget(self, key: Key) -> None:
        """Begin anew with a policy, or have done with it."""
        self._tallies.pop(key, None)
        self._written.pop(key, None)
        self._urgent.discard(key)
        self._metrics.forget("/".join(key))

    def mark(self, key: Key) -> None:
        """Write soon."""
        self._urgent.add(key)

    def last_refork_at(self, key: Key) -> float | None:
        """Tell when a policy has begun its last refork."""
        return self._tallies.get(key, report.Tally()).last_refork_at

    def begun(self, key: Key, *, at: float) -> None:
        """Take note that a policy has begun a refork."""
        tally = self._tallies.get(key, report.Tally())
        self._tallies[key] = replace(tally, last_refork_at=max(tally.last_refork_at or 0.0, at))
        self.mark(key)

    def ended(self, key: Key, *, good: bool, unpaid: bool, won: int) -> None:
        """Take note of how a refork of a policy's pod ended."""
        tally = self._tallies.get(key, report.Tally())
        self._tallies[key] = replace(
            tally,
            succeeded=tally.succeeded + good,
            failed=tally.failed + (not good),
            unpaid=tally.unpaid + unpaid,
            realised=tally.realised + won,
        )
        self.mark(key)

    async def run(self) -> None:
        """Write for ever."""
        written_at: dict[Key, float] = {}
        while True:
            await asyncio.sleep(_SECONDS)
            now = time.monotonic()
            urgent, self._urgent = self._urgent, set()
            for key in list(self._store.policies):
                due = written_at.setdefault(key, now) + self._settings.status_interval
                if key in urgent or now >= due:
                    written_at[key] = now
                    await self._report_safely(key)
            for key in set(written_at) - set(self._store.policies):
                del written_at[key]

    async def _report_safely(self, key: Key) -> None:
        try:
            await self._report(key)
        except Exception as error:  # noqa: BLE001 - one policy must not cost the others theirs
            self._log.error("status not made", policy="/".join(key), error=repr(error))

    async def _report(self, key: Key) -> None:
        found = self._store.policies.get(key)
        if found is None:
            return
        members = [w for pod in self._store.members(key) if (w := self._watched.get(pod.key)) is not None]
        facts = report.Facts(
            policy=found,
            pods=members,
            recommendations=recommend.recommend(_peaks(members), margin=found.margin),
            tally=self._tallies.get(key, report.Tally()),
            dry_run=self._settings.dry_run,
        )
        self._show(found, members)
        before = self._written.get(key, {})
        document = report.write(facts, before=before, now=time.time())
        if report.same(document, before) or self._settings.dry_run:
            return
        try:
            await self._cluster.merge(paths.policy_status(*key), {"metadata": {"uid": found.uid}, "status": document})
            self._written[key] = document
        except ClusterError as error:
            if error.gone:
                self._gone(key, found.uid)
            else:
                self._urgent.add(key)
                self._log.warning("status not written", policy=found.label, error=error)

    def _show(self, found: ReforkPolicy, members: Sequence[Watched]) -> None:
        """Set the gauges of a policy, and begin its counters."""
        self._metrics.expect(found.label)
        seen = [watched.observation for watched in members if watched.observation is not None]
        self._metrics.watched.labels(found.label).set(len(members))
        self._metrics.degraded.labels(found.label).set(sum(bool(watched.troubled) for watched in members))
        self._metrics.reforking.labels(found.label).set(sum(watched.reforking for watched in members))
        self._metrics.pss.labels(found.label).set(sum(item.sample.pss for item in seen))
        self._metrics.saved.labels(found.label).set(sum(item.saved for item in seen))
        self._metrics.gain.labels(found.label).set(sum(item.sample.gain for item in seen))

    async def write_broken(self, key: Key, message: str, *, status: Mapping[str, Any], generation: int) -> None:
        """Tell a policy that it was not understood."""
        document = report.write_broken(message, generation=generation, before=status, now=time.time())
        with suppress(ClusterError):
            await self._cluster.merge(paths.policy_status(*key), {"status": document})


def _peaks(members: Sequence[Watched]) -> list[recommend.Peak]:
    """Collect the peaks of pods that have settled after a refork."""
    return [
        recommend.Peak(
            workload=watched.pod.workload,
            settled=watched.settled_peak,
            ever=watched.peak,
            request=watched.pod.memory_request,
            limit=watched.pod.memory_limit,
        )
        for watched in members
        if watched.state.reforked_at is not None and watched.settled_peak and not watched.reforking
    ]
