"""Who asked for a refork by annotation, and what they were answered.

A request to a pod is answered on the pod. A request to a workload is carried out on each pod that was there when it was
first seen, and is answered on the workload when none of them has anything left to do. What was answered is remembered
here until the watch shows it: a watch tells what was, not what is.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec

from refork_operator import requests
from refork_operator import state as states
from refork_operator.events import about_owner, about_pod
from refork_operator.names import HANDLED_AT, OUTCOME, STATE, WATCHED_KINDS
from refork_operator.quantity import parse_instant
from refork_operator.reforks import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from refork_operator.events import Events
    from refork_operator.logs import Log
    from refork_operator.pods import Key, Pod, Workload
    from refork_operator.store import Store
    from refork_operator.tasks import Tasks
    from refork_operator.watched import Watched
    from refork_operator.workloads import Owner
    from refork_operator.writer import Writer


class Inbox:
    """Requests, from the annotation that asks to the annotation that answers.

    ``consider`` is called for each pod that a request to its workload concerns.
    """

    def __init__(  # noqa: PLR0913 - what it reads, and where it writes
        self,
        *,
        store: Store,
        watched: Mapping[Key, Watched],
        writer: Writer,
        events: Events,
        log: Log,
        tasks: Tasks,
        consider: Callable[[Pod], None],
    ) -> None:
        self._store = store
        self._watched = watched
        self._writer = writer
        self._events = events
        self._log = log
        self._tasks = tasks
        self._consider = consider
        self._owners: dict[Workload, states.WorkloadState] = {}
        self._answered: dict[Workload, str] = {}
        self._complete = False

    def read(self, owner: Owner) -> None:
        """Take note of what a workload asks for."""
        value = self._owner_request(owner)
        if value is None:
            self._owners.pop(owner.workload, None)
        else:
            self._tasks.spawn(self._accept(owner, value))

    def forget(self, workload: Workload) -> None:
        """Have done with a workload that is gone."""
        self._owners.pop(workload, None)
        self._answered.pop(workload, None)

    def complete(self) -> None:
        """Hear that all pods were seen: before that, a workload may only seem to have nothing left to do."""
        self._complete = True

    def settle(self) -> None:
        """Answer every workload whose request has nothing left to do."""
        for workload in list(self._owners):
            self.finish(workload)

    def asked(self, pod: Pod) -> str | None:
        """Return what asks for a refork of this pod: its own annotation, or its workload's."""
        return self.of_pod(pod) or self.of_workload(pod)

    def of_pod(self, pod: Pod) -> str | None:
        """Return the request that a pod's own annotation makes.

        As long as its workload was not seen, nobody knows whether it comes from its template. An instant tells by
        itself: one from the template would be older than the pod.
        """
        owner = self._store.owners.get(pod.workload)
        template = owner.template_request if owner is not None else None
        value = requests.pending(pod.annotations, created=pod.created, template_request=template)
        if owner is None and pod.workload.kind in WATCHED_KINDS and parse_instant(value) is None:
            return None
        watched = self._watched.get(pod.key)
        return None if watched is not None and watched.answered_request == value else value

    def _owner_request(self, owner: Owner) -> str | None:
        value = requests.pending(owner.annotations, created=owner.created)
        return None if self._answered.get(owner.workload) == value else value

    def of_workload(self, pod: Pod) -> str | None:
        """Return its workload's request, if that was made when the pod was there, and was not answered by it."""
        under_way = self._owners.get(pod.workload)
        if under_way is None or not under_way.request or pod.created > under_way.seen:
            return None
        return None if self._state(pod).workload_request == under_way.request else under_way.request

    def _state(self, pod: Pod) -> states.PodState:
        """Return what is remembered of a pod: what we know is newer than what its annotations show."""
        watched = self._watched.get(pod.key)
        return watched.state if watched is not None else states.read_pod(pod.annotations)

    async def _accept(self, owner: Owner, value: str) -> None:
        """Write down when a workload's request was first seen; pods that are born later need no refork."""
        known = states.read_workload(owner.annotations)
        if known.request != value:
            if self._owners.get(owner.workload, known).request == value:
                return
            known = states.WorkloadState(request=value, seen=time.time())
            self._owners[owner.workload] = known
            self._log.info("requested", workload=owner.workload, namespace=owner.workload.namespace, value=value)
            self._events.normal(about_owner(owner), "ReforkRequested", "reforking the pods one after the other")
            await self._writer.annotate_owner(owner, {STATE: states.write(known)})
        self._owners[owner.workload] = known
        for pod in list(self._store.crew(owner.workload)):
            self._consider(pod)
        self.finish(owner.workload)

    def finish(self, workload: Workload) -> None:
        """Answer a workload's request when none of its pods has anything left to do."""
        owner, under_way = self._store.owners.get(workload), self._owners.get(workload)
        if not self._complete or owner is None or under_way is None or self._owner_request(owner) != under_way.request:
            return
        crew = [pod for pod in self._store.crew(workload) if not pod.terminating and not pod.finished]
        if requests.paused(owner.annotations):
            text = f"{Outcome.REFUSED}: refork.dev/paused is set"
        elif any(self.of_workload(pod) is not None and not requests.paused(pod.annotations) for pod in crew):
            return
        else:
            text = self._owner_outcome(crew, value=under_way.request)
        del self._owners[workload]
        self._answered[workload] = under_way.request
        self._events.normal(about_owner(owner), "ReforkFinished", text)
        self._log.info("request answered", workload=workload, namespace=workload.namespace, outcome=text)
        self._tasks.spawn(
            self._writer.annotate_owner(owner, {HANDLED_AT: under_way.request, OUTCOME: text, STATE: None})
        )

    def _owner_outcome(self, crew: Sequence[Pod], *, value: str) -> str:
        done = [state for pod in crew if (state := self._state(pod)).workload_request == value]
        good = sum(state.outcome.startswith(Outcome.SUCCEEDED) for state in done)
        word = Outcome.SUCCEEDED if good == len(done) else Outcome.FAILED
        skipped = sum(requests.paused(pod.annotations) for pod in crew)
        return f"{word}: {good} of {len(done)} pods" + (f", {skipped} paused" if skipped else "")

    async def refuse(self, watched: Watched, why: str) -> None:
        """Answer a request that will not be carried out."""
        pod, value = watched.pod, self.of_pod(watched.pod)
        text = f"{Outcome.REFUSED}: {why}"
        changes: dict[str, str | None] = {OUTCOME: text}
        if value is not None:
            changes[HANDLED_AT] = watched.answered_request = value
        if (asked := self.of_workload(pod)) is not None:
            watched.state = msgspec.structs.replace(watched.state, workload_request=asked, outcome=text)
            changes[STATE] = states.write(watched.state)
        self._log.warning("request refused", pod=pod.label, reason=why)
        self._events.warning(about_pod(pod), "ReforkRefused", why)
        await self._writer.annotate(pod, changes)
        self.finish(pod.workload)
