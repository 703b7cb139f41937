"""Reforks from beginning to end: written down, commanded, followed, judged, and told.

The order is what makes it safe to be killed anywhere: first our own books, so that no second plan begins the same
again; then the intent on the pod; then the command; then the outcome, which takes the intent away.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from refork_operator import requests
from refork_operator import state as states
from refork_operator.cluster import ClusterError
from refork_operator.events import about_pod, about_policy
from refork_operator.names import HANDLED_AT, OUTCOME, STATE
from refork_operator.quantity import show_bytes
from refork_operator.reforks import Outcome, Reforks, Result

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from refork import decide
    from refork_operator.events import Events
    from refork_operator.inbox import Inbox
    from refork_operator.logs import Log
    from refork_operator.metrics import Metrics
    from refork_operator.plan import Verdict
    from refork_operator.pods import Key, Pod
    from refork_operator.policy import ReforkPolicy
    from refork_operator.publisher import Publisher
    from refork_operator.store import Store
    from refork_operator.tasks import Tasks
    from refork_operator.watched import Watched
    from refork_operator.writer import Writer

_UNWRITTEN_SECONDS = 5.0
_LONGEST_REASON = 200


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Whom the conductor works with; ``may_act`` says whether we are still the active one."""

    store: Store
    inbox: Inbox
    publisher: Publisher
    writer: Writer
    events: Events
    metrics: Metrics
    log: Log
    tasks: Tasks
    reforks: Reforks
    may_act: Callable[[], bool]
    ended: Callable[[Pod], None]
    dry_run: bool


