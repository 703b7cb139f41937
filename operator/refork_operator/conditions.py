"""Conditions of a policy's status: the transition time moves only when the status does. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from refork_operator.quantity import show_instant

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition: what is (not) the case, why in a word, why in a sentence."""

    kind: str
    holds: bool
    reason: str
    message: str = ""


def write(
    conditions: Iterable[Condition], *, before: Sequence[Mapping[str, Any]], generation: int, now: float
) -> list[dict[str, Any]]:
    """Write conditions as the API wants them."""
    known = {item.get("type"): item for item in before}
    written = []
    for condition in conditions:
        status = "True" if condition.holds else "False"
        old = known.get(condition.kind, {})
        changed = old.get("status") != status or "lastTransitionTime" not in old
        written.append(
            {
                "type": condition.kind,
                "status": status,
                "reason": condition.reason,
                "message": condition.message,
                "observedGeneration": generation,
                "lastTransitionTime": show_instant(now) if changed else old["lastTransitionTime"],
            }
        )
    return written
