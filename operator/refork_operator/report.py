"""What a policy's status says. Pure: what is known goes in, the document for the API server comes out.

Figures are quantities in whole mebibytes and the list of pods is short and in a stable order, so that the document
changes when something has changed and not with every page of memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from refork_operator import conditions
from refork_operator.conditions import Condition
from refork_operator.quantity import show_bytes, show_instant

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from refork_operator.policy import ReforkPolicy
    from refork_operator.recommend import Recommendation
    from refork_operator.watched import Watched

MOST_PODS = 50
MOST_RECOMMENDATIONS = 20


@dataclass(frozen=True, slots=True)
class Tally:
    """What a policy has done since it was made."""

    succeeded: int = 0
    failed: int = 0
    unpaid: int = 0
    realised: int = 0
    last_refork_at: float | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of one policy's pods at one moment."""

    policy: ReforkPolicy
    pods: Sequence[Watched]
    recommendations: Sequence[Recommendation]
    tally: Tally
    dry_run: bool = False


def write(facts: Facts, *, before: Mapping[str, Any], now: float) -> dict[str, Any]:
    """Write the status."""
    policy, pods = facts.policy, facts.pods
    shown = sorted(pods, key=_interest)[:MOST_PODS]
    document: dict[str, Any] = {
        "observedGeneration": policy.generation,
        "conditions": conditions.write(
            _conditions(facts), before=before.get("conditions") or (), generation=policy.generation, now=now
        ),
        "pods": {
            "matched": len(pods),
            "ready": sum(watched.pod.ready for watched in pods),
            "sampled": sum(watched.observation is not None for watched in pods),
            "reforking": sum(watched.reforking for watched in pods),
            "degraded": sum(bool(watched.troubled) for watched in pods),
        },
        "totals": _totals(pods),
        "reforks": {
            "succeeded": facts.tally.succeeded,
            "failed": facts.tally.failed,
            "unpaid": facts.tally.unpaid,
            "realisedGain": show_bytes(facts.tally.realised),
        },
        "details": [_detail(watched) for watched in sorted(shown, key=lambda found: found.pod.name)],
        "omitted": len(pods) - len(shown),
        "recommendations": [_recommendation(item) for item in facts.recommendations[:MOST_RECOMMENDATIONS]],
    }
    if facts.tally.last_refork_at is not None:
        document["lastReforkTime"] = show_instant(facts.tally.last_refork_at)
    return document


def write_broken(message: str, *, generation: int, before: Mapping[str, Any], now: float) -> dict[str, Any]:
    """Write the status of a policy that could not be read."""
    broken = Condition("Ready", holds=False, reason="Invalid", message=message)
    known = before.get("conditions") or ()
    return {
        "observedGeneration": generation,
        "conditions": conditions.write([broken], before=known, generation=generation, now=now),
    }


