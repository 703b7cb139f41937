"""The operator at work: what the cluster shows goes in, questions and commands to pods and words to people come out.

It decides nothing itself. ``refork.decide`` says when a refork of one pod pays, ``plan`` says which pods of a policy
may go now; this is the shell that keeps the facts together for them and does what they say. Everything runs in one
event loop, so that no fact changes while it is looked at; what takes time is a task of its own.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from refork import decide
from refork_operator import backoff, paths, plan, pods, policy, recommend, report, requests, workloads
from refork_operator import state as states
from refork_operator.cluster import ClusterError
from refork_operator.events import about_owner, about_pod, about_policy
from refork_operator.names import (
    CONTROL_PORT,
    CONTROL_SCHEME,
    DEFAULT_PORT,
    HANDLED_AT,
    OUTCOME,
    STATE,
    TOKEN_SECRET,
    Hold,
    Trouble,
)
from refork_operator.podclient import Endpoint, PodError
from refork_operator.poller import Poller
from refork_operator.quantity import parse_instant, show_bytes
from refork_operator.reforks import Outcome, Reforks, Result
from refork_operator.store import Store
from refork_operator.watched import Watched

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence
    from typing import Any

    from refork_operator.cluster import Cluster
    from refork_operator.events import Events
    from refork_operator.logs import Log
    from refork_operator.metrics import Metrics
    from refork_operator.podclient import PodClient
    from refork_operator.pods import Key, Pod, Workload
    from refork_operator.policy import Control, ReforkPolicy
    from refork_operator.settings import Settings
    from refork_operator.tokens import Tokens
    from refork_operator.workloads import Owner

_DEBOUNCE_SECONDS = 0.1
_ASKED_POLL_SECONDS = 1.0
_UNASKED_INTERVAL = 15.0
_PATIENCE_SECONDS = 300.0
_FAILURES_UNTIL_ANSWER = 3
_GONE = frozenset({404, 409})
_WRITE_ATTEMPTS = 8


class Engine:
    """The operator, once it is the active one."""

    def __init__(  # noqa: PLR0913 - everything that reaches out of the process comes from outside
        self,
        *,
        settings: Settings,
        cluster: Cluster,
        client: PodClient,
        tokens: Tokens,
        events: Events,
        metrics: Metrics,
        log: Log,
        may_act: Callable[[], bool],
    ) -> None:
        self._settings = settings
        self._cluster = cluster
        self._tokens = tokens
        self._events = events
        self._metrics = metrics
        self._log = log
        self._may_act = may_act
        self._client = client
        self._store = Store()
        self._watched: dict[Key, Watched] = {}
        self._tallies: dict[Key, report.Tally] = {}
        self._written: dict[Key, Mapping[str, Any]] = {}
        self._owners: dict[Workload, states.WorkloadState] = {}
        self._answered: dict[Workload, str] = {}
        self._dirty: set[Key | Workload] = set()
        self._urgent: set[Key] = set()
        self._work: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._said: dict[Key, str] = {}
        self._poller: Poller[Key] = Poller(self._ask, concurrency=settings.poll_concurrency, metrics=metrics)
        self._reforks = Reforks(
            client, endpoint=self._endpoint, patience=settings.operation_timeout, settle=settings.settle
        )

    async def run(self) -> None:
        """Work for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._poller.run())
            group.create_task(self._plan_for_ever())
            group.create_task(self._report_for_ever())
            group.create_task(self._events.run())

    # --- what the cluster shows ---------------------------------------------------------------------------------------

    def put_pod(self, raw: Mapping[str, Any]) -> None:
        """Take note of a pod as it is now."""
        pod = pods.parse(raw)
        matched = self._store.pods.get(pod.key)
        if matched is not None and matched.uid != pod.uid:
            self.drop_pod(pod.key)
        self._store.put_pod(pod)
        found = self._store.policy_of(pod.key)
        if found is not None and found.control.port != DEFAULT_PORT:
            pod = pods.parse(raw, port=found.control.port)
            self._store.put_pod(pod)
        self._consider(pod)

    def drop_pod(self, key: Key) -> None:
        """Take note that a pod is gone."""
        pod = self._store.pods.get(key)
        found = self._store.policy_of(key)
        self._store.drop_pod(key)
        self._unwatch(key)
        if pod is not None:
            self._touch(found.key if found is not None else pod.workload)

    def put_policy(self, raw: Mapping[str, Any]) -> None:
        """Take note of a policy as it is now."""
        meta = raw["metadata"]
        key = (meta["namespace"], meta["name"])
        status = raw.get("status") or {}
        if key not in self._tallies:
            self._tallies[key] = report.read_tally(status, instant=parse_instant(status.get("lastReforkTime")))
        try:
            found = policy.parse(raw)
        except policy.PolicyError as error:
            self._log.error("policy not understood", policy=f"{key[0]}/{key[1]}", error=error)
            self._store.drop_policy(key)
            self._consider_all(key[0])
            if (status.get("observedGeneration")) != meta.get("generation"):
                self._spawn(self._write_broken(key, str(error), status=status, generation=meta.get("generation", 1)))
            return
        known = self._store.policies.get(key)
        self._written.setdefault(key, status)
        if known is not None and known.uid != found.uid:
            self._tallies[key] = report.read_tally(status, instant=None)
        if known == found:
            return
        self._store.put_policy(found)
        self._log.info("policy", policy=found.label, generation=found.generation, enforce=found.enforce)
        self._consider_all(found.namespace)
        self._touch(found.key)

    def drop_policy(self, key: Key) -> None:
        """Take note that a policy is gone."""
        found = self._store.policies.get(key)
        self._store.drop_policy(key)
        for known in (self._tallies, self._written):
            known.pop(key, None)
        self._urgent.discard(key)
        self._dirty.discard(key)
        if found is not None:
            self._metrics.forget(found.label)
            self._log.info("policy gone", policy=found.label)
        self._consider_all(key[0])

    def put_owner(self, raw: Mapping[str, Any], *, kind: str) -> None:
        """Take note of a workload as it is now."""
        owner = workloads.parse(raw, kind=kind)
        known = self._store.owners.get(owner.workload)
        self._store.owners[owner.workload] = owner
        if owner == known:
            return
        value = self._owner_request(owner)
        if value is None:
            self._owners.pop(owner.workload, None)
        else:
            self._spawn(self._accept_owner_request(owner, value))
        if known is None or known.annotations != owner.annotations or known.template_request != owner.template_request:
            for pod in list(self._store.crew(owner.workload)):
                self._consider(pod)

    def drop_owner(self, raw: Mapping[str, Any], *, kind: str) -> None:
        """Take note that a workload is gone."""
        owner = workloads.parse(raw, kind=kind)
        for known in (self._store.owners, self._owners, self._answered):
            known.pop(owner.workload, None)

    def keep_pods(self, keys: set[Key], *, namespace: str | None) -> None:
        """Forget pods that a complete list did not hold any more."""
        for key in list(self._store.pods):
            if key not in keys and namespace in (None, key[0]):
                self.drop_pod(key)

    # --- which pods to watch ------------------------------------------------------------------------------------------

    def _consider_all(self, namespace: str) -> None:
        for pod in list(self._store.pods.values()):
            if pod.namespace == namespace:
                self._consider(pod)

    def _consider(self, pod: Pod) -> None:
        """Begin, go on or stop to watch a pod."""
        found = self._store.policy_of(pod.key)
        watched = self._watched.get(pod.key)
        if pod.terminating or pod.finished or not self._worth_watching(pod, found):
            if watched is not None and (watched.work is None or pod.terminating or pod.finished):
                self._unwatch(pod.key)
                self._touch(found.key if found is not None else pod.workload)
            return
        if watched is None:
            watched = self._watched[pod.key] = Watched.of(pod)
            watched.interval = found.interval if found is not None else _UNASKED_INTERVAL
            watched.due = backoff.first_due(pod.uid, now=time.time(), interval=watched.interval)
            self._poller.schedule(pod.key, watched.due)
        changed = watched.pod.ready != pod.ready
        if STATE in watched.pod.annotations and STATE not in pod.annotations and not watched.reforking:
            watched.state, watched.history = states.PodState(), decide.History()
        watched.pod = pod
        if found is not None:
            watched.learn_anew(found.pays)
            if found.interval != watched.interval:
                watched.interval = found.interval
                watched.due = backoff.first_due(pod.uid, now=time.time(), interval=found.interval)
                self._poller.schedule(pod.key, watched.due)
        if self._asked(pod) is not None:
            self._hear_request(watched)
        else:
            watched.asked_since = None
        if changed:
            self._touch(found.key if found is not None else pod.workload)

    def _worth_watching(self, pod: Pod, found: ReforkPolicy | None) -> bool:
        if found is not None or self._asked(pod) is not None:
            return True
        return states.read_pod(pod.annotations).intent is not None

    def _unwatch(self, key: Key) -> None:
        watched = self._watched.pop(key, None)
        self._poller.remove(key)
        self._said.pop(key, None)
        if watched is not None and watched.work is not None:
            watched.work.cancel()

    def _hear_request(self, watched: Watched) -> None:
        """Ask a pod at once that somebody wants reforked."""
        if watched.asked_since is None:
            watched.asked_since = time.time()
            if not watched.reforking:
                self._poller.schedule(watched.pod.key, time.time())
        self._mark(watched.pod)

    # --- requests by annotation ---------------------------------------------------------------------------------------

    def _asked(self, pod: Pod) -> str | None:
        """Return what asks for a refork of this pod: its own annotation, or its workload's."""
        return self._pod_request(pod) or self._workload_request(pod)

    def _pod_request(self, pod: Pod) -> str | None:
        owner = self._store.owners.get(pod.workload)
        template = owner.template_request if owner is not None else None
        value = requests.pending(pod.annotations, created=pod.created, template_request=template)
        watched = self._watched.get(pod.key)
        return None if watched is not None and watched.answered_request == value else value

    def _owner_request(self, owner: Owner) -> str | None:
        value = requests.pending(owner.annotations, created=owner.created)
        return None if self._answered.get(owner.workload) == value else value

    def _workload_request(self, pod: Pod) -> str | None:
        """Return its workload's request, if that was made when the pod was there, and was not answered by it."""
        under_way = self._owners.get(pod.workload)
        if under_way is None or not under_way.request or pod.created > under_way.seen:
            return None
        return None if self._state(pod).workload_request == under_way.request else under_way.request

    def _state(self, pod: Pod) -> states.PodState:
        """Return what is remembered of a pod: what we know is newer than what its annotations show."""
        watched = self._watched.get(pod.key)
        return watched.state if watched is not None else states.read_pod(pod.annotations)

    async def _accept_owner_request(self, owner: Owner, value: str) -> None:
        """Write down when a workload's request was first seen; pods that are born later need no refork."""
        known = states.read_workload(owner.annotations)
        if known.request != value:
            if self._owners.get(owner.workload, known).request == value:
                return
            known = states.WorkloadState(request=value, seen=time.time())
            self._owners[owner.workload] = known
            self._log.info("requested", workload=owner.workload, namespace=owner.workload.namespace, value=value)
            self._events.normal(about_owner(owner), "ReforkRequested", "reforking the pods one after the other")
            await self._annotate_owner(owner, {STATE: states.write(known)})
        self._owners[owner.workload] = known
        for pod in list(self._store.crew(owner.workload)):
            self._consider(pod)
        self._finish_owner_request(owner.workload)

    def _finish_owner_request(self, workload: Workload) -> None:
        """Answer a workload's request when none of its pods has anything left to do."""
        owner, under_way = self._store.owners.get(workload), self._owners.get(workload)
        if owner is None or under_way is None or self._owner_request(owner) != under_way.request:
            return
        crew = [pod for pod in self._store.crew(workload) if not pod.terminating and not pod.finished]
        if requests.paused(owner.annotations):
            text = f"{Outcome.REFUSED}: refork.dev/paused is set"
        elif any(self._workload_request(pod) is not None and not requests.paused(pod.annotations) for pod in crew):
            return
        else:
            text = self._owner_outcome(crew, value=under_way.request)
        del self._owners[workload]
        self._answered[workload] = under_way.request
        self._events.normal(about_owner(owner), "ReforkFinished", text)
        self._log.info("request answered", workload=workload, namespace=workload.namespace, outcome=text)
        self._spawn(self._annotate_owner(owner, {HANDLED_AT: under_way.request, OUTCOME: text, STATE: None}))

    def _owner_outcome(self, crew: Sequence[Pod], *, value: str) -> str:
        done = [state for pod in crew if (state := self._state(pod)).workload_request == value]
        good = sum(state.outcome.startswith(Outcome.SUCCEEDED) for state in done)
        word = Outcome.SUCCEEDED if good == len(done) else Outcome.FAILED
        skipped = sum(requests.paused(pod.annotations) for pod in crew)
        return f"{word}: {good} of {len(done)} pods" + (f", {skipped} paused" if skipped else "")

    async def _refuse(self, watched: Watched, why: str) -> None:
        """Answer a request that will not be carried out."""
        pod, value = watched.pod, self._pod_request(watched.pod)
        text = f"{Outcome.REFUSED}: {why}"
        changes: dict[str, str | None] = {OUTCOME: text}
        if value is not None:
            changes[HANDLED_AT] = watched.answered_request = value
        if (asked := self._workload_request(pod)) is not None:
            watched.state = msgspec.structs.replace(watched.state, workload_request=asked, outcome=text)
            changes[STATE] = states.write(watched.state)
        self._log.warning("request refused", pod=_name(pod), reason=why)
        self._events.warning(about_pod(pod), "ReforkRefused", why)
        await self._annotate(pod, changes)
        self._finish_owner_request(pod.workload)

    # --- asking pods --------------------------------------------------------------------------------------------------

    async def _ask(self, key: Key) -> float | None:
        """Ask one pod how it is, and say when to ask again."""
        watched = self._watched.get(key)
        if watched is None:
            return None
        pod, started = watched.pod, time.monotonic()
        try:
            endpoint = await self._endpoint(pod)
            observation = await self._client.status(endpoint, at=time.time(), limit=pod.memory_limit)
        except PodError as error:
            self._metrics.polls.labels(error.trouble).inc()
            self._hear_trouble(watched, error)
        else:
            self._metrics.polls.labels("ok").inc()
            self._metrics.poll_seconds.observe(time.monotonic() - started)
            recovered = bool(watched.troubled)
            watched.answered(observation)
            if recovered:
                self._mark_urgent(pod)
                self._events.normal(about_pod(pod), "Answers", "the pod answers again")
            self._resume(watched)
        self._judge(watched)
        failures = watched.failures
        if watched.asked_since is not None and not watched.reforking:
            return time.time() + _ASKED_POLL_SECONDS * 2.0 ** min(failures, 5)
        if failures or watched.due <= time.time():  # else it was asked out of turn
            watched.due = backoff.next_due(watched.due, now=time.time(), interval=watched.interval, failures=failures)
        return watched.due

    def _hear_trouble(self, watched: Watched, error: PodError) -> None:
        before = watched.troubled
        watched.failed(str(error))
        if error.trouble is Trouble.UNAUTHORIZED:
            self._tokens.forget(watched.pod.namespace)
        if watched.troubled and not before:
            self._mark_urgent(watched.pod)
            self._log.warning("pod does not answer", pod=_name(watched.pod), error=error)
            self._events.warning(about_pod(watched.pod), str(error.trouble), error.message)
            self._spawn(self._look_whether_gone(watched.pod))

    async def _look_whether_gone(self, pod: Pod) -> None:
        """Ask the API server for a pod that does not answer: a watch that was interrupted may have missed its end."""
        try:
            self.put_pod(await self._cluster.get(paths.pod(pod.namespace, pod.name)))
        except ClusterError as error:
            if error.status in _GONE:
                self.drop_pod(pod.key)

    def _judge(self, watched: Watched) -> None:
        """Have the memory of a pod considered, by itself when it wants nothing, among others when it does."""
        decision, pod = watched.decision, watched.pod
        if watched.asked_since is not None:
            if not watched.reforking:
                self._lose_patience(watched)
            self._mark(pod)
        elif decision is not None and decision.refork and not watched.troubled:
            self._mark(pod)
        elif watched.troubled:
            self._say(watched, plan.Verdict(start=False, reason=Hold.UNREACHABLE, message=watched.trouble))
        elif decision is not None and not watched.reforking:
            self._say(watched, plan.Verdict(start=False, reason=decision.reason, message=decision.message))

    def _lose_patience(self, watched: Watched) -> None:
        """Answer a request that waits for something that does not come."""
        waited = time.time() - (watched.asked_since or 0.0)
        if watched.failures >= _FAILURES_UNTIL_ANSWER:
            watched.asked_since = None
            self._spawn(self._refuse(watched, watched.trouble))
        elif waited > _PATIENCE_SECONDS and watched.verdict is not None and watched.verdict.reason == Hold.BUSY:
            watched.asked_since = None
            self._spawn(self._refuse(watched, watched.verdict.message))

    async def _endpoint(self, pod: Pod) -> Endpoint:
        """Find out where a pod answers and what to show it. Raises PodError."""
        found = self._store.policy_of(pod.key)
        control = found.control if found is not None else _control_without_policy(pod)
        if not pod.ip:
            raise PodError(Trouble.NO_ADDRESS, "the pod has no IP address yet")
        port = pod.port(control.port)
        if port is None:
            raise PodError(Trouble.NO_CONTROL_PORT, f"no container port is named {control.port}")
        return Endpoint(
            host=pod.ip,
            port=port,
            token=await self._tokens.token(pod.namespace, control),
            tls=await self._tokens.tls(pod.namespace, control),
            server_name=control.server_name,
        )

    # --- planning -----------------------------------------------------------------------------------------------------

    def _mark(self, pod: Pod) -> None:
        found = self._store.policy_of(pod.key)
        self._dirty.add(found.key if found is not None else pod.workload)
        self._wake.set()

    def _mark_urgent(self, pod: Pod) -> None:
        found = self._store.policy_of(pod.key)
        if found is not None:
            self._urgent.add(found.key)

    def _touch(self, group: Key | Workload) -> None:
        """Plan anew, and say so soon."""
        self._dirty.add(group)
        if isinstance(group, tuple):
            self._urgent.add(group)
        self._wake.set()

    async def _plan_for_ever(self) -> None:
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), 1.0)
            await asyncio.sleep(_DEBOUNCE_SECONDS)
            self._wake.clear()
            self._dirty |= {w.pod.workload for w in self._watched.values() if self._waits(w)}
            groups, self._dirty = self._dirty, set()
            for group in groups:
                self._plan(group)
            for workload in list(self._owners):
                self._finish_owner_request(workload)

    def _waits(self, watched: Watched) -> bool:
        return watched.asked_since is not None and self._store.policy_of(watched.pod.key) is None

    def _plan(self, group: Key | Workload) -> None:
        """Decide for the pods of a policy, or for those of a workload without one, and begin what was decided."""
        if isinstance(group, tuple):
            found = self._store.policies.get(group)
            if found is None:
                return
            members, rules = list(self._store.members(group)), self._rules(found)
        else:
            found = None
            members = [pod for pod in self._store.crew(group) if self._store.policy_of(pod.key) is None]
            rules = plan.Rules(budget=policy.Budget(number=1), enforce=False)
        now = time.time()
        candidates = [self._candidate(pod, now=now) for pod in members if not pod.finished]
        everybody = {
            pod.key: pod for member in members for pod in self._store.crew(member.workload) if not pod.finished
        }
        crews = plan.crews(self._candidate(pod, now=now) for pod in everybody.values())
        for key, verdict in plan.plan(candidates, rules=rules, crews=crews, now=now).items():
            watched = self._watched.get(key)
            if watched is None:
                continue
            self._say(watched, verdict)
            if verdict.start:
                self._begin(watched, verdict, found)
            elif watched.asked_since is not None and verdict.reason == Hold.PAUSED:
                watched.asked_since = None
                if self._pod_request(watched.pod) is not None:
                    self._spawn(self._refuse(watched, verdict.message))

    def _rules(self, found: ReforkPolicy) -> plan.Rules:
        last = self._tallies.get(found.key, report.Tally()).last_refork_at
        return plan.Rules(
            budget=found.budget,
            enforce=found.enforce,
            paused=found.paused,
            open=found.schedule.is_open(time.time()),
            min_age=found.min_age,
            quiet_until=last + found.cooldown if last is not None and found.cooldown else None,
            one_start=found.cooldown > 0,
        )

    def _candidate(self, pod: Pod, *, now: float) -> plan.Candidate:
        watched = self._watched.get(pod.key)
        owner = self._store.owners.get(pod.workload)
        held = watched is not None and now < watched.held_until
        return plan.Candidate(
            key=pod.key,
            workload=pod.workload,
            node=pod.node,
            age=now - pod.created,
            ready=pod.ready,
            terminating=pod.terminating,
            paused=requests.paused(pod.annotations, owner.annotations if owner is not None else {}),
            reforking=watched.reforking if watched is not None else False,
            decision=watched.decision if watched is not None else None,
            trouble=watched.troubled if watched is not None else "",
            busy=self._busy(watched, held=held) if watched is not None else "",
            request=self._pod_request(pod),
            workload_request=self._workload_request(pod),
        )

    def _busy(self, watched: Watched, *, held: bool) -> str:
        if held:
            return watched.held_for
        return watched.observation.busy if watched.observation is not None else ""

    def _say(self, watched: Watched, verdict: plan.Verdict) -> None:
        """Write down what was decided for a pod; count it and tell people when the reason is another one."""
        before, watched.verdict = watched.verdict, verdict
        if before is not None and before.reason == verdict.reason:
            return
        self._metrics.decisions.labels(verdict.reason).inc()
        self._mark_urgent(watched.pod)
        self._log.debug("decision", pod=_name(watched.pod), reason=verdict.reason, why=verdict.message)
        if verdict.reason == Hold.OBSERVING:
            self._events.normal(about_pod(watched.pod), "ReforkRecommended", "a refork would pay; the policy observes")
        elif verdict.reason == decide.Reason.DOES_NOT_PAY:
            self._events.warning(about_pod(watched.pod), "ReforkDoesNotPay", verdict.message)

    # --- reforking ----------------------------------------------------------------------------------------------------

    def _begin(self, watched: Watched, verdict: plan.Verdict, found: ReforkPolicy | None) -> None:
        """Begin what was decided: in our own books at once, so that no second plan can begin it again."""
        intent = self._intent(watched, found)
        if self._settings.dry_run:
            if self._said.get(watched.pod.key) != intent.id:
                self._said[watched.pod.key] = intent.id
                self._log.info("would refork", pod=_name(watched.pod), reason=verdict.message)
            return
        before, history = watched.state, watched.history
        asked_since, sampled_at = watched.asked_since, watched.history.sampled_at
        watched.begin(intent)
        if found is not None and not intent.request:
            tally = self._tallies.get(found.key, report.Tally())
            self._tallies[found.key] = replace(tally, last_refork_at=intent.at)
        cause, since = ("annotation", asked_since) if intent.request else ("sample", sampled_at)
        if since is not None:
            self._metrics.command_delay.labels(cause).observe(max(0.0, intent.at - since))
        self._mark_urgent(watched.pod)
        watched.work = self._spawn(self._refork(watched, verdict.message, before=before, history=history))

    def _intent(self, watched: Watched, found: ReforkPolicy | None) -> states.Intent:
        pod, seen = watched.pod, watched.observation
        assert seen is not None
        request, asked = self._pod_request(pod), self._workload_request(pod)
        owner = self._store.owners.get(pod.workload)
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

    def _resume(self, watched: Watched) -> None:
        """Take up a refork that was begun before us."""
        intent, seen = watched.state.intent, watched.observation
        if intent is None or watched.work is not None or seen is None or self._settings.dry_run:
            return
        if seen.server != intent.server:
            lost = Result(Outcome.LOST, "the server was restarted meanwhile")
            watched.work = self._spawn(self._conclude(watched, intent, lost))
            return
        self._log.info("refork resumed", pod=_name(watched.pod), request_id=intent.id)
        watched.work = self._spawn(self._refork(watched, "resumed", before=None, history=watched.history))

    async def _refork(
        self, watched: Watched, reason: str, *, before: states.PodState | None, history: decide.History
    ) -> None:
        """Carry a refork out, from writing it down to writing down how it ended."""
        pod, intent = watched.pod, watched.state.intent
        assert intent is not None
        if before is not None:
            try:
                await self._annotate_or_fail(pod, {STATE: states.write(watched.state)})
            except ClusterError as error:
                watched.take_back(before, history, until=time.time() + 5.0, why=f"not written down: {error}")
                watched.work = None
                return
        if not self._may_act():
            return
        self._log.info("refork started", pod=_name(pod), reason=reason, request_id=intent.id)
        self._events.normal(about_pod(pod), "ReforkStarted", _timeless(reason))
        result = await self._reforks.carry_out(lambda: self._current(pod), intent, reason=reason[:200])
        if result.outcome is Outcome.POSTPONED:
            fallback = before if before is not None else states.PodState(outcome=watched.state.outcome)
            until = time.time() + result.retry_after
            watched.take_back(fallback, history, until=until, why=result.message)
            watched.work = None
            self._log.info("refork postponed", pod=_name(pod), reason=result.message)
            await self._annotate(pod, {STATE: states.write(fallback)})
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
        await self._annotate(pod, changes)
        watched.work = None
        if self._asked(self._store.pods.get(pod.key, pod)) is not None:
            self._hear_request(watched)
        found = self._store.policy_of(pod.key)
        self._touch(found.key if found is not None else pod.workload)
        if pod.key in self._watched:
            self._poller.schedule(pod.key, time.time() + 1.0)
        self._finish_owner_request(pod.workload)

    def _tell(self, pod: Pod, intent: states.Intent, result: Result, *, text: str, unpaid: bool) -> None:
        """Log, count and announce how a refork ended."""
        good = result.outcome is Outcome.SUCCEEDED
        say = self._log.info if good else self._log.warning
        say("refork ended", pod=_name(pod), outcome=text, request_id=intent.id)
        tell = self._events.normal if good else self._events.warning
        tell(about_pod(pod), f"Refork{result.outcome}", text)
        found = self._store.policy_of(pod.key)
        self._metrics.reforks.labels(found.label if found is not None else "", result.outcome).inc()
        if found is None:
            return
        tell(about_policy(found), f"Refork{result.outcome}", f"{pod.name}: {text}")
        won = result.realised or 0
        self._metrics.realised.labels(found.label).inc(max(0, won))
        tally = self._tallies.get(found.key, report.Tally())
        self._tallies[found.key] = replace(
            tally,
            succeeded=tally.succeeded + good,
            failed=tally.failed + (not good),
            unpaid=tally.unpaid + unpaid,
            realised=tally.realised + won,
            last_refork_at=max(tally.last_refork_at or 0.0, intent.at),
        )

    def _current(self, pod: Pod) -> Pod | None:
        """Return the pod as it is now; None when it is gone or another one has its name."""
        found = self._store.pods.get(pod.key)
        return found if found is not None and found.uid == pod.uid and not found.terminating else None

    # --- writing to the cluster ---------------------------------------------------------------------------------------

    async def _annotate_or_fail(self, pod: Pod, changes: Mapping[str, str | None]) -> None:
        """Annotate a pod; the uid makes it fail for another pod of the same name."""
        body = {"metadata": {"uid": pod.uid, "annotations": dict(changes)}}
        await self._cluster.merge(paths.pod(pod.namespace, pod.name), body)

    async def _annotate(self, pod: Pod, changes: Mapping[str, str | None]) -> None:
        """Annotate a pod for sure, or until it is gone."""
        if not self._settings.dry_run:
            await self._insist(lambda: self._annotate_or_fail(pod, changes), what=f"pod {_name(pod)}")

    async def _annotate_owner(self, owner: Owner, changes: Mapping[str, str | None]) -> None:
        """Annotate a workload for sure, or until it is gone."""
        if self._settings.dry_run:
            return
        workload = owner.workload
        path = paths.workload(workload.kind, workload.namespace, workload.name)
        body = {"metadata": {"uid": owner.uid, "annotations": dict(changes)}}
        await self._insist(lambda: self._cluster.merge(path, body), what=f"{workload.namespace}/{workload}")

    async def _insist(self, write: Callable[[], Coroutine[Any, Any, object]], *, what: str) -> None:
        for attempt in range(_WRITE_ATTEMPTS):
            try:
                await write()
            except ClusterError as error:
                if error.status in _GONE:
                    return
                self._log.warning("not written", what=what, error=error)
                await asyncio.sleep(min(2.0**attempt, 30.0))
            else:
                return

    async def _report_for_ever(self) -> None:
        """Write the policies' status: soon when something happened, now and then when only figures moved."""
        written_at: dict[Key, float] = {}
        while True:
            await asyncio.sleep(1.0)
            now = time.monotonic()
            urgent, self._urgent = self._urgent, set()
            for key in list(self._store.policies):
                due = written_at.setdefault(key, now) + self._settings.status_interval
                if key in urgent or now >= due:
                    written_at[key] = now
                    await self._report(key)
            for key in set(written_at) - set(self._store.policies):
                del written_at[key]

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
            await self._cluster.merge(paths.policy_status(*key), {"status": document})
            self._written[key] = document
        except ClusterError as error:
            if error.status in _GONE:
                self.drop_policy(key)
            else:
                self._urgent.add(key)
                self._log.warning("status not written", policy=found.label, error=error)

    def _show(self, found: ReforkPolicy, members: Sequence[Watched]) -> None:
        """Set the gauges of a policy."""
        seen = [watched.observation for watched in members if watched.observation is not None]
        self._metrics.watched.labels(found.label).set(len(members))
        self._metrics.degraded.labels(found.label).set(sum(bool(watched.troubled) for watched in members))
        self._metrics.reforking.labels(found.label).set(sum(watched.reforking for watched in members))
        self._metrics.pss.labels(found.label).set(sum(item.sample.pss for item in seen))
        self._metrics.saved.labels(found.label).set(sum(item.saved for item in seen))
        self._metrics.gain.labels(found.label).set(sum(item.sample.gain for item in seen))

    async def _write_broken(self, key: Key, message: str, *, status: Mapping[str, Any], generation: int) -> None:
        document = report.write_broken(message, generation=generation, before=status, now=time.time())
        with suppress(ClusterError):
            await self._cluster.merge(paths.policy_status(*key), {"status": document})

    # --- small verbs --------------------------------------------------------------------------------------------------

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Do something beside everything else; what goes wrong in it is logged."""
        task = asyncio.create_task(work)
        self._work.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._work.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log.error("unexpected", error=repr(error))


def _name(pod: Pod) -> str:
    return f"{pod.namespace}/{pod.name}"


def _control_without_policy(pod: Pod) -> Control:
    """Read how to reach a pod from its own annotations."""
    secret, _, key = pod.annotations.get(TOKEN_SECRET, "").partition("/")
    return policy.Control(
        port=pod.annotations.get(CONTROL_PORT, DEFAULT_PORT),
        scheme=pod.annotations.get(CONTROL_SCHEME, "http").lower(),
        token=policy.SecretRef(secret, key or "token") if secret else None,
    )


def _outcome_text(intent: states.Intent, result: Result) -> str:
    """Say how a refork ended; the first word is for machines."""
    text = f"{result.outcome}: {result.message}"
    if result.outcome is not Outcome.SUCCEEDED or result.realised is None:
        return text
    return f"{text}, won {show_bytes(result.realised)} of {show_bytes(intent.promised)} predicted"


def _timeless(reason: str) -> str:
    """Leave out of an event what differs each time: equal events are counted, not added."""
    return reason.partition(" for ")[0]


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
