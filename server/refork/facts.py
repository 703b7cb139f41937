"""What can happen to the server, as the state machine hears of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from refork.api import Trigger


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


@dataclass(frozen=True, slots=True)
class MoldReady:
    """A mold is sealed and answers."""

    generation: int


@dataclass(frozen=True, slots=True)
class MoldGone:
    """A mold has ended; ``exit_code`` is what the server should end with if it cannot boot."""

    generation: int
    reason: str
    exit_code: int = 1


@dataclass(frozen=True, slots=True)
class WorkerBorn:
    """A forked worker has spoken for the first time."""

    worker: int


@dataclass(frozen=True, slots=True)
class WorkerReady:
    """A worker has begun to accept requests."""

    worker: int


@dataclass(frozen=True, slots=True)
class WorkerGone:
    """A worker process has ended, or could not be forked; ``clean`` when it chose to."""

    worker: int
    reason: str
    clean: bool = False


@dataclass(frozen=True, slots=True)
class WorkerDrained:
    """A worker under promotion serves nothing any more."""

    worker: int


@dataclass(frozen=True, slots=True)
class PromotionRefused:
    """A drained worker must not become a mold; it ends by itself."""

    worker: int
    reason: str


@dataclass(frozen=True, slots=True)
class Tried:
    """A worker that was promoted on trial has told what would make a fork unsafe; it ends by itself."""

    worker: int
    findings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TrialRequested:
    """Somebody wants to know whether a worker could be promoted."""

    trigger: Trigger
    requests: Mapping[int, int]
    slot: int | None = None


@dataclass(frozen=True, slots=True)
class ReforkRequested:
    """Somebody wants a refork; ``requests`` tells what each worker has served."""

    trigger: Trigger
    requests: Mapping[int, int]
    slot: int | None = None


@dataclass(frozen=True, slots=True)
class RebaseRequested:
    """Somebody wants the application loaded afresh."""

    trigger: Trigger


@dataclass(frozen=True, slots=True)
class RequestsCounted:
    """What each worker has served so far, and how many of its answers were errors."""

    requests: Mapping[int, int]
    errors: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class WorkerOverdue:
    """A worker has lived too long or grown too large: it is to be replaced from the warm mold."""

    worker: int


@dataclass(frozen=True, slots=True)
class LeaksFound:
    """The workers whose memory grows like a leak; they are not promoted."""

    workers: frozenset[int]


@dataclass(frozen=True, slots=True)
class MoldMeasured:
    """How large a ready mold is, in bytes."""

    generation: int
    size: int


@dataclass(frozen=True, slots=True)
class Resized:
    """The wanted number of workers has changed."""

    wanted: int


@dataclass(frozen=True, slots=True)
class StopRequested:
    """The server is to end: gracefully, or at once."""

    graceful: bool


type Fact = (
    Tick
    | MoldReady
    | MoldGone
    | WorkerBorn
    | WorkerReady
    | WorkerGone
    | WorkerDrained
    | PromotionRefused
    | Tried
    | TrialRequested
    | ReforkRequested
    | RebaseRequested
    | RequestsCounted
    | WorkerOverdue
    | LeaksFound
    | MoldMeasured
    | Resized
    | StopRequested
)
