"""When a refork pays: one answer for the server's own memory trigger and for the operator.

Samples and a policy go in, a decision with its reason comes out. Nothing here knows a clock, a process or a network, so
that a day of memory can be played in a test in a second.

The idea: memory figures of forked processes tempt into loops. Children of a grown parent are *born* with a high RSS and
a high PSS, and PSS rises whenever a sibling exits; whoever reforks on those alone reforks for ever. What a refork can
win back is the memory that workers gained *privately since their fork*: after it, one copy of that is left, shared by
all. So:

* A threshold only says when to *think* about it. It must be passed for a while, and a dip within the hysteresis does
  not start the while anew.
* The predicted gain must be worth the trouble: ``min_gain``.
* What was won is compared with what was promised. A refork that won too little doubles the cool-down; after a few of
  them in a row nothing is decided any more until somebody says otherwise (``forgiven``), and the reason says so.

The trade-off is between being late and being wrong, and every choice here is for being late: a refork too few costs
memory that was there a minute ago, a refork too many costs the trust that makes people leave it switched on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

MOST_DOUBLINGS = 16
"""The cool-down is doubled no more often than this: numbers stay numbers that a person can read."""


class Metric(StrEnum):
    """What a threshold looks at."""

    GAIN = "PredictedGain"
    PSS = "PSS"
    USS = "USS"
    RSS = "RSS"
    SHARED_RATIO = "SharedRatio"
    LIMIT_SHARE = "LimitShare"


class Scope(StrEnum):
    """Whose memory a threshold looks at: the whole server's, or that of its largest worker."""

    SERVER = "Server"
    WORKER = "Worker"


class Reason(StrEnum):
    """Why a refork was decided, or not: for status fields, metrics and logs. The words are stable."""

    THRESHOLD_PASSED = "ThresholdPassed"
    NO_TRIGGER = "NoTrigger"
    BELOW_THRESHOLD = "BelowThreshold"
    NOT_SUSTAINED = "NotSustained"
    GAIN_TOO_SMALL = "GainTooSmall"
    COOLING_DOWN = "CoolingDown"
    BACKING_OFF = "BackingOff"
    DOES_NOT_PAY = "DoesNotPay"
    STALE_SAMPLE = "StaleSample"


@dataclass(frozen=True, slots=True)
class Worker:
    """One worker in a sample; sizes in bytes. ``gained`` is the private memory it gained since its fork."""

    rss: int
    pss: int
    uss: int
    gained: int = 0


@dataclass(frozen=True, slots=True)
class Sample:
    """What one look at a server showed; sizes in bytes.

    Attributes:
        at: when, in seconds on any clock that does not go backwards.
        gain: the predicted gain, see ``predicted_gain``.
        rss: of all processes together; so are ``pss`` and ``uss``.
        limit: the container's memory limit; None where there is none.
        working_set: what the container's limit is compared with by the kernel; None where it is not known.
    """

    at: float
    gain: int
    rss: int = 0
    pss: int = 0
    uss: int = 0
    workers: tuple[Worker, ...] = ()
    limit: int | None = None
    working_set: int | None = None


@dataclass(frozen=True, slots=True)
class Threshold:
    """A level, and for how many seconds it must be passed.

    Exactly one of ``size`` (bytes) and ``share`` (0 to 1) is given. A share is one of the container's limit, and never
    passed without a limit; for ``SHARED_RATIO`` it is the ratio itself, and passed when the ratio is *below* it.
    """

    metric: Metric
    size: int | None = None
    share: float | None = None
    scope: Scope = Scope.SERVER
    sustained: float = 0.0

    def __post_init__(self) -> None:
        if (self.size is None) == (self.share is None):
            raise ValueError("a threshold has either a size or a share")
        if self.metric in (Metric.SHARED_RATIO, Metric.LIMIT_SHARE) and self.share is None:
            raise ValueError(f"a threshold on {self.metric} is a share")

    @property
    def falling(self) -> bool:
        """Whether it is passed by what is less."""
        return self.metric is Metric.SHARED_RATIO

    def __str__(self) -> str:
        level = _mebi(self.size) if self.size is not None else f"{100 * (self.share or 0.0):g}%"
        whose = "" if self.scope is Scope.SERVER else " of a worker"
        return f"{self.metric}{whose} {'below' if self.falling else 'above'} {level}"


