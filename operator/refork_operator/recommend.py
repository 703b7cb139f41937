"""The saving as money: which memory request and limit the peaks that were measured after reforks allow. Pure.

A refork that nobody turns into a smaller request saves nothing on the bill. What a pod peaked at since its last refork
tells what it needs from now on; the peak *during* reforks must still fit under the limit, because a refork has a spare
worker for a while.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from refork_operator.quantity import show_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from refork_operator.pods import Workload

_STEP = 16 << 20
_ROOM_OF_LIMIT = 1.25


@dataclass(frozen=True, slots=True)
class Peak:
    """What one pod was seen to need; sizes in bytes.

    Attributes:
        settled: the most since its last refork ended.
        ever: the most since it was watched, reforks included.
    """

    workload: Workload
    settled: int
    ever: int
    request: int | None = None
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class Recommendation:
    """What one workload's pods could be given, beside what they are given; sizes in bytes."""

    workload: Workload
    pods: int
    peak: int
    request: int
    limit: int
    current_request: int | None
    current_limit: int | None

    @property
    def message(self) -> str:
        """The same in words."""
        if self.current_request is None:
            return f"request {show_bytes(self.request)}: today nothing is requested"
        spare = (self.current_request - self.request) * self.pods
        if spare <= 0:
            return f"the request of {show_bytes(self.current_request)} is not too large"
        return f"{self.pods} pods could request {show_bytes(spare)} less in all"


def recommend(peaks: Iterable[Peak], *, margin: float) -> list[Recommendation]:
    """Recommend for each workload; those that could give back most come first."""
    by_workload: dict[Workload, list[Peak]] = defaultdict(list)
    for peak in peaks:
        by_workload[peak.workload].append(peak)
    found = [_recommendation(workload, group, margin=margin) for workload, group in by_workload.items()]
    return sorted(found, key=lambda item: (-_spare(item), str(item.workload)))


def _recommendation(workload: Workload, peaks: list[Peak], *, margin: float) -> Recommendation:
    settled = max(peak.settled for peak in peaks)
    request = _round_up(settled * (1 + margin))
    ever = max(peak.ever for peak in peaks)
    return Recommendation(
        workload=workload,
        pods=len(peaks),
        peak=settled,
        request=request,
        limit=max(request, _round_up(max(ever * (1 + margin), settled * _ROOM_OF_LIMIT))),
        current_request=max((p.request for p in peaks if p.request is not None), default=None),
        current_limit=max((p.limit for p in peaks if p.limit is not None), default=None),
    )


def _spare(item: Recommendation) -> int:
    return (item.current_request - item.request) * item.pods if item.current_request is not None else 0


def _round_up(size: float) -> int:
    return -int(-size // _STEP) * _STEP
