"""The settings that the state machine decides by."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Policy:
    """How careful, how patient and how often; durations in seconds."""

    surge: int = 1
    max_unavailable: int = 0
    spawn_timeout: float = 60.0
    promote_timeout: float = 60.0
    graceful_timeout: float = 30.0
    canary_seconds: float = 2.0
    max_generations: int = 0
    max_growth: float = math.inf
    schedule: tuple[int, ...] = ()