class Conductor:
    """Begins reforks, takes up those that others have begun, and brings all of them to an end."""

    def __init__(self, surroundings: Surroundings) -> None:
        self._with = surroundings
        self._said: dict[Key, str] = {}

    def begin(self, watched: Watched, verdict: Verdict, found: ReforkPolicy | None) -> None:
        """Begin what was decided: in our own books at once, so that no second plan can begin it again."""
        intent = self._intent(watched, found)
        if self._with.dry_run:
            if self._said.get(watched.pod.key) != intent.id:
                self._said[watched.pod.key] = intent.id
                self._with.log.info("would refork", pod=watched.pod.label, reason=verdict.message)
            return
        before, history = watched.state, watched.history
        asked_since, sampled_at = watched.asked_since, watched.history.sampled_at
        watched.begin(intent)
        if found is not None and not intent.request:
            self._with.publisher.begun(found.key, at=intent.at)
        cause, since = ("annotation", asked_since) if intent.request else ("sample", sampled_at)
        if since is not None:
            self._with.metrics.command_delay.labels(cause).observe(max(0.0, intent.at - since))
        self._work(watched, self._refork(watched, verdict.message, before=before, history=history))

    def _intent(self, watched: Watched, found: ReforkPolicy | None) -> states.Intent:
        pod, seen = watched.pod, watched.observation
        assert seen is not None
        request, asked = self._with.inbox.of_pod(pod), self._with.inbox.of_workload(pod)
        owner = self._with.store.owners.get(pod.workload)
        if request is not None:
            name = requests.requested_id(asked_of=pod.uid, pod=pod.uid, value=request)
        elif asked is not None and owner is not None:
            name = requests.requested_id(asked_of=owner.uid, pod=pod.uid, value=asked)
        else:
            name = requests.automatic_id(
                policy=found.uid if found is not None else "",
                pod=pod.uid,
                server=seen.server,
                generation=seen.generation,
                last=seen.last,
            )
        return states.Intent(
            id=name,
            at=time.time(),
            server=seen.server,
            promised=seen.sample.gain,
            pss=seen.sample.pss,
            policy=found.label if found is not None else "",
            request=request or asked or "",
            workload=str(pod.workload) if request is None and asked is not None else "",
        )

    def resume(self, watched: Watched) -> None:
        """Take up a refork that was begun before us."""
        intent, seen = watched.state.intent, watched.observation
        if intent is None or watched.work is not None or seen is None or self._with.dry_run or not self._with.may_act():
            return
        if seen.server != intent.server:
            lost = Result(Outcome.LOST, "the server was restarted meanwhile")
            self._work(watched, self._conclude(watched, intent, lost))
            return
        self._with.log.info("refork resumed", pod=watched.pod.label, request_id=intent.id)
        self._work(watched, self._refork(watched, "resumed", before=None, history=watched.history))

    def _work(self, watched: Watched, work: Coroutine[Any, Any, None]) -> None:
        watched.work = self._with.tasks.spawn(self._to_its_end(watched, work))

    async def _to_its_end(self, watched: Watched, work: Coroutine[Any, Any, None]) -> None:
        """See to it that the pod is free again, whatever happens: an intent that is left is taken up anew."""
        try:
            await work
        finally:
            watched.work = None
        self._with.ended(watched.pod)
        self._with.inbox.finish(watched.pod.workload)

    async def _refork(
        self, watched: Watched, reason: str, *, before: states.PodState | None, history: decide.History
    ) -> None:
        """Carry a refork out, from writing it down to writing down how it ended."""
        pod, intent = watched.pod, watched.state.intent
        assert intent is not None
        if before is not None:
            try:
                await self._with.writer.annotate_or_fail(pod, {STATE: states.write(watched.state)})
            except ClusterError as error:
                self._with.log.warning("refork not begun", pod=pod.label, error=error)
                watched.take_back(
                    before, history, until=time.time() + _UNWRITTEN_SECONDS, why=f"not written down: {error}"
                )
                return
        if not self._with.may_act():
            return
        self._with.log.info("refork started", pod=pod.label, reason=reason, request_id=intent.id)
        self._with.events.normal(about_pod(pod), "ReforkStarted", _timeless(reason))
        result = await self._with.reforks.carry_out(lambda: self._current(pod), intent, reason=reason[:_LONGEST_REASON])
        if result.outcome is Outcome.POSTPONED:
            fallback = before if before is not None else states.not_begun(watched.state)
            until = time.time() + result.retry_after
            watched.take_back(fallback, history, until=until, why=result.message)
            self._with.log.info("refork postponed", pod=pod.label, reason=result.message)
            await self._with.writer.annotate(pod, {STATE: states.write(fallback)})
            return
        await self._conclude(watched, intent, result)

    async def _conclude(self, watched: Watched, intent: states.Intent, result: Result) -> None:
        """Write down how a refork ended, and tell everybody."""
        pod = watched.pod
        unpaid_before = watched.history.unpaid
        text = _outcome_text(intent, result)
        watched.end(realised=result.realised, outcome=text)
        unpaid = watched.history.unpaid > unpaid_before
        changes: dict[str, str | None] = {STATE: states.write(watched.state), OUTCOME: text}
        if intent.request and not intent.workload:
            changes[HANDLED_AT] = watched.answered_request = intent.request
        watched.asked_since = None
        self._tell(pod, intent, result, text=text, unpaid=unpaid)
        await self._with.writer.annotate(pod, changes)

    def _tell(self, pod: Pod, intent: states.Intent, result: Result, *, text: str, unpaid: bool) -> None:
        """Log, count and announce how a refork ended."""
        good = result.outcome is Outcome.SUCCEEDED
        say = self._with.log.info if good else self._with.log.warning
        say("refork ended", pod=pod.label, outcome=text, request_id=intent.id)
        tell = self._with.events.normal if good else self._with.events.warning
        tell(about_pod(pod), f"Refork{result.outcome}", text)
        found = self._with.store.policy_of(pod.key)
        self._with.metrics.reforks.labels(found.label if found is not None else "", result.outcome).inc()
        if found is None:
            return
        tell(about_policy(found), f"Refork{result.outcome}", f"{pod.name}: {text}")
        won = result.realised or 0
        self._with.metrics.realised.labels(found.label).inc(max(0, won))
        self._with.publisher.ended(found.key, good=good, unpaid=unpaid, won=won)
        self._with.publisher.begun(found.key, at=intent.at)

    def _current(self, pod: Pod) -> Pod | None:
        """Return the pod as it is now; None when it is gone or another one has its name."""
        found = self._with.store.pods.get(pod.key)
        return found if found is not None and found.uid == pod.uid and not found.terminating else None


def _outcome_text(intent: states.Intent, result: Result) -> str:
    """Say how a refork ended; the first word is for machines."""
    text = f"{result.outcome}: {result.message}"
    if result.outcome is not Outcome.SUCCEEDED or result.realised is None:
        return text
    return f"{text}, won {show_bytes(result.realised)} of {show_bytes(intent.promised)} predicted"


def _timeless(reason: str) -> str:
    """Leave out of an event what differs each time: equal events are counted, not added."""
    return reason.partition(" for ")[0]