def same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Tell whether two documents say the same, but for when pods were last looked at."""
    return _timeless(one) == _timeless(other)


def _timeless(document: Mapping[str, Any]) -> dict[str, Any]:
    details = [{k: v for k, v in item.items() if k != "sampledAt"} for item in document.get("details") or ()]
    return {**document, "details": details}


def _totals(pods: Sequence[Watched]) -> dict[str, str]:
    seen = [watched.observation for watched in pods if watched.observation is not None]
    return {
        "rss": show_bytes(sum(item.sample.rss for item in seen)),
        "pss": show_bytes(sum(item.sample.pss for item in seen)),
        "uss": show_bytes(sum(item.sample.uss for item in seen)),
        "saved": show_bytes(sum(item.saved for item in seen)),
        "predictedGain": show_bytes(sum(item.sample.gain for item in seen)),
    }


def _conditions(facts: Facts) -> list[Condition]:
    policy, pods = facts.policy, facts.pods
    reforking = [watched.pod.name for watched in pods if watched.reforking]
    degraded = [watched for watched in pods if watched.troubled]
    word, sentence = _mode(facts)
    return [
        Condition("Ready", holds=True, reason=word, message=sentence),
        Condition(
            "Reforking",
            holds=bool(reforking),
            reason="InProgress" if reforking else "Idle",
            message=_names(reforking),
        ),
        Condition(
            "Degraded",
            holds=bool(degraded),
            reason=_trouble(degraded),
            message=f"{len(degraded)} of {len(pods)} pods: {_names([w.pod.name for w in degraded])}"
            if degraded
            else "",
        ),
        _payback(pods, policy),
    ]


def _mode(facts: Facts) -> tuple[str, str]:
    if facts.dry_run:
        return "DryRun", "the operator runs with --dry-run: nothing is reforked"
    if facts.policy.paused:
        return "Paused", "the policy is paused"
    if not facts.pods:
        return "NoPods", "the selector matches no pod"
    if not facts.policy.enforce:
        return "Observing", "mode is Observe: reforks are recommended, not begun"
    return "Enforcing", ""


def _trouble(degraded: Sequence[Watched]) -> str:
    words = sorted({watched.troubled.partition(":")[0] for watched in degraded})
    if not words:
        return "AllAnswer"
    return words[0] if len(words) == 1 else "SeveralReasons"


def _payback(pods: Sequence[Watched], policy: ReforkPolicy) -> Condition:
    """Say that reforks do not pay, where that was learnt."""
    given_up = [watched.pod.name for watched in pods if watched.history.unpaid >= policy.pays.gives_up_after]
    return Condition(
        "Paying",
        holds=not given_up,
        reason="DoesNotPay" if given_up else "NothingAgainst",
        message=f"given up on {_names(given_up)}" if given_up else "",
    )


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(sorted(names)[:5])
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown  # noqa: PLR2004 - what fits a line


def _interest(watched: Watched) -> tuple[int, int, str]:
    rank = 0 if watched.reforking else 1 if watched.troubled else 2
    gain = watched.observation.sample.gain if watched.observation is not None else 0
    return rank, -gain, watched.pod.name


def _detail(watched: Watched) -> dict[str, Any]:
    detail: dict[str, Any] = {"name": watched.pod.name, "workload": str(watched.pod.workload)}
    seen = watched.observation
    if seen is not None:
        detail |= {
            "generation": seen.generation,
            "pss": show_bytes(seen.sample.pss),
            "predictedGain": show_bytes(seen.sample.gain),
            "sampledAt": show_instant(seen.sample.at),
        }
    if watched.troubled:
        word, _, sentence = watched.troubled.partition(": ")
        detail |= {"reason": word, "message": sentence[:200]}
    elif watched.verdict is not None:
        detail |= {"reason": watched.verdict.reason}
    state = watched.state
    if state.reforked_at is not None:
        detail |= {"lastReforkTime": show_instant(state.reforked_at), "unpaid": watched.history.unpaid}
    if state.outcome:
        detail |= {"outcome": state.outcome[:200]}
    if state.realised is not None:
        detail |= {"realisedGain": show_bytes(state.realised)}
    return detail


def _recommendation(item: Recommendation) -> dict[str, Any]:
    written: dict[str, Any] = {
        "workload": str(item.workload),
        "pods": item.pods,
        "peak": show_bytes(item.peak),
        "memoryRequest": show_bytes(item.request),
        "memoryLimit": show_bytes(item.limit),
        "message": item.message,
    }
    if item.current_request is not None:
        written["currentRequest"] = show_bytes(item.current_request)
    if item.current_limit is not None:
        written["currentLimit"] = show_bytes(item.current_limit)
    return written


def read_tally(status: Mapping[str, Any], *, instant: float | None) -> Tally:
    """Read back what a policy has done, from its status; ``instant`` is its lastReforkTime, parsed."""
    reforks = status.get("reforks") or {}
    return Tally(
        succeeded=int(reforks.get("succeeded") or 0),
        failed=int(reforks.get("failed") or 0),
        unpaid=int(reforks.get("unpaid") or 0),
        realised=_read_mebi(reforks.get("realisedGain")),
        last_refork_at=instant,
    )


def _read_mebi(text: object) -> int:
    """Read what ``show_bytes`` wrote, which may be less than nothing."""
    if not isinstance(text, str):
        return 0
    try:
        return int(text.removesuffix("Mi")) << 20
    except ValueError:
        return 0
