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
"""No slot is higher."""

MOST_WORKERS = 1024
"""So many workers can be asked for; a test compares it with what the server can keep count of."""

LONGEST_REASON = 500
LONGEST_REQUEST_ID = 253
"""As long as a name in Kubernetes may be."""


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
    """A refork promotes a warm worker; a rebase loads the application afresh; a trial only tries a promotion."""

    REFORK = "refork"
    REBASE = "rebase"
    TRIAL = "trial"


class Memory(msgspec.Struct, frozen=True):
    """One process as the kernel sees it, from ``/proc/PID/smaps_rollup`` (proc(5)).

    Attributes:
        rss: resident set, shared pages counted in full.
        pss: resident set, each shared page divided by the number of its users.
        uss: private clean and private dirty: what would be freed if the process ended.
        shared: shared clean and shared dirty.
        private_dirty: pages that this process alone has written.
        private_clean: pages of files that this process alone has mapped, and not written.
        shared_clean: pages of files that several processes have mapped.
        shared_dirty: written pages that several processes use: what forked workers share.
        pss_anon: the part of ``pss`` that is memory of the process's own making: heap and stack.
        pss_file: the part that is pages of files: programs and libraries.
        pss_shmem: the part that is shared memory and tmpfs.
        swap: swapped out, shared pages counted in full.
        ksm: merged with equal pages of other processes by the kernel.
    """

    rss: int
    pss: int
    uss: int
    shared: int
    private_dirty: int
    private_clean: int = 0
    shared_clean: int = 0
    shared_dirty: int = 0
    pss_anon: int = 0
    pss_file: int = 0
    pss_shmem: int = 0
    swap: int = 0
    ksm: int = 0


class Process(msgspec.Struct, frozen=True):
    """What else the kernel tells of a process.

    Attributes:
        minor_faults: page faults without a read from disk, among them each first write to a shared page.
        cpu_seconds: processor time used, in user and kernel mode.
        threads: how many there are.
        fds: open file descriptors; None when they are not ours to count.
        started_at: when it started, good to the second.
    """

    minor_faults: int
    cpu_seconds: float
    threads: int
    fds: int | None
    started_at: float


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
    process: Process | None = None


class Growth(StrEnum):
    """What the private memory of a worker does after its fork."""

    UNKNOWN = "unknown"
    STEADY = "steady"
    EROSION = "erosion"
    LEAK = "leak"


class WorkerStatus(msgspec.Struct, frozen=True):
    """A process that serves requests in a slot.

    Attributes:
        gained: private memory beyond what it had when it became ready: its erosion, in bytes.
        erosion_rate: how fast that has grown lately, in bytes a second; less than zero when memory is given back.
        growth: whether that levels off (erosion) or goes on (a leak).
    """

    slot: int
    generation: int
    pid: int
    state: WorkerState
    age: float
    requests: int = 0
    errors: int = 0
    in_flight: int = 0
    memory: Memory | None = None
    process: Process | None = None
    gained: int | None = None
    erosion_rate: float | None = None
    growth: Growth = Growth.UNKNOWN


class Totals(msgspec.Struct, frozen=True):
    """All processes of the server together.

    ``saved`` is the sum of RSS less the sum of PSS: what sharing pages saves now. ``shared_ratio`` is the share of the
    resident memory that more than one process uses.
    """

    rss: int
    pss: int
    uss: int
    saved: int
    shared_ratio: float = 0.0


class Gain(msgspec.Struct, frozen=True):
    """What a refork is worth, in bytes.

    Attributes:
        predicted: what one would win back now: the private memory that workers gained since their fork, less the
            largest, which stays.
        realised: what the last one won: PSS of everything before it, less PSS of everything after it. Less than zero
            when memory grew; None before the first one.
        promised: what was predicted for that last one when it began.
    """

    predicted: int
    realised: int | None = None
    promised: int | None = None


class Cgroup(msgspec.Struct, frozen=True):
    """The memory of the control group that the server runs in (in a container: of the container).

    Attributes:
        version: of control groups, 1 or 2.
        usage: everything that is charged to it, page cache included.
        working_set: usage without the page cache that could go: what Kubernetes compares with the limit.
        limit: the lowest limit that holds for it; None if there is none.
        oom_kills: processes that the kernel has killed in it for want of memory.
        psi_some_avg10: share of the last 10 seconds, in percent, in which some process waited for memory; version 2.
        psi_full_avg10: the same for all processes at once.
    """

    version: int
    usage: int
    working_set: int
    limit: int | None
    oom_kills: int
    psi_some_avg10: float | None = None
    psi_full_avg10: float | None = None


class Sampling(msgspec.Struct, frozen=True):
    """What it costs to know the memory of all processes.

    Attributes:
        interval: seconds from one look at a process to the next, as the budget allows.
        seconds: processor time spent on it since the server started.
        cpu_share: share of one processor that it has taken over the last minutes.
        age: seconds since the least recent sample that is shown was taken.
    """

    interval: float
    seconds: float
    cpu_share: float
    age: float


class StepStatus(msgspec.Struct, frozen=True):
    """How long one step of a rollout took."""

    phase: Phase
    seconds: float


class RolloutStatus(msgspec.Struct, frozen=True):
    """A refork, a rebase or a trial, under way (``outcome`` is None) or ended; ``findings`` are those of a trial."""

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
    findings: tuple[str, ...] = ()


class RolloutCount(msgspec.Struct, frozen=True):
    """How many rollouts of one kind, asked for in one way, ended in one way since the server started."""

    kind: RolloutKind
    trigger: Trigger
    outcome: Outcome
    count: int


STEP_BOUNDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
"""Upper bounds, in seconds, of the classes that durations of steps are counted in; the last class has none."""


