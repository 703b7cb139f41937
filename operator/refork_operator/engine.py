"""The operator at work: what the cluster shows goes in, questions and commands to pods and words to people come out.

It decides nothing itself. ``refork.decide`` says when a refork of one pod pays, ``plan`` says which pods of a policy
may go now; this is the shell that keeps the facts together for them and does what they say. Everything runs in one
event loop, so that no fact changes while it is looked at; what takes time is a task of its own.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from refork import decide
from refork_operator import backoff, paths, plan, pods, policy, requests, workloads
from refork_operator import state as states
from refork_operator.cluster import ClusterError
from refork_operator.conductor import Conductor, Surroundings
from refork_operator.events import about_pod
from refork_operator.inbox import Inbox
from refork_operator.names import (
    CONTROL_PORT,
    CONTROL_SCHEME,
    DEFAULT_PORT,
    STATE,
    TOKEN_SECRET,
    Hold,
    Trouble,
)
from refork_operator.podclient import Endpoint, PodError
from refork_operator.pods import Workload
from refork_operator.poller import Poller
from refork_operator.publisher import Publisher
from refork_operator.reforks import Reforks
from refork_operator.store import Store
from refork_operator.tasks import Tasks
from refork_operator.watched import Watched
from refork_operator.writer import Writer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from refork_operator.cluster import Cluster
    from refork_operator.events import Events
    from refork_operator.logs import Log
    from refork_operator.metrics import Metrics
    from refork_operator.podclient import PodClient
    from refork_operator.pods import Key, Pod
    from refork_operator.policy import Control, ReforkPolicy
    from refork_operator.settings import Settings
    from refork_operator.tokens import Tokens

_DEBOUNCE_SECONDS = 0.1
_ASKED_POLL_SECONDS = 1.0
_UNASKED_INTERVAL = 15.0
_PATIENCE_SECONDS = 300.0
_FAILURES_UNTIL_ANSWER = 3


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
        self._client = client
        self._store = Store()
        self._watched: dict[Key, Watched] = {}
        self._dirty: set[Key | Workload] = set()
        self._wake = asyncio.Event()
        self._tasks = Tasks(log)
        self._poller: Poller[Key] = Poller(self._ask, concurrency=settings.poll_concurrency, metrics=metrics)
        writer = Writer(cluster, log=log, dry_run=settings.dry_run)
        self._publisher = Publisher(
            store=self._store,
            watched=self._watched,
            cluster=cluster,
            metrics=metrics,
            settings=settings,
            log=log,
            gone=self.drop_policy,
        )
        self._inbox = Inbox(
            store=self._store,
            watched=self._watched,
            writer=writer,
            events=events,
            log=log,
            tasks=self._tasks,
            consider=self._consider,
        )
        self._conductor = Conductor(
            Surroundings(
                store=self._store,
                inbox=self._inbox,
                publisher=self._publisher,
                writer=writer,
                events=events,
                metrics=metrics,
                log=log,
                tasks=self._tasks,
                reforks=Reforks(
                    client, endpoint=self._endpoint, patience=settings.operation_timeout, settle=settings.settle
                ),
                may_act=may_act,
                ended=self._ended,
                dry_run=settings.dry_run,
            )
        )

    async def run(self) -> None:
        """Work for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._poller.run())
            group.create_task(self._plan_for_ever())
            group.create_task(self._publisher.run())
            group.create_task(self._events.run())

    # --- what the cluster shows ---------------------------------------------------------------------------------------

    def put_pod(self, raw: Mapping[str, Any]) -> None:
        """Take note of a pod as it is now."""
        pod = pods.parse(raw)
        matched = self._store.pods.get(pod.key)
        if matched is not None and matched.uid != pod.uid:
            self.drop_pod(matched.key, matched.uid)
        self._store.put_pod(pod)
        found = self._store.policy_of(pod.key)
        if found is not None and found.control.port != DEFAULT_PORT:
            pod = pods.parse(raw, port=found.control.port)
            self._store.put_pod(pod)
        self._consider(pod)

    def drop_pod(self, key: Key, uid: str) -> None:
        """Take note that a pod is gone."""
        pod = self._store.pods.get(key)
        if pod is None or pod.uid != uid:
            return
        found = self._store.policy_of(key)
        self._store.drop_pod(key)
        self._unwatch(key)
        self._touch(found.key if found is not None else pod.workload)

    def known_pods(self) -> dict[Key, str]:
        """Tell which pods are believed to be there, by uid."""
        return {key: pod.uid for key, pod in self._store.pods.items()}

    def put_policy(self, raw: Mapping[str, Any]) -> None:
        """Take note of a policy as it is now."""
        meta = raw["metadata"]
        key = (meta["namespace"], meta["name"])
        status = raw.get("status") or {}
        known = self._store.policies.get(key)
        if known is not None and known.uid != meta["uid"]:
            self._publisher.forget(key)
        self._publisher.remember(key, status)
        try:
            found = policy.parse(raw)
        except policy.PolicyError as error:
            self._refuse_policy(raw, error)
            return
        if known == found:
            return
        self._store.put_policy(found)
        self._log.info("policy", policy=found.label, generation=found.generation, enforce=found.enforce)
        self._consider_all(found.namespace)

    def _refuse_policy(self, raw: Mapping[str, Any], error: policy.PolicyError) -> None:
        """Have a policy that cannot be read do nothing, and tell it so once."""
        meta, status = raw["metadata"], raw.get("status") or {}
        key, generation = (meta["namespace"], meta["name"]), meta.get("generation", 1)
        self._store.drop_policy(key)
        self._consider_all(key[0])
        if status.get("observedGeneration") != generation:
            self._log.error("policy not understood", policy=f"{key[0]}/{key[1]}", error=error)
            broken = self._publisher.write_broken(key, str(error), status=status, generation=generation)
            self._tasks.spawn(broken)

    def drop_policy(self, key: Key, uid: str) -> None:
        """Take note that a policy is gone."""
        found = self._store.policies.get(key)
        if found is not None and found.uid != uid:
            return
        self._store.drop_policy(key)
        self._publisher.forget(key)
        self._dirty.discard(key)
        if found is not None:
            self._log.info("policy gone", policy=found.label)
        self._consider_all(key[0])

    def known_policies(self) -> dict[Key, str]:
        """Tell which policies are believed to be there, by uid."""
        return {key: found.uid for key, found in self._store.policies.items()}

    def put_owner(self, raw: Mapping[str, Any], *, kind: str) -> None:
        """Take note of a workload as it is now."""
        owner = workloads.parse(raw, kind=kind)
        known = self._store.owners.get(owner.workload)
        self._store.owners[owner.workload] = owner
        if owner == known:
            return
        self._inbox.read(owner)
        if known is None or known.annotations != owner.annotations or known.template_request != owner.template_request:
            for pod in list(self._store.crew(owner.workload)):
                self._consider(pod)

    def drop_owner(self, key: Key, uid: str, *, kind: str) -> None:
        """Take note that a workload is gone."""
        owner = self._store.owners.get(Workload(kind, *key))
        if owner is not None and owner.uid == uid:
            del self._store.owners[owner.workload]
            self._inbox.forget(owner.workload)

    def known_owners(self, *, kind: str) -> dict[Key, str]:
        """Tell which workloads of a kind are believed to be there, by uid."""
        owners = self._store.owners.values()
        return {(at.namespace, at.name): found.uid for found in owners if (at := found.workload).kind == kind}

    def complete(self) -> None:
        """Take note that the whole cluster was seen once."""
        self._inbox.complete()

    # --- which pods to watch ------------------------------------------------------------------------------------------

    def _consider_all(self, namespace: str) -> None:
        """Look anew at a namespace whose policies have changed: pods may belong to another one now."""
        for pod in list(self._store.pods.values()):
            if pod.namespace == namespace:
                self._consider(pod)
        for key in self._store.policies:
            if key[0] == namespace:
                self._touch(key)

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
        if self._inbox.asked(pod) is not None:
            self._hear_request(watched)
        else:
            watched.asked_since = None
        if changed:
            self._touch(found.key if found is not None else pod.workload)

    def _worth_watching(self, pod: Pod, found: ReforkPolicy | None) -> bool:
        if found is not None or self._inbox.asked(pod) is not None:
            return True
        return states.read_pod(pod.annotations).intent is not None

    def _unwatch(self, key: Key) -> None:
        watched = self._watched.pop(key, None)
        self._poller.remove(key)
        if watched is not None and watched.work is not None:
            watched.work.cancel()

    def _ended(self, pod: Pod) -> None:
        """Go on with a pod whose refork has ended."""
        found, watched = self._store.policy_of(pod.key), self._watched.get(pod.key)
        self._touch(found.key if found is not None else pod.workload)
        if watched is None:
            return
        self._poller.schedule(pod.key, time.time() + _ASKED_POLL_SECONDS)
        if self._inbox.asked(self._store.pods.get(pod.key, pod)) is not None:
            self._hear_request(watched)

    def _hear_request(self, watched: Watched) -> None:
        """Ask a pod at once that somebody wants reforked."""
        if watched.asked_since is None:
            watched.asked_since = time.time()
            if not watched.reforking:
                self._poller.schedule(watched.pod.key, time.time())
        self._mark(watched.pod)

    # --- asking pods --------------------------------------------------------------------------------------------------

    async def _ask(self, key: Key) -> float | None:
        """Ask one pod how it is, and say when to ask again."""
        watched = self._watched.get(key)
        if watched is None:
            return None
        try:
            return await self._ask_watched(watched)
        except Exception as error:  # noqa: BLE001 - whatever one pod does, it is asked again, and so are the others
            self._log.error("unexpected", pod=watched.pod.label, error=repr(error))
            return time.time() + backoff.LONGEST_SECONDS

    async def _ask_watched(self, watched: Watched) -> float:
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
            self._conductor.resume(watched)
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
            self._log.warning("pod does not answer", pod=watched.pod.label, error=error)
            # The pod's own words stay out of events: by changing them it could make as many as it likes.
            self._events.warning(about_pod(watched.pod), str(error.trouble), "the pod does not answer as it should")
            self._tasks.spawn(self._look_whether_gone(watched.pod))

    async def _look_whether_gone(self, pod: Pod) -> None:
        """Ask the API server for a pod that does not answer: a watch that was interrupted may have missed its end."""
        try:
            found = await self._cluster.get(paths.pod(pod.namespace, pod.name))
        except ClusterError as error:
            if error.gone:
                self.drop_pod(pod.key, pod.uid)
            else:
                self._log.warning("pod not looked up", pod=pod.label, error=error)
        else:
            if found["metadata"]["uid"] != pod.uid:
                self.drop_pod(pod.key, pod.uid)

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
            self._tasks.spawn(self._inbox.refuse(watched, watched.trouble))
        elif waited > _PATIENCE_SECONDS and watched.verdict is not None and watched.verdict.reason == Hold.BUSY:
            watched.asked_since = None
            self._tasks.spawn(self._inbox.refuse(watched, watched.verdict.message))

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
            self._publisher.mark(found.key)

    def _touch(self, group: Key | Workload) -> None:
        """Plan anew, and say so soon."""
        self._dirty.add(group)
        if isinstance(group, tuple):
            self._publisher.mark(group)
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
                try:
                    self._plan(group)
                except Exception as error:  # noqa: BLE001 - one policy must not cost the others theirs
                    self._log.error("not planned", group=group, error=repr(error))
            self._inbox.settle()

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
                self._conductor.begin(watched, verdict, found)
            elif watched.asked_since is not None and verdict.reason == Hold.PAUSED:
                watched.asked_since = None
                if self._inbox.of_pod(watched.pod) is not None:
                    self._tasks.spawn(self._inbox.refuse(watched, verdict.message))

    def _rules(self, found: ReforkPolicy) -> plan.Rules:
        last = self._publisher.last_refork_at(found.key)
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
            reforking=watched.engaged if watched is not None else False,
            decision=watched.decision if watched is not None else None,
            trouble=watched.troubled if watched is not None else "",
            busy=self._busy(watched, held=held) if watched is not None else "",
            request=self._inbox.of_pod(pod),
            workload_request=self._inbox.of_workload(pod),
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
        self._log.debug("decision", pod=watched.pod.label, reason=verdict.reason, why=verdict.message)
        if verdict.reason == Hold.OBSERVING:
            self._events.normal(about_pod(watched.pod), "ReforkRecommended", "a refork would pay; the policy observes")
        elif verdict.reason == decide.Reason.DOES_NOT_PAY:
            self._events.warning(about_pod(watched.pod), "ReforkDoesNotPay", verdict.message)


def _control_without_policy(pod: Pod) -> Control:
    """Read how to reach a pod from its own annotations."""
    secret, _, key = pod.annotations.get(TOKEN_SECRET, "").partition("/")
    return policy.Control(
        port=pod.annotations.get(CONTROL_PORT, DEFAULT_PORT),
        scheme=pod.annotations.get(CONTROL_SCHEME, "http").lower(),
        token=policy.SecretRef(secret, key or "token") if secret else None,
    )
