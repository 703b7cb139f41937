"""A pod under watch: everything the operator knows of it beyond what the API server says.

A record with small verbs and no I/O. It belongs to one uid: another pod of the same name starts anew.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from refork import decide
from refork_operator import state as states

if TYPE_CHECKING:
    import asyncio

    from refork_operator.plan import Verdict
    from refork_operator.pods import Pod
    from refork_operator.samples import Observation

FAILURES_UNTIL_TROUBLE = 2
"""One answer that is none may be an accident."""

_NOTHING = decide.Policy(thresholds=())


@dataclass(slots=True)
class Watched:
    """One pod; instants are Unix times.

    Attributes:
        pays: when a refork of it pays; of no use without a policy.
        due: when it is asked next.
        failures: answers in a row that were none, and ``trouble`` what was wrong with the last.
        held_until: it is not reforked before, because its server just refused.
        settled_peak: the most memory since the last refork ended; ``peak`` since we watch.
        asked_since: since when somebody waits for a refork by annotation.
        answered_request: the last request that was answered; what the watch shows may be older.
        work: the refork under way.
    """

    pod: Pod
    state: states.PodState
    pays: decide.Policy = _NOTHING
    interval: float = 15.0
    due: float = 0.0
    history: decide.History = field(default_factory=decide.History)
    observation: Observation | None = None
    decision: decide.Decision | None = None
    verdict: Verdict | None = None
    failures: int = 0
    trouble: str = ""
    held_until: float = 0.0
    held_for: str = ""
    settled_peak: int = 0
    peak: int = 0
    asked_since: float | None = None
    answered_request: str | None = None
    work: asyncio.Task[None] | None = None

    @classmethod
    def of(cls, pod: Pod) -> Watched:
        """Begin to watch a pod, with what its annotations remember."""
        state = states.read_pod(pod.annotations)
        return cls(pod=pod, state=state, history=state.history())

    @property
    def reforking(self) -> bool:
        """Whether a refork was begun whose outcome is not known."""
        return self.state.intent is not None

    @property
    def engaged(self) -> bool:
        """Whether it must be left alone: a refork is under way, or how it ended is still being written down."""
        return self.reforking or self.work is not None

    @property
    def troubled(self) -> str:
        """What is wrong with its answers; empty while it may be an accident."""
        return self.trouble if self.failures >= FAILURES_UNTIL_TROUBLE else ""

    @property
    def size(self) -> int:
        """What its memory request has to cover."""
        sample = self.observation.sample if self.observation is not None else None
        if sample is None:
            return 0
        return sample.working_set if sample.working_set is not None else sample.pss

    def answered(self, observation: Observation) -> None:
        """Take note of an answer."""
        if self.state.server and observation.server != self.state.server and not self.reforking:
            self._begin_anew()
        self.failures, self.trouble = 0, ""
        self.observation = observation
        self.decision, self.history = decide.decide(self.history, observation.sample, policy=self.pays)
        self.settled_peak = max(self.settled_peak, self.size) if not self.reforking else 0
        self.peak = max(self.peak, self.size)

    def failed(self, trouble: str) -> None:
        """Take note of an answer that was none."""
        self.failures += 1
        self.trouble = trouble

    def begin(self, intent: states.Intent) -> None:
        """Take note of a refork that was decided."""
        self.state = states.begun(self.state, intent)
        self.history = decide.begun(self.history, at=intent.at, promised=intent.promised)

    def take_back(self, before: states.PodState, history: decide.History, *, until: float, why: str) -> None:
        """Forget a refork that the server would not begin now."""
        self.state, self.history = before, history
        self.held_until, self.held_for = until, why

    def end(self, *, realised: int | None, outcome: str) -> None:
        """Take note of how it ended; what it won may remain unknown."""
        if self.history.promised is None and self.state.intent is not None:
            self.history = decide.begun(self.history, at=self.state.intent.at, promised=self.state.intent.promised)
        if realised is not None:
            self.history = decide.judged(self.history, realised=realised, policy=self.pays)
        self.state = states.ended(self.state, self.history, outcome=outcome)
        self.settled_peak = 0
        self.decision = None  # what was seen before says nothing of the server as it is now

    def learn_anew(self, pays: decide.Policy) -> None:
        """Follow another policy: what did not pay under the last one may under this."""
        if pays != self.pays:
            if self.pays.thresholds:
                self.history = decide.forgiven(self.history)
            self.pays = pays

    def _begin_anew(self) -> None:
        self.state = states.PodState(workload_request=self.state.workload_request)
        self.history = decide.History()
        self.settled_peak = self.peak = 0
