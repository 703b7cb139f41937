"""What the state machine can decide, for the monitor to carry out in order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from refork.rollout import Rollout


@dataclass(frozen=True, slots=True)
class ExecMold:
    """Execute a fresh interpreter that loads the application."""

    generation: int


@dataclass(frozen=True, slots=True)
class ForkWorker:
    """Have the mold of ``generation`` fork a worker for ``slot``."""

    worker: int
    slot: int
    generation: int


@dataclass(frozen=True, slots=True)
class PromoteWorker:
    """Have the worker drain, seal its heap and become the mold of ``generation``; on trial, only drain and tell."""

    worker: int
    generation: int
    trial: bool = False


@dataclass(frozen=True, slots=True)
class DrainWorker:
    """Ask the worker to finish what it has and end; ``quick``: without finishing."""

    worker: int
    quick: bool = False


@dataclass(frozen=True, slots=True)
class KillWorker:
    """The worker had its time."""

    worker: int


@dataclass(frozen=True, slots=True)
class RetireMold:
    """Ask the mold to end."""

    generation: int


@dataclass(frozen=True, slots=True)
class KillMold:
    """The mold had its time, or is not to be trusted."""

    generation: int


@dataclass(frozen=True, slots=True)
class Advanced:
    """The rollout has entered a phase (for the log)."""

    rollout: Rollout


@dataclass(frozen=True, slots=True)
class Finished:
    """The rollout has ended."""

    rollout: Rollout


@dataclass(frozen=True, slots=True)
class Halt:
    """Everything has ended, or nothing can be started: leave with ``exit_code``."""

    reason: str
    exit_code: int


type Decision = (
    ExecMold
    | ForkWorker
    | PromoteWorker
    | DrainWorker
    | KillWorker
    | RetireMold
    | KillMold
    | Advanced
    | Finished
    | Halt
)
