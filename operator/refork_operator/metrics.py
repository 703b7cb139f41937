"""The operator's own metrics: what it sees, what it decided and what it cost the cluster."""

from __future__ import annotations

from contextlib import suppress

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from refork_operator.reforks import Outcome

_POLL_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class Metrics:
    """All families, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.reforks = Counter(
            "refork_operator_reforks", "Reforks that ended.", ["policy", "outcome"], registry=registry
        )
        self.realised = Counter(
            "refork_operator_realised_gain_bytes",
            "Memory that reforks won, negative ones not counted.",
            ["policy"],
            registry=registry,
        )
        self.decisions = Counter(
            "refork_operator_decisions",
            "Decisions about pods, counted when the reason changes.",
            ["reason"],
            registry=registry,
        )
        self.polls = Counter(
            "refork_operator_polls", "Questions to pods, by what came of them.", ["result"], registry=registry
        )
        self.late = Counter("refork_operator_late_polls", "Questions asked a second or more late.", registry=registry)
        self.poll_seconds = Histogram(
            "refork_operator_poll_seconds", "How long pods took to answer.", registry=registry, buckets=_POLL_SECONDS
        )
        self.watched = Gauge(
            "refork_operator_watched_pods", "Pods that a policy matches.", ["policy"], registry=registry
        )
        self.degraded = Gauge(
            "refork_operator_degraded_pods",
            "Watched pods that do not answer as they should.",
            ["policy"],
            registry=registry,
        )
        self.reforking = Gauge("refork_operator_reforking_pods", "Reforks under way.", ["policy"], registry=registry)
        self.pss = Gauge("refork_operator_pss_bytes", "PSS of the watched pods.", ["policy"], registry=registry)
        self.saved = Gauge(
            "refork_operator_saved_bytes",
            "What sharing pages saves in the watched pods.",
            ["policy"],
            registry=registry,
        )
        self.gain = Gauge(
            "refork_operator_predicted_gain_bytes", "What reforks would win now.", ["policy"], registry=registry
        )
        self.leader = Gauge("refork_operator_leader", "1 if this process is the active one.", registry=registry)
        self.api_requests = Counter(
            "refork_operator_api_requests", "Requests to the API server.", ["verb", "code"], registry=registry
        )
        self.api_errors = Counter(
            "refork_operator_api_errors",
            "Requests to the API server that failed: with a status of 400 or more, or without an answer.",
            ["verb", "code"],
            registry=registry,
        )
        self.watch_restarts = Counter(
            "refork_operator_watch_restarts", "Watches begun again.", ["resource"], registry=registry
        )
        self.command_delay = Histogram(
            "refork_operator_command_delay_seconds",
            "From the sample or annotation that caused a refork to its command.",
            ["cause"],
            registry=registry,
            buckets=(0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0),
        )

    def expect(self, policy: str) -> None:
        """Have the counters of a policy begin at zero: a series that is born with its first event hides it."""
        self.realised.labels(policy)
        for outcome in Outcome:
            if outcome is not Outcome.POSTPONED:  # which is no end
                self.reforks.labels(policy, outcome)

    def forget(self, policy: str) -> None:
        """Drop the gauges of a policy that is gone."""
        for gauge in (self.watched, self.degraded, self.reforking, self.pss, self.saved, self.gain):
            with suppress(KeyError):
                gauge.remove(policy)

    def exposition(self) -> bytes:
        """Write all of it for Prometheus."""
        return generate_latest(self.registry)