class StepDurations(msgspec.Struct, frozen=True):
    """How long one step took, over all rollouts: a histogram.

    Attributes:
        phase: the step.
        counts: how many took so long: one number for each of ``STEP_BOUNDS``, and one for what took longer.
        seconds: the sum.
    """

    phase: Phase
    counts: tuple[int, ...]
    seconds: float


class Automatic(msgspec.Struct, frozen=True):
    """What refork does by itself about memory: see the setting ``refork_gain``.

    Attributes:
        reason: one stable word: why a refork is, or is not, asked for (``refork.decide.Reason``).
        message: the same in a sentence.
        unpaid: how many reforks in a row won too little.
        stopped: it has given up, because reforks do not pay, until a reload or a restart.
    """

    reason: str
    message: str
    unpaid: int
    stopped: bool


class SlotCount(msgspec.Struct, frozen=True):
    """What a slot has served since the server started, by whichever processes: never less than it was before.

    Processor time and page faults are those that were seen at the last look.
    """

    slot: int
    requests: int
    errors: int
    cpu_seconds: float = 0.0
    minor_faults: int = 0


class Status(msgspec.Struct, frozen=True):
    """The answer to ``GET /v1/status``.

    ``refusal`` is the sentence a refork request would get now; empty when a refork may start. Memory is what was seen
    at the last look (``sampling.age`` seconds ago, or less): None for a process that nobody has looked at yet.
    ``automatic`` is None unless reforks by memory are switched on.
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
    steps: tuple[StepDurations, ...] = ()
    monitor_process: Process | None = None
    gain: Gain = Gain(predicted=0)
    cgroup: Cgroup | None = None
    sampling: Sampling = Sampling(interval=0.0, seconds=0.0, cpu_share=0.0, age=0.0)
    automatic: Automatic | None = None


class OperationKind(StrEnum):
    """What an operation does; those that are rollouts have the names of ``RolloutKind``."""

    REFORK = "refork"
    REBASE = "rebase"
    TRIAL = "trial"
    WORKERS = "workers"


class OperationStatus(msgspec.Struct, frozen=True):
    """The answer to ``GET /v1/operations/{id}``: under way (``outcome`` is None) or ended.

    Attributes:
        reason: why it failed.
        asked: the reason that was given with the command; empty for what the server did by itself.
        request_id: as given with the command.
        findings: of a trial: what would make a fork unsafe, one sentence each.
    """

    id: str
    kind: OperationKind
    trigger: Trigger
    generation: int
    phase: Phase
    started_at: float
    seconds: float
    reason: str = ""
    steps: tuple[StepStatus, ...] = ()
    outcome: Outcome | None = None
    asked: str = ""
    request_id: str = ""
    findings: tuple[str, ...] = ()


class PhaseEvent(msgspec.Struct, frozen=True):
    """The server as a whole has entered another phase."""

    phase: Phase
    generation: int


class WorkerChange(StrEnum):
    """What happened to a worker."""

    READY = "ready"
    GONE = "gone"


class WorkerEvent(msgspec.Struct, frozen=True):
    """A worker has become ready, or has ended: ``reason`` says how."""

    slot: int
    generation: int
    pid: int
    change: WorkerChange
    reason: str = ""


EVENTS: dict[str, type[msgspec.Struct]] = {
    "status": Status,
    "phase": PhaseEvent,
    "worker": WorkerEvent,
    "rollout": RolloutStatus,
}
"""The events of ``GET /v1/events``, and what each of them carries."""


Why = Annotated[
    str,
    msgspec.Meta(max_length=LONGEST_REASON, description="Why this is asked for: it is written to the server's log."),
]

RequestId = Annotated[
    str,
    msgspec.Meta(
        max_length=LONGEST_REQUEST_ID,
        pattern=r"^[A-Za-z0-9._:-]*$(?!\n)",  # Python's $ stands before a line break at the end, too
        description="Chosen by who asks: the same command with the same id again is carried out once.",
    ),
]


class ReforkCommand(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of ``POST /v1/refork``: promote the warmest worker, or the one in ``slot``."""

    slot: Annotated[int, msgspec.Meta(ge=0, le=MOST)] | None = None
    reason: Why = ""
    request_id: RequestId = ""


class RebaseCommand(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of ``POST /v1/rebase``: load the application afresh."""

    reason: Why = ""
    request_id: RequestId = ""


class WorkersCommand(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of ``POST /v1/workers``: change the wanted number of workers."""

    count: Annotated[int, msgspec.Meta(ge=1, le=MOST_WORKERS)]
    reason: Why = ""
    request_id: RequestId = ""


class DoctorCommand(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of ``POST /v1/doctor``: promote the warmest worker, or the one in ``slot``, on trial, and look at it."""

    slot: Annotated[int, msgspec.Meta(ge=0, le=MOST)] | None = None
    reason: Why = ""
    request_id: RequestId = ""


type Command = ReforkCommand | RebaseCommand | WorkersCommand | DoctorCommand


class Accepted(msgspec.Struct, frozen=True):
    """202: the command was taken; follow it at ``GET /v1/operations/{operation}``."""

    operation: str
    message: str


class Refused(msgspec.Struct, frozen=True):
    """Any 4xx: why not, in one sentence."""

    error: str


class Refusal(Exception):
    """The server will not do this, or not now; on the wire it becomes a ``Refused``.

    Attributes:
        reason: why not, in one sentence.
        status: the HTTP status that it is answered with.
        retry_after: seconds after which to try again; 0 if that would be of no use.
    """

    def __init__(self, reason: str, *, status: int = 409, retry_after: float = 0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status
        self.retry_after = retry_after
