"""When a refork pays: the rules one by one, and days of synthetic memory in which no rule may be broken."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refork import decide as core
from refork.decide import History, Metric, Policy, Reason, Sample, Scope, Threshold, Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MIB = 1 << 20
DAY = 24 * 3600.0
GAIN = Threshold(Metric.GAIN, size=100 * MIB, sustained=60.0)
POLICY = Policy(thresholds=(GAIN,), cooldown=600.0, min_gain=50 * MIB)


def sample(at: float, gain: int, **more: object) -> Sample:
    """A sample in which only the gain matters."""
    return Sample(at=at, gain=gain, **more)  # type: ignore[arg-type]


def reasons(samples: list[Sample], *, policy: Policy = POLICY, history: History | None = None) -> list[Reason]:
    """The reason given at each of the samples, none of which is acted on."""
    history = history or History()
    given_reasons = []
    for seen in samples:
        decision, history = core.decide(history, seen, policy=policy)
        given_reasons.append(decision.reason)
    return given_reasons


@given(st.lists(st.integers(min_value=-(1 << 40), max_value=1 << 40), max_size=70))
def test_the_predicted_gain_is_all_private_memory_but_the_largest(gained: list[int]) -> None:
    """One copy of what the workers gained is left after a refork; shrinking workers promise nothing."""
    gain = core.predicted_gain(gained)
    positive = sorted(size for size in gained if size > 0)
    assert gain == sum(positive[:-1])
    assert gain >= 0


def test_one_worker_promises_nothing() -> None:
    """With a single worker there is no second copy."""
    assert core.predicted_gain([500 * MIB]) == 0
    assert core.predicted_gain([]) == 0


def test_a_threshold_must_be_passed_for_its_time() -> None:
    """A spike is no reason."""
    seen = [sample(at, 200 * MIB) for at in (0.0, 30.0, 59.0, 60.0)]
    assert reasons(seen) == [Reason.NOT_SUSTAINED] * 3 + [Reason.THRESHOLD_PASSED]


def test_a_dip_within_the_hysteresis_does_not_start_the_time_anew() -> None:
    """A value that hovers around its level is decided on in the end."""
    seen = [sample(0.0, 110 * MIB), sample(30.0, 95 * MIB), sample(60.0, 101 * MIB)]
    assert reasons(seen) == [Reason.NOT_SUSTAINED, Reason.BELOW_THRESHOLD, Reason.THRESHOLD_PASSED]


def test_a_deeper_dip_does() -> None:
    """What fell back below the hysteresis was not sustained."""
    seen = [sample(0.0, 110 * MIB), sample(30.0, 80 * MIB), sample(60.0, 101 * MIB)]
    assert reasons(seen)[-1] is Reason.NOT_SUSTAINED


def test_a_gap_between_samples_starts_the_time_anew() -> None:
    """Two looks an hour apart say nothing of the hour."""
    seen = [sample(0.0, 200 * MIB), sample(3600.0, 200 * MIB)]
    assert reasons(seen)[-1] is Reason.NOT_SUSTAINED


def test_a_sample_from_the_past_is_not_used() -> None:
    """An answer that was overtaken by a later one changes nothing."""
    history = core.decide(History(), sample(100.0, 0), policy=POLICY)[1]
    decision, after = core.decide(history, sample(99.0, 500 * MIB), policy=POLICY)
    assert decision.reason is Reason.STALE_SAMPLE
    assert after == history


def test_a_refork_that_wins_too_little_is_not_worth_it() -> None:
    """PSS alone moves nobody: children of a grown parent are born with a high one."""
    policy = replace(POLICY, thresholds=(Threshold(Metric.PSS, size=MIB),))
    assert reasons([sample(0.0, 49 * MIB, pss=999 * MIB)], policy=policy) == [Reason.GAIN_TOO_SMALL]


def test_without_private_memory_nothing_is_worth_it() -> None:
    """Even with no minimum, a promise of nothing is no reason."""
    policy = Policy(thresholds=(Threshold(Metric.PSS, size=MIB),))
    assert reasons([sample(0.0, 0, pss=999 * MIB)], policy=policy) == [Reason.GAIN_TOO_SMALL]


def test_after_a_refork_there_is_a_cool_down() -> None:
    """The message says for how long, and the decision until when."""
    history = core.begun(History(), at=0.0, promised=200 * MIB)
    policy = replace(POLICY, thresholds=(replace(GAIN, sustained=0.0),))
    decision, history = core.decide(history, sample(100.0, 200 * MIB), policy=policy)
    assert (decision.refork, decision.reason, decision.not_before) == (False, Reason.COOLING_DOWN, 600.0)
    assert "500 s" in decision.message
    decision, _ = core.decide(history, sample(600.0, 200 * MIB), policy=replace(policy, longest_gap=1000))
    assert decision.refork


def test_a_refork_that_did_not_pay_doubles_the_cool_down_and_three_end_it() -> None:
    """What does not pay is done less and less often, and then no more; the reason says so."""
    policy = replace(POLICY, thresholds=(replace(GAIN, sustained=0.0),), longest_gap=1e9)
    history = History()
    at, starts, said = 0.0, [], []
    while at < 20_000:
        decision, history = core.decide(history, sample(at, 200 * MIB), policy=policy)
        said.append(decision.reason)
        if decision.refork:
            starts.append(at)
            history = core.begun(history, at=at, promised=decision.gain)
            history = core.judged(history, realised=10 * MIB, policy=policy)
        at += 10
    assert starts == [0.0, 1200.0, 3600.0]
    assert said[-1] is Reason.DOES_NOT_PAY
    assert Reason.BACKING_OFF in said
    assert core.decide(core.forgiven(history), sample(at, 200 * MIB), policy=policy)[0].refork


def test_a_refork_that_paid_makes_good_for_those_that_did_not() -> None:
    """Only failures in a row count."""
    history = History(unpaid=2, promised=100 * MIB)
    assert core.judged(history, realised=60 * MIB, policy=POLICY).unpaid == 0
    assert core.judged(history, realised=40 * MIB, policy=POLICY).unpaid == 3


def test_a_command_that_promised_little_teaches_nothing() -> None:
    """Somebody who reforks by hand for reasons of their own must not switch the automatic off."""
    history = core.begun(History(), at=0.0, promised=0)
    assert core.judged(history, realised=-5 * MIB, policy=POLICY).unpaid == 0
    assert core.judged(history, realised=-5 * MIB, policy=Policy(thresholds=())).unpaid == 0


def test_nothing_is_judged_twice() -> None:
    """A verdict needs a refork that was not judged yet."""
    history = core.judged(History(promised=100 * MIB), realised=0, policy=POLICY)
    assert core.judged(history, realised=0, policy=POLICY) == history


@pytest.mark.parametrize(
    ("threshold", "seen", "passed"),
    [
        (Threshold(Metric.GAIN, share=0.2), sample(0.0, 300, limit=1000), True),
        (Threshold(Metric.GAIN, share=0.2), sample(0.0, 300, limit=None), False),
        (Threshold(Metric.USS, size=100), sample(0.0, 300, uss=101), True),
        (Threshold(Metric.RSS, size=100), sample(0.0, 300, rss=100), False),
        (Threshold(Metric.LIMIT_SHARE, share=0.8), sample(0.0, 300, limit=1000, working_set=801), True),
        (Threshold(Metric.LIMIT_SHARE, share=0.8), sample(0.0, 300, limit=1000, pss=801), True),
        (Threshold(Metric.SHARED_RATIO, share=0.5), sample(0.0, 300, rss=100, uss=51), True),
        (Threshold(Metric.SHARED_RATIO, share=0.5), sample(0.0, 300, rss=100, uss=49), False),
        (Threshold(Metric.SHARED_RATIO, share=0.5), sample(0.0, 300), False),
        (Threshold(Metric.PSS, size=10, scope=Scope.WORKER), sample(0.0, 300, pss=99), False),
        (
            Threshold(Metric.PSS, size=10, scope=Scope.WORKER),
            sample(0.0, 300, workers=(Worker(1, 9, 1), Worker(1, 11, 1))),
            True,
        ),
        (
            Threshold(Metric.SHARED_RATIO, share=0.5, scope=Scope.WORKER),
            sample(0.0, 300, workers=(Worker(100, 9, 1), Worker(100, 11, 60))),
            True,
        ),
    ],
)
def test_each_metric_reads_what_it_names(threshold: Threshold, seen: Sample, *, passed: bool) -> None:
    """Sizes are compared with sizes, shares with the limit, and what is not known passes nothing."""
    policy = Policy(thresholds=(threshold,))
    expected = Reason.THRESHOLD_PASSED if passed else Reason.BELOW_THRESHOLD
    assert reasons([seen], policy=policy) == [expected]


@pytest.mark.parametrize("wrong", [{}, {"size": 1, "share": 0.5}])
def test_a_threshold_has_one_level(wrong: dict[str, float]) -> None:
    """Neither none nor two."""
    with pytest.raises(ValueError, match="either a size or a share"):
        Threshold(Metric.PSS, **wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="is a share"):
        Threshold(Metric.LIMIT_SHARE, size=5)


def test_the_policy_of_nobody_decides_nothing() -> None:
    """No trigger, no refork."""
    assert reasons([sample(0.0, 1 << 40)], policy=Policy(thresholds=())) == [Reason.NO_TRIGGER]


# --- days of memory ---------------------------------------------------------------------------------------------------


@dataclass
class Server:
    """A server that obeys: eight workers over a shared base, and a way of spoiling their memory."""

    grow: Callable[[Server, float], None]
    pays: bool = True
    base: int = 200 * MIB
    gained: list[float] = field(default_factory=lambda: [0.0] * 8)
    reforks: list[float] = field(default_factory=list)

    def sample(self, at: float) -> Sample:
        total = round(self.base + sum(self.gained))
        workers = tuple(Worker(self.base, round(g) + self.base // 8, round(g), round(g)) for g in self.gained)
        gain = core.predicted_gain([round(size) for size in self.gained])
        return Sample(
            at, gain, rss=8 * self.base, pss=total, uss=round(sum(self.gained)), workers=workers, limit=1 << 31
        )

    def refork(self, at: float) -> int:
        """Keep the largest worker's memory once, and tell what that won."""
        before = sum(self.gained)
        self.reforks.append(at)
        if not self.pays:
            return 0
        largest = max(self.gained)
        self.base += round(largest)
        self.gained = [0.0] * len(self.gained)
        return round(before - largest)


