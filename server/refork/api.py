"""What refork says about itself, and what it can be told: the types on the wire.

One module for the monitor that answers, ``reforkctl`` that asks, and the operator that does both over the network. It
knows no process, no socket and no clock; every size is in bytes, every duration in seconds, every instant a Unix time.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import msgspec

VERSION = "v1"

MOST = 65535
"""No slot and no number of workers is higher."""


class Phase(StrEnum):
    """The step that the server as a whole is in."""

    BOOTING = "booting"
    STEADY = "steady"
    SURGE = "surge"
    DRAINING = "draining"
    SEALING = "sealing"
    LOADING = "loading"
    CANARY = "canary"
    ROLLING = "rolling"
    RETIRING = "retiring"
    STOPPING = "stopping"


class WorkerState(StrEnum):
    """The life of one worker process."""

    BOOTING = "booting"
    READY = "ready"
    DRAINING = "draining"


class MoldState(StrEnum):
    """The life of one mold."""

    LOADING = "loading"
    READY = "ready"
    RETIRING = "retiring"


class Trigger(StrEnum):
    """Who or what asked for a rollout."""

    COMMAND = "command"
    SIGNAL = "signal"
    REQUESTS = "requests"
    RELOAD = "reload"
    MEMORY = "memory"


class Outcome(StrEnum):
    """How a rollout ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"


class RolloutKind(StrEnum):
    """A refork promotes a warm worker; a rebase loads the application afresh."""

    REFORK = "refork"
    REBASE = "rebase"


class Memory(msgspec.Struct, frozen=True):
    """One process as the kernel sees it, from ``/proc/PID/smaps_rollup`` (proc(5)).

    Attributes:
        rss: resident set, shared pages counted in full.
        pss: resident set, each shared page divided by the number of its users.
        uss: private clean and private dirty: what would be freed if the process ended.
        shared: shared clean and shared dirty.
        private_dirty: pages that this process alone has written.
    """

    rss: int
    pss: int
    uss: int
    shared: int
    private_dirty: int


class SealStatus(msgspec.Struct, frozen=True):
    """What sealing a mold's heap did (see ``refork.heap.SealReport``)."""

    sealed: bool
    reason: str
    objects: int
    total_objects: int
    seconds: float


class MoldStatus(msgspec.Struct, frozen=True):
    """A process that serves nothing and forks workers."""

    generation: int
    pid: int
    state: MoldState
    age: float
    seal: SealStatus | None = None
    memory: Memory | None = None


class WorkerStatus(msgspec.Struct, frozen=True):
    """A process that serves requests in a slot."""

    slot: int
    generation: int
    pid: int
    state: WorkerState
    age: float
    requests: int = 0
    errors: int = 0
    in_flight: int = 0
    memory: Memory | None = None


class Totals(msgspec.Struct, frozen=True):
    """All processes of the server together.

    ``saved`` is the sum of RSS less the sum of PSS: what sharing pages saves now.
    """

    rss: int
    pss: int
    uss: int
    saved: int


class StepStatus(msgspec.Struct, frozen=True):
    """How long one step of a rollout took."""

    phase: Phase
    seconds: float


class RolloutStatus(msgspec.Struct, frozen=True):
    """A refork or rebase, under way (``outcome`` is None) or ended."""

    id: str
    kind: RolloutKind
    trigger: Trigger
    generation: int
    phase: Phase
    started_at: float
    seconds: float
    reason: str = ""
    steps: tuple[StepStatus, ...] = ()
    outcome: Outcome | None = None


class RolloutCount(msgspec.Struct, frozen=True):
    """How many rollouts of one kind, asked for in one way, ended in one way since the server started."""

    kind: RolloutKind
    trigger: Trigger
    outcome: Outcome
    count: int


class SlotCount(msgspec.Struct, frozen=True):
    """What a slot has served since the server started, by whichever processes: never less than it was before."""

    slot: int
    requests: int
    errors: int


class Status(msgspec.Struct, frozen=True):
    """The answer to ``GET /v1/status``.

    ``refusal`` is the sentence a refork request would get now; empty when a refork may start.
    """

    api: str
    version: str
    python: str
    gunicorn: str
    app: str
    worker_class: str
    pid: int
    started_at: float
    age: float
    phase: Phase
    generation: int
    wanted: int
    ready: int
    sealing: str
    refusal: str
    monitor_memory: Memory | None
    molds: tuple[MoldStatus, ...]
    workers: tuple[WorkerStatus, ...]
    totals: Totals | None
    rollout: RolloutStatus | None = None
    last_rollout: RolloutStatus | None = None
    rollouts: tuple[RolloutCount, ...] = ()
    served: tuple[SlotCount, ...] = ()


class ReforkCommand(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of ``POST /v1/refork``: promote the warmest worker, or the one in ``slot``."""

    slot: Annotated[int, msgspec.Meta(ge=0, le=MOST)] | None = None


class RebaseCommand(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of ``POST /v1/rebase``: load the application afresh."""


class WorkersCommand(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of ``POST /v1/workers``: change the wanted number of workers."""

    count: Annotated[int, msgspec.Meta(ge=1, le=MOST)]


class Accepted(msgspec.Struct, frozen=True):
    """202: the command was taken; follow it at ``GET /v1/operations/{operation}``."""

    operation: str
    message: str


class Refused(msgspec.Struct, frozen=True):
    """Any 4xx: why not, in one sentence."""

    error: str