@dataclass(frozen=True, slots=True)
class Policy:
    """What a refork must promise and keep; durations in seconds, sizes in bytes.

    Attributes:
        thresholds: any of them suffices.
        cooldown: between the start of one refork and the start of the next.
        min_gain: less is not worth a refork.
        hysteresis: how far (as a share of the level) a value may fall back without starting ``sustained`` anew.
        pays: a refork pays if it won at least this share of what was promised.
        gives_up_after: so many in a row that did not pay, and no more are decided.
        longest_gap: samples further apart than this are not one observation.
    """

    thresholds: tuple[Threshold, ...]
    cooldown: float = 600.0
    min_gain: int = 0
    hysteresis: float = 0.1
    pays: float = 0.5
    gives_up_after: int = 3
    longest_gap: float = 300.0


@dataclass(frozen=True, slots=True)
class History:
    """What must be remembered between decisions. A new one is one of a server that was never reforked.

    Attributes:
        since: for each threshold, since when it is passed; None when it is not.
        sampled_at: when the last sample was taken.
        reforked_at: when the last refork was begun.
        promised: what it promised, until it is judged.
        realised: what the last judged one won.
        unpaid: how many in a row did not pay.
    """

    since: tuple[float | None, ...] = ()
    sampled_at: float | None = None
    reforked_at: float | None = None
    promised: int | None = None
    realised: int | None = None
    unpaid: int = 0


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether to refork, why (for machines and for people), and what it would win.

    ``not_before`` is when a cool-down ends that alone stands in the way; None otherwise.
    """

    refork: bool
    reason: Reason
    message: str
    gain: int
    not_before: float | None = None


def predicted_gain(gained: Sequence[int]) -> int:
    """Tell what a refork wins back: what workers gained privately since their fork, less the largest, which stays."""
    positive = [size for size in gained if size > 0]
    return sum(positive) - max(positive, default=0)


def decide(history: History, sample: Sample, *, policy: Policy) -> tuple[Decision, History]:
    """Take note of a sample, and say whether a refork pays now."""
    if history.sampled_at is not None and sample.at < history.sampled_at:
        return Decision(False, Reason.STALE_SAMPLE, "the sample is older than the last one", sample.gain), history
    history = _noted(history, sample, policy=policy)
    return _decision(history, sample, policy=policy), history


def begun(history: History, *, at: float, promised: int) -> History:
    """Take note that a refork was begun, whoever asked for it: all private memory is counted anew from here."""
    return replace(history, since=(), reforked_at=at, promised=max(promised, 0))


def judged(history: History, *, realised: int, policy: Policy) -> History:
    """Compare what the last refork won with what it promised; one that failed has won nothing.

    One that promised less than was asked for (somebody commanded it) proves nothing either way.
    """
    if history.promised is None:
        return history
    judged_history = replace(history, promised=None, realised=realised)
    if history.promised < max(policy.min_gain, 1):
        return judged_history
    if realised >= policy.pays * history.promised:
        return replace(judged_history, unpaid=0)
    return replace(judged_history, unpaid=history.unpaid + 1)


def forgiven(history: History) -> History:
    """Begin to learn anew: the code, the configuration or the policy is another one."""
    return replace(history, unpaid=0, promised=None)


def cooldown(history: History, *, policy: Policy) -> float:
    """Tell the seconds between two reforks: doubled for each one in a row that did not pay."""
    return policy.cooldown * 2.0 ** min(history.unpaid, MOST_DOUBLINGS)


def value(threshold: Threshold, sample: Sample) -> float | None:
    """Read what a threshold looks at, in the unit of its level; None when the sample cannot tell."""
    if threshold.metric is Metric.SHARED_RATIO:
        return _shared_ratio(threshold.scope, sample)
    size = _size(threshold, sample)
    if size is None or threshold.size is not None:
        return size
    return size / sample.limit if sample.limit else None


def _size(threshold: Threshold, sample: Sample) -> int | None:
    worker = threshold.scope is Scope.WORKER
    match threshold.metric:
        case Metric.GAIN:
            return max((w.gained for w in sample.workers), default=None) if worker else sample.gain
        case Metric.PSS:
            return max((w.pss for w in sample.workers), default=None) if worker else sample.pss
        case Metric.USS:
            return max((w.uss for w in sample.workers), default=None) if worker else sample.uss
        case Metric.RSS:
            return max((w.rss for w in sample.workers), default=None) if worker else sample.rss
        case _:
            return sample.pss if sample.working_set is None else sample.working_set


def _shared_ratio(scope: Scope, sample: Sample) -> float | None:
    """Tell which share of the resident memory other processes use too."""
    if scope is Scope.SERVER:
        return 1 - sample.uss / sample.rss if sample.rss else None
    return min((1 - w.uss / w.rss for w in sample.workers if w.rss), default=None)


def _mebi(size: int) -> str:
    return f"{size / (1 << 20):.0f} MiB"


def _level(threshold: Threshold) -> float:
    return float(threshold.size) if threshold.size is not None else threshold.share or 0.0


def _passed(threshold: Threshold, sample: Sample, *, slack: float = 0.0) -> bool:
    """Tell whether a threshold is passed, or with ``slack`` is not left by more than this share of its level."""
    seen = value(threshold, sample)
    if seen is None:
        return False
    if threshold.falling:
        return seen < _level(threshold) * (1 + slack)
    return seen > _level(threshold) * (1 - slack)


def _noted(history: History, sample: Sample, *, policy: Policy) -> History:
    """Keep since when each threshold is passed; a gap between samples, or another policy, starts anew."""
    known = history.since if len(history.since) == len(policy.thresholds) else (None,) * len(policy.thresholds)
    if history.sampled_at is not None and sample.at - history.sampled_at > policy.longest_gap:
        known = (None,) * len(policy.thresholds)
    since = tuple(
        _since(threshold, sample, before=before, policy=policy)
        for threshold, before in zip(policy.thresholds, known, strict=True)
    )
    return replace(history, since=since, sampled_at=sample.at)


def _since(threshold: Threshold, sample: Sample, *, before: float | None, policy: Policy) -> float | None:
    if before is None:
        return sample.at if _passed(threshold, sample) else None
    return before if _passed(threshold, sample, slack=policy.hysteresis) else None


def _decision(history: History, sample: Sample, *, policy: Policy) -> Decision:
    def no(reason: Reason, message: str, *, not_before: float | None = None) -> Decision:
        return Decision(False, reason, message, sample.gain, not_before)

    if not policy.thresholds:
        return no(Reason.NO_TRIGGER, "no trigger is configured")
    passed = [
        (threshold, since)
        for threshold, since in zip(policy.thresholds, history.since, strict=True)
        if since is not None and _passed(threshold, sample)
    ]
    if not passed:
        return no(Reason.BELOW_THRESHOLD, "no threshold is passed")
    sustained = [(threshold, since) for threshold, since in passed if sample.at - since >= threshold.sustained]
    if not sustained:
        threshold, since = passed[0]
        seconds = f"{sample.at - since:.0f} of {threshold.sustained:.0f} s"
        return no(Reason.NOT_SUSTAINED, f"{threshold} for {seconds}")
    if sample.gain <= 0 or sample.gain < policy.min_gain:
        return no(Reason.GAIN_TOO_SMALL, f"a refork would win {_mebi(sample.gain)}, less than {_mebi(policy.min_gain)}")
    if history.unpaid >= policy.gives_up_after:
        return no(Reason.DOES_NOT_PAY, f"{history.unpaid} reforks in a row did not pay: no more until told otherwise")
    if history.reforked_at is not None and sample.at < history.reforked_at + cooldown(history, policy=policy):
        until = history.reforked_at + cooldown(history, policy=policy)
        reason = Reason.BACKING_OFF if history.unpaid else Reason.COOLING_DOWN
        unpaid = f", doubled {history.unpaid} times by reforks that did not pay" if history.unpaid else ""
        return no(reason, f"cooling down for another {until - sample.at:.0f} s{unpaid}", not_before=until)
    threshold, since = sustained[0]
    message = f"{threshold} for {sample.at - since:.0f} s; a refork would win {_mebi(sample.gain)}"
    return Decision(True, Reason.THRESHOLD_PASSED, message, sample.gain)