def steady(server: Server, _: float) -> None:
    """Every worker touches the same little."""
    server.gained = [5.0 * MIB] * 8


def erosion(server: Server, seconds: float) -> None:
    """Shared pages turn private, quickly at first, up to what there is."""
    server.gained = [size + (150 * MIB - size) * min(seconds / 3600, 1) for size in server.gained]


def leak(server: Server, seconds: float) -> None:
    """Each worker loses 20 MiB an hour for good."""
    server.gained = [size + 20 * MIB * seconds / 3600 for size in server.gained]


def churn(server: Server, _: float) -> None:
    """Caches come and go at random."""
    server.gained = [random.Random(size).uniform(0, 120) * MIB for size in server.gained]


def oscillation(server: Server, seconds: float) -> None:
    """Up for ten minutes, down for ten."""
    server.gained[0] += seconds
    high = int(server.gained[0]) % 1200 < 600
    server.gained = [server.gained[0], *([60.0 * MIB if high else 1.0 * MIB] * 7)]


def play(server: Server, policy: Policy, *, every: float = 15.0, until: float = DAY) -> Iterator[core.Decision]:
    """A day in which every decision is obeyed at once."""
    history, at = History(), 0.0
    while at < until:
        server.grow(server, every)
        decision, history = core.decide(history, server.sample(at), policy=policy)
        if decision.refork:
            history = core.begun(history, at=at, promised=decision.gain)
            history = core.judged(history, realised=server.refork(at), policy=policy)
        yield decision
        at += every


