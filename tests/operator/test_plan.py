"""The plan, whose turn it is: rules one by one, properties over random fleets, and a day of a thousand pods."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refork import decide
from refork_operator import plan
from refork_operator.names import Hold
from refork_operator.plan import Candidate, Rules
from refork_operator.pods import Workload
from refork_operator.policy import Budget

MIB = 1 << 20
WANTS = decide.Decision(refork=True, reason=decide.Reason.THRESHOLD_PASSED, message="above", gain=100 * MIB)
CONTENT = decide.Decision(refork=False, reason=decide.Reason.BELOW_THRESHOLD, message="below", gain=0)
ALL = Rules(budget=Budget(share=1.0))


def pod(number: int, *, app: str = "web", decision: decide.Decision | None = WANTS, **facts: object) -> Candidate:
    """A pod that wants a refork."""
    workload = Workload("Deployment", "shop", app)
    whole = {"node": f"node-{number % 3}", "age": 1e6, "decision": decision} | facts
    return Candidate(key=("shop", f"{app}-{number}"), workload=workload, **whole)  # type: ignore[arg-type]


def started(candidates: list[Candidate], rules: Rules = ALL, *, now: float = 1000.0) -> list[str]:
    """The names of the pods that may go."""
    verdicts = plan.plan(candidates, rules=rules, crews=plan.crews(candidates), now=now)
    return sorted(key[1] for key, verdict in verdicts.items() if verdict.start)


def reason(candidate: Candidate, *others: Candidate, rules: Rules = ALL, now: float = 1000.0) -> str:
    """Why a pod may not go."""
    fleet = [candidate, *others]
    return plan.plan(fleet, rules=rules, crews=plan.crews(fleet), now=now)[candidate.key].reason


@pytest.mark.parametrize(
    ("facts", "hold"),
    [
        ({"ready": False}, Hold.NOT_READY),
        ({"terminating": True}, Hold.TERMINATING),
        ({"paused": True}, Hold.PAUSED),
        ({"reforking": True}, Hold.REFORKING),
        ({"age": 5.0}, Hold.TOO_YOUNG),
        ({"decision": None}, Hold.NOT_SAMPLED),
        ({"trouble": "TimedOut: slow"}, Hold.UNREACHABLE),
        ({"busy": "a rollout is under way"}, Hold.BUSY),
        ({"decision": CONTENT}, decide.Reason.BELOW_THRESHOLD),
    ],
)
def test_who_cannot_take_it_is_left_alone(facts: dict[str, object], hold: str) -> None:
    """Each has its own reason."""
    rules = replace(ALL, min_age=60.0)
    assert reason(pod(0, **facts), pod(1, decision=CONTENT), pod(2, decision=CONTENT), rules=rules) == hold


@pytest.mark.parametrize(
    ("rules", "hold"),
    [
        (replace(ALL, enforce=False), Hold.OBSERVING),
        (replace(ALL, paused=True), Hold.PAUSED),
        (replace(ALL, open=False), Hold.OUTSIDE_SCHEDULE),
        (replace(ALL, quiet_until=1001.0), Hold.POLICY_COOLING_DOWN),
    ],
)
def test_what_binds_triggers_does_not_bind_people(rules: Rules, hold: str) -> None:
    """A request by annotation goes although a trigger would not."""
    others = [pod(1, decision=CONTENT), pod(2, decision=CONTENT)]
    assert reason(pod(0), *others, rules=rules) == hold
    assert started([pod(0, request="now"), *others], rules) == ["web-0"]


def test_one_of_several_replicas_is_never_touched() -> None:
    """Whatever the budget allows."""
    fleet = [pod(number) for number in range(3)]
    assert len(started(fleet)) == 2
    assert reason(pod(0), pod(1, ready=False), rules=ALL) in (Hold.LAST_REPLICA, Hold.BUDGET)


def test_a_single_replica_may_go() -> None:
    """It has nobody to wait for, and a refork never takes capacity."""
    assert started([pod(0)]) == ["web-0"]


def test_pods_without_a_workload_are_not_all_taken_at_once() -> None:
    """They may be the replicas of something we cannot see."""
    fleet = [replace(pod(n), workload=Workload("Pod", "shop", f"bare-{n}")) for n in range(4)]
    assert len(started(fleet)) == 3


def test_places_are_spread_over_workloads_and_nodes() -> None:
    """Two places for two workloads are one each, though the largest gains are in one."""
    greedy = replace(WANTS, gain=900 * MIB)
    fleet = [pod(n, app="big", decision=greedy) for n in range(4)] + [pod(n, app="small") for n in range(4)]
    assert {name[:3] for name in started(fleet, Rules(budget=Budget(number=2)))} == {"big", "sma"}


def test_requests_go_before_triggers() -> None:
    """Somebody waits for them."""
    fleet = [pod(0, decision=replace(WANTS, gain=10**12)), pod(1, decision=CONTENT, request="now"), pod(2)]
    assert started(fleet, Rules(budget=Budget(number=1))) == ["web-1"]


def test_a_request_to_a_workload_is_carried_out_one_by_one() -> None:
    """Even where the budget has room."""
    fleet = [pod(n, decision=CONTENT, workload_request="now") for n in range(5)]
    assert len(started(fleet)) == 1
    fleet[0] = replace(fleet[0], reforking=True)
    assert not started(fleet)
    assert reason(fleet[1], *fleet[:1], *fleet[2:]) == Hold.TURN


def test_a_policy_with_a_cool_down_starts_one_at_a_time() -> None:
    """Two together would be none apart."""
    rules = replace(ALL, one_start=True)
    assert len(started([pod(n) for n in range(5)], rules)) == 1


candidates = st.builds(
    lambda number, app, **facts: pod(number, app=app, **facts),
    number=st.integers(0, 10**6),
    app=st.sampled_from(["a", "b", "c"]),
    ready=st.booleans(),
    terminating=st.sampled_from([False, False, False, True]),
    paused=st.sampled_from([False, False, True]),
    reforking=st.sampled_from([False, False, True]),
    decision=st.sampled_from([WANTS, WANTS, CONTENT, None]),
    request=st.sampled_from([None, None, "now"]),
    workload_request=st.sampled_from([None, None, "now"]),
    trouble=st.sampled_from(["", "", "TimedOut"]),
)
budgets = st.one_of(
    st.builds(lambda n: Budget(number=n), st.integers(1, 20)),
    st.builds(lambda s: Budget(share=s), st.floats(0.01, 1.0)),
)


@settings(max_examples=300, deadline=None)
@given(
    fleet=st.lists(candidates, max_size=30, unique_by=lambda c: c.key),
    budget=budgets,
    enforce=st.booleans(),
    paused=st.booleans(),
)
def test_no_fleet_makes_the_plan_break_its_rules(
    *, fleet: list[Candidate], budget: Budget, enforce: bool, paused: bool
) -> None:
    """The budget holds, one of several replicas stays, nobody goes who cannot, and everybody gets a reason."""
    rules = Rules(budget=budget, enforce=enforce, paused=paused)
    verdicts = plan.plan(fleet, rules=rules, crews=plan.crews(fleet), now=0.0)
    assert set(verdicts) == {candidate.key for candidate in fleet}
    assert all(verdict.reason for verdict in verdicts.values())
    going = [candidate for candidate in fleet if verdicts[candidate.key].start]
    present = [candidate for candidate in fleet if not candidate.terminating]
    disturbed = sum(c.reforking or not c.ready for c in present)
    if going:
        assert disturbed + len(going) <= plan.places(budget, matched=len(present))
        assert plan.places(budget, matched=len(present)) <= max(1, len(present) - 1)
    for candidate in going:
        assert candidate.steady
        assert not candidate.paused
        assert not candidate.trouble
        assert candidate.asked_for or (enforce and not paused)
    for workload in {candidate.workload for candidate in going}:
        crew = [c for c in present if c.workload == workload]
        left = [c for c in crew if c.steady and c not in going]
        assert left or len(crew) == 1


# --- a day ------------------------------------------------------------------------------------------------------------


@dataclass
class Server:
    """A simulated pod: workers that erode, a shared base, a refork that takes three minutes."""

    name: str
    app: str
    node: str
    erosion: float
    pays: bool = True
    base: int = 300 * MIB
    gained: list[float] = field(default_factory=lambda: [0.0] * 4)
    history: decide.History = field(default_factory=decide.History)
    until: float = 0.0
    before: int = 0
    reforks: list[float] = field(default_factory=list)

    def live(self, seconds: float) -> None:
        most = 150 * MIB
        self.gained = [size + (most - size) * min(self.erosion * seconds / 3600, 1) for size in self.gained]

    @property
    def pss(self) -> int:
        return round(self.base + sum(self.gained))

    def finish(self) -> int:
        """End a refork, and tell what it won."""
        if self.pays:
            self.base += round(max(self.gained)) if self.base < 500 * MIB else 0
            self.gained = [0.0] * len(self.gained)
        return self.before - self.pss


def test_a_thousand_pods_live_for_a_day_within_their_budget() -> None:
    """Never more than the budget, never all of a workload, no pod twice within its cool-down, none that does not pay
    more than three times; and the fleet ends near its memory floor."""
    pays = decide.Policy(
        thresholds=(decide.Threshold(decide.Metric.GAIN, size=120 * MIB, sustained=600.0),),
        cooldown=3600.0,
        min_gain=64 * MIB,
        longest_gap=4000.0,
    )
    chance = random.Random(1)
    fleet = [
        Server(f"p{n}", f"app-{n // 10}", f"node-{n % 40}", chance.uniform(0.02, 0.6), pays=n % 25 != 0)
        for n in range(1000)
    ]
    unreforked = [replace(server, gained=list(server.gained)) for server in fleet]
    rules = Rules(budget=Budget(share=0.05))
    step, now, most = 300.0, 0.0, 0
    workloads = {server.name: Workload("Deployment", "shop", server.app) for server in fleet}
    while now < 24 * 3600:
        now += step
        candidates = []
        for server, twin in zip(fleet, unreforked, strict=True):
            server.live(step)
            twin.live(step)
            if server.until and now >= server.until:
                server.until = 0.0
                server.history = decide.judged(server.history, realised=server.finish(), policy=pays)
            gain = decide.predicted_gain([round(size) for size in server.gained])
            decision, server.history = decide.decide(
                server.history, decide.Sample(at=now, gain=gain, pss=server.pss), policy=pays
            )
            candidates.append(
                Candidate(
                    key=("shop", server.name),
                    workload=workloads[server.name],
                    node=server.node,
                    age=1e6,
                    reforking=bool(server.until),
                    decision=decision,
                )
            )
        verdicts = plan.plan(candidates, rules=rules, crews=plan.crews(candidates), now=now)
        for server in fleet:
            if verdicts["shop", server.name].start:
                server.until, server.before = now + 180.0, server.pss
                server.history = decide.begun(server.history, at=now, promised=server.history.promised or 120 * MIB)
                server.reforks.append(now)
        busy = [server for server in fleet if server.until]
        most = max(most, len(busy))
        assert len(busy) <= 50
        assert max(Counter(server.app for server in busy).values(), default=0) < 10
    assert most > 10
    for server in fleet:
        assert all(later - earlier >= pays.cooldown for earlier, later in pairwise(server.reforks))
        assert server.pays or len(server.reforks) <= 3
    paying = [server for server in fleet if server.pays]
    with_reforks = sum(server.pss for server in paying)
    without = sum(twin.pss for server, twin in zip(fleet, unreforked, strict=True) if server.pays)
    assert with_reforks < 0.85 * without
