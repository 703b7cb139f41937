"""Which pods are reforked now: the budget of a policy, spread over its workloads and nodes. Pure, like ``decide``.

What one pod wants (a trigger has fired, somebody has asked) is known before; here all pods of a policy are looked at
together, and every one gets either a start or the reason why not. The rules, in the order in which they bind:

* Nobody is disturbed who cannot take it: not ready, terminating, just born, paused, already reforking.
* A budget, like that of a PodDisruptionBudget: pods that are not ready take a place in it, whoever made them so.
* Of several replicas, one is always left untouched, whatever the budget says.
* Requests by annotation go before triggers, and do not wait for cool-downs or schedules: somebody asked for it *now*.
  Requests made to a workload are carried out one pod after the other.
* Among equals, the workload and the node with the fewest reforks under way come first, then the largest gain.
"""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from refork_operator.names import Hold

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from refork.decide import Decision
    from refork_operator.pods import Key, Workload
    from refork_operator.policy import Budget


@dataclass(frozen=True, slots=True)
class Candidate:
    """What the plan must know of one pod; ``age`` in seconds.

    Attributes:
        decision: what its memory says; None if it was not sampled yet.
        trouble: why it does not answer; empty if it does.
        busy: why its server would refuse now; empty if it would not.
        request: the value of its own annotation, when that was not answered yet.
        workload_request: that of its workload's, likewise.
    """

    key: Key
    workload: Workload
    node: str = ""
    age: float = 0.0
    ready: bool = True
    terminating: bool = False
    paused: bool = False
    reforking: bool = False
    decision: Decision | None = None
    trouble: str = ""
    busy: str = ""
    request: str | None = None
    workload_request: str | None = None

    @property
    def asked_for(self) -> bool:
        """Whether somebody asked for it by annotation."""
        return self.request is not None or self.workload_request is not None

    @property
    def steady(self) -> bool:
        """Whether it serves, undisturbed."""
        return self.ready and not self.terminating and not self.reforking


@dataclass(frozen=True, slots=True)
class Rules:
    """What a policy allows at this moment.

    Attributes:
        quiet_until: when the policy's own cool-down ends; None without one.
        one_start: the policy has a cool-down of its own, so that two reforks never start together.
    """

    budget: Budget
    enforce: bool = True
    paused: bool = False
    open: bool = True
    min_age: float = 0.0
    quiet_until: float | None = None
    one_start: bool = False