@pytest.mark.parametrize("grow", [steady, erosion, leak, churn, oscillation])
def test_there_is_never_more_than_one_refork_in_a_cool_down(grow: Callable[[Server, float], None]) -> None:
    """Whatever memory does all day."""
    server = Server(grow)
    for decision in play(server, POLICY):
        assert not decision.refork or decision.gain >= POLICY.min_gain
    assert all(later - earlier >= POLICY.cooldown for earlier, later in pairwise(server.reforks))


@pytest.mark.parametrize("grow", [steady, erosion, leak, churn, oscillation])
def test_what_has_been_seen_not_to_pay_is_not_done_again(grow: Callable[[Server, float], None]) -> None:
    """Three attempts in a day, further and further apart, and a reason that says so."""
    server = Server(grow, pays=False)
    last = list(play(server, POLICY))[-1]
    assert len(server.reforks) <= 3
    if len(server.reforks) == 3:
        assert last.reason in (Reason.DOES_NOT_PAY, Reason.BELOW_THRESHOLD, Reason.NOT_SUSTAINED)


def test_a_steady_server_is_left_alone() -> None:
    """No refork where there is nothing to win."""
    server = Server(steady)
    assert not any(decision.refork for decision in play(server, POLICY))


def test_a_leak_is_kept_at_one_copy() -> None:
    """With reforks, eight leaking workers cost what one does, plus what the trigger tolerates."""
    server = Server(leak)
    for _ in play(server, POLICY):
        pass
    leaked_by_one = 24 * 20 * MIB
    assert server.base + sum(server.gained) <= 200 * MIB + leaked_by_one + 130 * MIB
    assert len(server.reforks) <= 40


MEMORY = st.integers(min_value=0, max_value=4096).map(lambda size: size * MIB)


@settings(max_examples=200, deadline=None)
@given(
    steps=st.lists(st.tuples(st.floats(min_value=0.0, max_value=900.0), MEMORY, st.integers(0, 100)), max_size=80),
    cool=st.floats(min_value=1.0, max_value=3600.0),
    sustained=st.floats(min_value=0.0, max_value=600.0),
)
def test_no_trace_breaks_the_rules(steps: list[tuple[float, int, int]], cool: float, sustained: float) -> None:
    """Never within a cool-down, never below the minimum, never after three that did not pay."""
    policy = Policy(thresholds=(replace(GAIN, sustained=sustained),), cooldown=cool, min_gain=50 * MIB)
    history, at, unpaid = History(), 0.0, 0
    last: float | None = None
    for seconds, gain, percent in steps:
        at += seconds
        decision, history = core.decide(history, sample(at, gain), policy=policy)
        if decision.refork:
            assert gain >= policy.min_gain
            assert unpaid < policy.gives_up_after
            assert last is None or at - last >= cool * 2**unpaid * (1 - 1e-9)  # the sums of the times are rounded
            last = at
            history = core.begun(history, at=at, promised=gain)
            realised = gain * percent // 100
            unpaid = 0 if realised >= gain * policy.pays else unpaid + 1
            history = core.judged(history, realised=realised, policy=policy)
