"""A ReforkPolicy, read: from what the API server stores to what the decisions are made by.

The API server has checked the object against the CRD and has filled in the defaults. Still nothing is taken for
granted here: a CRD of another version may be installed, and a policy that cannot be read must say so in its own status
instead of stopping the others.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from refork import decide
from refork_operator import selector
from refork_operator.names import DEFAULT_PORT
from refork_operator.quantity import QuantityError, is_percent, parse_bytes, parse_instant, parse_percent, parse_seconds
from refork_operator.schedule import DAYS, Schedule, Window, minutes, zone

if TYPE_CHECKING:
    from collections.abc import Mapping

_SCOPES = {"Pod": decide.Scope.SERVER, "Worker": decide.Scope.WORKER}
_SHORTEST_INTERVAL = 0.05
_GAP_IN_INTERVALS = 4
_ROUNDING = 1e-9
"""0.29 times 100 is 28.999999999999996."""


class PolicyError(ValueError):
    """The policy cannot be read; the message says why."""


@dataclass(frozen=True, slots=True)
class SecretRef:
    """One key of a Secret in the policy's namespace."""

    name: str
    key: str


@dataclass(frozen=True, slots=True)
class Control:
    """How to reach the control endpoint of a pod, and with which identity."""

    port: str | int = DEFAULT_PORT
    scheme: str = "http"
    token: SecretRef | None = None
    ca: SecretRef | None = None
    server_name: str = ""


@dataclass(frozen=True, slots=True)
class Budget:
    """How many pods at once: a number, or a share of the matched ones; never less than one."""

    number: int = 1
    share: float | None = None

    def places(self, matched: int) -> int:
        """Tell how many places there are for this many pods; a part of a place is none."""
        return max(1, self.number if self.share is None else int(self.share * matched + _ROUNDING))


@dataclass(frozen=True, slots=True)
class ReforkPolicy:
    """What one policy wants; durations in seconds, sizes in bytes."""

    namespace: str
    name: str
    uid: str
    generation: int
    created: float
    selector: selector.Selector
    pays: decide.Policy
    control: Control = Control()
    enforce: bool = False
    paused: bool = False
    interval: float = 15.0
    cooldown: float = 0.0
    budget: Budget = Budget()
    min_age: float = 120.0
    margin: float = 0.15
    schedule: Schedule = field(default_factory=Schedule)

    @property
    def key(self) -> tuple[str, str]:
        """Namespace and name."""
        return self.namespace, self.name

    @property
    def label(self) -> str:
        """The name in logs and metrics."""
        return f"{self.namespace}/{self.name}"


def parse(raw: Mapping[str, Any]) -> ReforkPolicy:
    """Read the object. Raises PolicyError."""
    meta, spec = raw["metadata"], raw.get("spec") or {}
    try:
        interval = max(parse_seconds(spec.get("interval", "15s")), _SHORTEST_INTERVAL)
        cooldown = spec.get("cooldown") or {}
        payback = spec.get("payback") or {}
        return ReforkPolicy(
            namespace=meta["namespace"],
            name=meta["name"],
            uid=meta["uid"],
            generation=meta.get("generation", 1),
            created=parse_instant(meta.get("creationTimestamp")) or 0.0,
            selector=selector.parse(spec["selector"]),
            control=_control(spec.get("control") or {}),
            pays=decide.Policy(
                thresholds=tuple(_threshold(item) for item in spec.get("triggers") or ()),
                cooldown=parse_seconds(cooldown.get("pod", "10m")),
                min_gain=parse_bytes(spec.get("minGain", "32Mi")),
                pays=parse_percent(payback.get("share", "50%")),
                gives_up_after=int(payback.get("attempts", 3)),
                longest_gap=_GAP_IN_INTERVALS * interval,
            ),
            enforce=spec.get("mode") == "Enforce",
            paused=bool(spec.get("paused", False)),
            interval=interval,
            cooldown=parse_seconds(cooldown.get("policy", "0s")),
            budget=_budget(spec.get("maxConcurrent", "10%")),
            min_age=parse_seconds(spec.get("minAge", "2m")),
            margin=parse_percent(spec.get("margin", "15%")),
            schedule=_schedule(spec.get("schedule") or {}),
        )
    except KeyError as error:
        raise PolicyError(f"the policy lacks {error}") from error
    except (QuantityError, ValueError, TypeError, AttributeError) as error:
        raise PolicyError(str(error)) from error


def _control(raw: Mapping[str, Any]) -> Control:
    return Control(
        port=raw.get("port", DEFAULT_PORT),
        scheme=raw.get("scheme", "HTTP").lower(),
        token=_secret(raw.get("tokenSecretRef"), key="token"),
        ca=_secret(raw.get("caSecretRef"), key="ca.crt"),
        server_name=raw.get("serverName", ""),
    )


def _secret(raw: Mapping[str, Any] | None, *, key: str) -> SecretRef | None:
    return SecretRef(raw["name"], raw.get("key", key)) if raw else None


def _threshold(raw: Mapping[str, Any]) -> decide.Threshold:
    level = raw["threshold"]
    return decide.Threshold(
        metric=decide.Metric(raw["metric"]),
        size=None if is_percent(level) else parse_bytes(level),
        share=parse_percent(level) if is_percent(level) else None,
        scope=_SCOPES[raw.get("scope", "Pod")],
        sustained=parse_seconds(raw.get("sustainedFor", "5m")),
    )


def _budget(raw: str | int) -> Budget:
    return Budget(share=parse_percent(raw)) if is_percent(raw) else Budget(number=int(raw))


def _schedule(raw: Mapping[str, Any]) -> Schedule:
    name = raw.get("timeZone", "UTC")
    zone(name)
    windows = tuple(
        Window(
            start=minutes(window["start"]),
            end=minutes(window["end"]),
            days=frozenset(DAYS.index(day) for day in window.get("days") or ()),
        )
        for window in raw.get("windows") or ()
    )
    return Schedule(windows, name)