@dataclass(frozen=True, slots=True)
class Crew:
    """All pods of one workload, matched by the policy or not: how many, and how many of them serve undisturbed."""

    total: int
    steady: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was decided for one pod, and why."""

    start: bool
    reason: str
    message: str


def plan(
    candidates: Sequence[Candidate], *, rules: Rules, crews: Mapping[Workload, Crew], now: float
) -> dict[Key, Verdict]:
    """Decide for every pod of a policy."""
    verdicts: dict[Key, Verdict] = {}
    eligible: list[Candidate] = []
    for candidate in candidates:
        hold = _hold(candidate, rules=rules, now=now)
        if hold is None:
            eligible.append(candidate)
        else:
            verdicts[candidate.key] = hold
    if eligible:
        verdicts.update(_Round(candidates, rules=rules, crews=crews).distribute(eligible))
    return verdicts


def places(budget: Budget, *, matched: int) -> int:
    """Tell how many pods may be disturbed at once: what the budget says, but never all of several."""
    return min(budget.places(matched), max(1, matched - 1))


def crews(candidates: Iterable[Candidate]) -> dict[Workload, Crew]:
    """Count the pods of each workload."""
    total: Counter[Workload] = Counter()
    steady: Counter[Workload] = Counter()
    for candidate in candidates:
        if not candidate.terminating:
            total[candidate.workload] += 1
            steady[candidate.workload] += candidate.steady
    return {workload: Crew(count, steady[workload]) for workload, count in total.items()}


def _hold(candidate: Candidate, *, rules: Rules, now: float) -> Verdict | None:
    """Say what stands in the way of one pod by itself; None when nothing does and it wants a refork."""
    decision = candidate.decision
    if candidate.reforking:
        return _no(Hold.REFORKING, "a refork is under way")
    if candidate.terminating:
        return _no(Hold.TERMINATING, "the pod is terminating")
    if candidate.paused:
        return _no(Hold.PAUSED, "refork.dev/paused keeps the pod out")
    if candidate.trouble:
        return _no(Hold.UNREACHABLE, f"the pod does not answer: {candidate.trouble}")
    if decision is None:
        return _no(Hold.NOT_SAMPLED, "the pod was not asked yet")
    if not candidate.asked_for:
        if not decision.refork:
            return _no(decision.reason, decision.message)
        automatic = _hold_automatic(candidate, decision, rules=rules, now=now)
        if automatic is not None:
            return automatic
    if not candidate.ready:
        return _no(Hold.NOT_READY, "the pod is not ready")
    return _no(Hold.BUSY, candidate.busy) if candidate.busy else None


def _hold_automatic(candidate: Candidate, decision: Decision, *, rules: Rules, now: float) -> Verdict | None:
    """Say what stands in the way of a refork that nobody asked for in person."""
    if rules.paused:
        return _no(Hold.PAUSED, "the policy is paused")
    if not rules.enforce:
        return _no(Hold.OBSERVING, f"recommended: {decision.message}")
    if not rules.open:
        return _no(Hold.OUTSIDE_SCHEDULE, f"outside the schedule: {decision.message}")
    if candidate.age < rules.min_age:
        return _no(Hold.TOO_YOUNG, f"the pod is {candidate.age:.0f} s old, not yet {rules.min_age:.0f}")
    if rules.quiet_until is not None and now < rules.quiet_until:
        return _no(Hold.POLICY_COOLING_DOWN, f"the policy is cooling down for another {rules.quiet_until - now:.0f} s")
    return None


class _Round:
    """One distribution of the places that are left."""

    def __init__(self, candidates: Sequence[Candidate], *, rules: Rules, crews: Mapping[Workload, Crew]) -> None:
        present = [candidate for candidate in candidates if not candidate.terminating]
        self._rules = rules
        self._crews = crews
        self._places = places(rules.budget, matched=len(present))
        self._reforking = sum(candidate.reforking for candidate in present)
        self._unready = sum(not candidate.ready and not candidate.reforking for candidate in present)
        self._per_workload = Counter(candidate.workload for candidate in present if candidate.reforking)
        self._per_node = Counter(candidate.node for candidate in present if candidate.reforking)
        self._started: Counter[Workload] = Counter()
        self._automatic = 0

    def distribute(self, eligible: list[Candidate]) -> dict[Key, Verdict]:
        """Give each pod that wants one a place, or the reason why there is none."""
        verdicts = {}
        waiting = [(self._rank(candidate), _urgency(candidate), candidate) for candidate in eligible]
        heapq.heapify(waiting)
        while waiting:
            rank, urgency, candidate = heapq.heappop(waiting)
            # Ranks only grow while places are given away: one that is out of date is put back, and meets its equals.
            if self._left() > 0 and rank != (present := self._rank(candidate)):
                heapq.heappush(waiting, (present, urgency, candidate))
                continue
            verdicts[candidate.key] = self._refusal(candidate) or self._start(candidate)
        return verdicts

    def _left(self) -> int:
        return self._places - self._reforking - self._unready

    def _rank(self, candidate: Candidate) -> tuple[int, int, int]:
        return _urgency(candidate)[0], self._per_workload[candidate.workload], self._per_node[candidate.node]

    def _refusal(self, candidate: Candidate) -> Verdict | None:
        if self._left() <= 0:
            taken = f"{self._reforking} reforking, {self._unready} not ready"
            return _no(Hold.BUDGET, f"no place left of {self._places} ({taken})")
        crew = self._crews.get(candidate.workload, Crew(1, 1))
        if crew.total > 1 and crew.steady - self._started[candidate.workload] < 2:  # noqa: PLR2004 - it and another
            return _no(Hold.LAST_REPLICA, f"no other replica of {candidate.workload} serves undisturbed")
        only_workload = candidate.request is None and candidate.workload_request is not None
        if only_workload and self._per_workload[candidate.workload]:
            return _no(Hold.TURN, f"another pod of {candidate.workload} is reforking")
        if not candidate.asked_for and self._rules.one_start and self._automatic:
            return _no(Hold.POLICY_COOLING_DOWN, "another pod of the policy has just started")
        return None

    def _start(self, candidate: Candidate) -> Verdict:
        self._reforking += 1
        self._per_workload[candidate.workload] += 1
        self._per_node[candidate.node] += 1
        self._started[candidate.workload] += 1
        self._automatic += not candidate.asked_for
        if candidate.asked_for:
            whose = "the pod" if candidate.request is not None else str(candidate.workload)
            return Verdict(start=True, reason="Requested", message=f"refork.dev/requestedAt on {whose}")
        assert candidate.decision is not None
        return Verdict(start=True, reason=candidate.decision.reason, message=candidate.decision.message)


def _urgency(candidate: Candidate) -> tuple[int, int, Key]:
    rank = 0 if candidate.request is not None else 1 if candidate.workload_request is not None else 2
    return rank, -(candidate.decision.gain if candidate.decision is not None else 0), candidate.key


def _no(reason: str, message: str) -> Verdict:
    return Verdict(start=False, reason=str(reason), message=message)
