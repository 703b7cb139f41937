"""Reforks by memory: asks for one when it pays, and learns from each, whoever asked for it, whether it did.

The decision is ``refork.decide``'s, which is pure; here are the figures it decides by, from the sampler. What a refork
promises is what workers have gained privately since their fork, less the largest. What it has won is the PSS of all
processes before it less that of all processes after it. Both are known for every refork, also where none is ever asked
for by memory: the status shows them.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from refork import api, decide
from refork.api import Outcome, Phase, RolloutKind
from refork.decide import Metric, Reason, Threshold
from refork.settings import parse_amount

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from refork.rollout import Rollout
    from refork.sampler import Sampler

WORTH = 0.5
"""A refork that promised less than this part of the wanted gain was not asked for by memory, and proves nothing."""

_FIRST = frozenset({Phase.SURGE, Phase.LOADING})
_BEFORE = frozenset({Phase.DRAINING, Phase.SEALING, Phase.CANARY})
"""The beginnings of these steps come before there is any worker of the new generation."""

_LONGEST_GAP = 3.0
_AT_LEAST_GAP = 300.0


@dataclass(frozen=True, slots=True)
class Wish:
    """What the settings say: how much a refork must promise, for how long, and how often there may be one."""

    threshold: Threshold | None
    cooldown: float

    @classmethod
    def of(cls, cfg: Any) -> Wish:
        """Read the settings."""
        size, share = parse_amount(cfg.refork_gain)
        threshold = None
        if size or share:
            threshold = Threshold(Metric.GAIN, size=size or None, share=share or None, sustained=cfg.refork_sustained)
        return cls(threshold, cfg.refork_cooldown)

    def policy(self, *, limit: int | None, interval: float) -> decide.Policy:
        """Put it in the words of ``refork.decide``; samples may be an ``interval`` apart."""
        threshold = self.threshold
        wanted = 0.0
        if threshold is not None:
            wanted = threshold.size or (threshold.share or 0.0) * (limit or 0)
        return decide.Policy(
            thresholds=() if threshold is None else (threshold,),
            cooldown=self.cooldown,
            min_gain=int(WORTH * wanted),
            longest_gap=max(_AT_LEAST_GAP, _LONGEST_GAP * interval),
        )


@dataclass(slots=True)
class Before:
    """What there was before a refork changed it.

    It is taken down as long as looks come in and the new generation has not begun to share the old one's pages. The
    spare worker that keeps up the capacity meanwhile is no part of it, but the pages that it shares are.

    Attributes:
        pids: the processes that there were, all of them.
        workers: those of them that served.
        pss: what each process accounts for.
        gained: what each worker had gained.
    """

    pids: frozenset[int]
    workers: frozenset[int]
    pss: dict[int, int] = field(default_factory=dict)
    gained: dict[int, int] = field(default_factory=dict)

    def note(self, sampler: Sampler) -> None:
        """Take down what is known now."""
        for pid in sampler.pids():
            track = sampler.track(pid)
            if track.memory is None or (pid in self.workers and track.gained is None):
                continue  # not looked at yet, or not a worker any more
            self.pss[pid] = track.memory.pss if pid in self.pids else track.memory.pss - track.memory.uss
            if pid in self.workers and track.gained is not None:
                self.gained[pid] = track.gained

    def catch_up(self, sampler: Sampler) -> None:
        """Take down what old workers are seen to have gained, now that pages are shared with new ones.

        Looks may come late on a busy machine. What a worker has gained is its own, whoever else there is.
        """
        for pid in self.workers & self.pss.keys():
            gained = sampler.track(pid).gained
            if gained is not None:
                self.pss[pid] += gained - self.gained.get(pid, 0)
                self.gained[pid] = gained

    @property
    def promised(self) -> int:
        """What a refork was predicted to win."""
        return decide.predicted_gain(list(self.gained.values()))


class Automatic:
    """Decides for one server; ``workers`` names those that serve: their numbers and their pids."""

    def __init__(self, wish: Wish, sampler: Sampler, workers: Callable[[], Mapping[int, int]], *, log: Any) -> None:
        self._wish = wish
        self._sampler = sampler
        self._workers = workers
        self._log = log
        self._history = decide.History()
        self._decision: decide.Decision | None = None
        self._before: Before | None = None
        self._ended: float | None = None
        self.promised: int | None = None
        self.realised: int | None = None

    def configure(self, wish: Wish) -> None:
        """Take up new settings, with new code perhaps: what was learnt does not hold any more."""
        self._wish = wish
        self._history = decide.forgiven(self._history)
        self._decision = None

    # --- what a refork is worth ---------------------------------------------------------------------------------------

    def gain(self) -> api.Gain:
        """Tell what a refork would win now, and what the last one did."""
        return api.Gain(predicted=self._predicted(), realised=self.realised, promised=self.promised)

    def advanced(self, rollout: Rollout) -> None:
        """Take note of a step that a rollout has come to; a trial changes nothing."""
        if rollout.kind not in {RolloutKind.REFORK, RolloutKind.REBASE}:
            return
        if rollout.phase in _FIRST:
            self._ended = None
            workers = self._workers()
            self._before = Before(frozenset(self._sampler.pids()), frozenset(workers.values()))
            if rollout.kind is RolloutKind.REFORK:
                self._sampler.need_all(first=workers.get(-1 if rollout.promoted is None else rollout.promoted))
        before = self._before
        if before is None or rollout.phase not in _FIRST | _BEFORE | {Phase.ROLLING}:
            return
        if rollout.phase is Phase.ROLLING:
            before.catch_up(self._sampler)
        else:
            before.note(self._sampler)
        promised = before.promised if rollout.kind is RolloutKind.REFORK else 0
        self._history = decide.begun(self._history, at=rollout.started, promised=promised)

    def finished(self, rollout: Rollout) -> None:
        """Take note of the end of a rollout: what it has won can be told once everything has been looked at."""
        self._sampler.need_all()
        if rollout.kind is not RolloutKind.REFORK:
            self._before = None
        elif rollout.outcome is Outcome.SUCCEEDED and self._before is not None:
            self._ended = time.monotonic()
        else:
            self._judge(0)

    def looked(self) -> None:
        """Take note of another look at a process."""
        if self._ended is None or self._before is None:
            return
        pids = self._sampler.pids()
        if self._sampler.seen_since(self._ended, pids):
            self._ended = None
            self.promised = self._before.promised
            self.realised = sum(self._before.pss.values()) - self._sampler.pss(pids)
            self._log.info("refork won %s of %s bytes that it promised", self.realised, self.promised)
            self._judge(self.realised)

    def _judge(self, realised: int) -> None:
        self._before = None
        self._history = decide.judged(self._history, realised=realised, policy=self._policy())

    def _predicted(self) -> int:
        known = (self._gained(pid) for pid in self._workers().values())
        return decide.predicted_gain([gained for gained in known if gained is not None])

    def _gained(self, pid: int) -> int | None:
        return self._sampler.track(pid).gained

    # --- whether to refork --------------------------------------------------------------------------------------------

    def due(self) -> bool:
        """Whether a refork should be asked for now; asks ``refork.decide`` once for each round of looks."""
        if self._wish.threshold is None or self._ended is not None:
            return False
        sample = self._sample()
        if self._history.sampled_at is not None and sample.at <= self._history.sampled_at:
            return False
        before = self._decision
        self._decision, self._history = decide.decide(self._history, sample, policy=self._policy())
        stopped = self._decision.reason is Reason.DOES_NOT_PAY
        if stopped and (before is None or before.reason is not Reason.DOES_NOT_PAY):
            self._log.warning("refork by memory has stopped until a reload or restart: %s", self._decision.message)
        return self._decision.refork

    def explain(self) -> str:
        """Tell why the last decision was what it was."""
        return "" if self._decision is None else self._decision.message

    def status(self) -> api.Automatic | None:
        """Tell what was decided last; None when it is switched off."""
        if self._wish.threshold is None:
            return None
        reason = Reason.BELOW_THRESHOLD if self._decision is None else self._decision.reason
        stopped = self._history.unpaid >= self._policy().gives_up_after
        return api.Automatic(reason.value, self.explain(), self._history.unpaid, stopped)

    def _policy(self) -> decide.Policy:
        return self._wish.policy(limit=self._limit, interval=self._sampler.sampling().interval)

    @property
    def _limit(self) -> int | None:
        return None if self._sampler.cgroup is None else self._sampler.cgroup.limit

    def _sample(self) -> decide.Sample:
        return decide.Sample(at=self._sampler.oldest(), gain=self._predicted(), limit=self._limit)
