"""Who of several operators is the active one: the rules of a Lease, without an API server. Pure.

Clocks of two machines are never compared. A holder is believed dead when the Lease has not *changed* for its duration,
measured on the observer's own clock from when it saw the last change. The holder itself stops being one earlier, when
it has not managed to renew for a shorter while, so that there is a gap between two holders and never an overlap.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from refork_operator.quantity import show_micro

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds: ``retry`` < ``renew`` < ``duration``, and a takeover takes at most duration + retry."""

    duration: float = 10.0
    renew: float = 7.0
    retry: float = 2.0


@dataclass(frozen=True, slots=True)
class View:
    """What one candidate has seen of the Lease, on its own monotonic clock.

    Attributes:
        record: what was seen last: holder, renewTime and transitions.
        changed_at: when that was seen for the first time.
        renewed_at: when we were last told that we hold it; None when we do not. It is the time *before* the request.
    """

    record: tuple[str, str, int] | None = None
    changed_at: float = 0.0
    renewed_at: float | None = None


def observe(view: View, lease: Mapping[str, Any], *, now: float) -> View:
    """Take note of the Lease as it was read."""
    spec = lease.get("spec") or {}
    record = (spec.get("holderIdentity") or "", spec.get("renewTime") or "", spec.get("leaseTransitions") or 0)
    if record == view.record:
        return view
    return replace(view, record=record, changed_at=now)


def renewed(view: View, *, at: float) -> View:
    """Take note that we hold it, counted from before we asked."""
    return replace(view, renewed_at=at)


def may_take(view: View, *, identity: str, timing: Timing, now: float) -> bool:
    """Tell whether we may write ourselves in: it is ours, nobody's, or its holder has not renewed it for too long."""
    if view.record is None:
        return False
    holder = view.record[0]
    return holder in ("", identity) or now - view.changed_at >= timing.duration


def holds(view: View, *, timing: Timing, now: float) -> bool:
    """Tell whether we may act as the holder: we renewed it, and not too long ago."""
    return view.renewed_at is not None and now - view.renewed_at < timing.renew


def taken(lease: Mapping[str, Any], *, identity: str, timing: Timing, at: float) -> dict[str, Any]:
    """Write the Lease with ourselves as the holder; ``at`` is a Unix time.

    The resource version is kept: the API server refuses the write if anybody else was faster.
    """
    spec = dict(lease.get("spec") or {})
    renewing = spec.get("holderIdentity") == identity
    now = show_micro(at)
    spec.update(
        holderIdentity=identity,
        leaseDurationSeconds=max(1, round(timing.duration)),
        renewTime=now,
        acquireTime=spec.get("acquireTime", now) if renewing else now,
        leaseTransitions=(spec.get("leaseTransitions") or 0) + (not renewing),
    )
    return {**lease, "spec": spec}


def released(lease: Mapping[str, Any], *, at: float) -> dict[str, Any]:
    """Write the Lease with no holder, so that the next need not wait."""
    spec = {**(lease.get("spec") or {}), "holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": show_micro(at)}
    return {**lease, "spec": spec}
