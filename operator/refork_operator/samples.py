"""From what a server says about itself to what decisions are made by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from refork import api, decide
from refork_operator.names import sentence

if TYPE_CHECKING:
    from collections.abc import Sequence

_LARGEST = 1 << 56
"""No machine has so much memory: whoever says so is not believed."""

_MOST_GENERATIONS = 1 << 31
_END_OF_TIME = 1e11

_DECODER = msgspec.json.Decoder(api.Status)
_OPERATION = msgspec.json.Decoder(api.OperationStatus)


class NonsenseError(ValueError):
    """The answer is none that a refork server gives."""


@dataclass(frozen=True, slots=True)
class Observation:
    """What one answer said, as far as the operator needs it.

    Attributes:
        server: when the server was started: it names the server within its pod.
        last: the id of the last rollout that ended; empty if none has.
        saved: sum of RSS less sum of PSS.
        busy: why a refork would be refused now; empty if it would not.
    """

    sample: decide.Sample
    server: float
    generation: int
    last: str
    saved: int
    busy: str
    sampled_age: float


UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What the decoder raises for what is no answer; the last for JSON that is nested too deeply."""


def read(body: bytes, *, at: float, limit: int | None) -> Observation:
    """Read an answer to ``GET /v1/status``; ``limit`` is the container's, used if the server knows none.

    Raises NonsenseError.
    """
    try:
        status = _DECODER.decode(body)
    except UNREADABLE as error:
        raise NonsenseError(str(error)) from error
    if status.api != api.VERSION:
        raise NonsenseError(f"the server speaks {status.api!r}, not {api.VERSION!r}")
    return _observation(status, at=at, limit=limit)


def read_operation(body: bytes) -> api.OperationStatus:
    """Read an answer to ``GET /v1/operations/ID``. Raises NonsenseError."""
    try:
        operation = _OPERATION.decode(body)
    except UNREADABLE as error:
        raise NonsenseError(str(error)) from error
    if not 0 <= operation.generation < _MOST_GENERATIONS:
        raise NonsenseError("the server claims a generation that no server has")
    return operation


def _observation(status: api.Status, *, at: float, limit: int | None) -> Observation:
    totals = status.totals or api.Totals(rss=0, pss=0, uss=0, saved=0)
    cgroup, last = status.cgroup, status.last_rollout
    _believe(status)
    sample = decide.Sample(
        at=at,
        gain=max(status.gain.predicted, 0),
        rss=totals.rss,
        pss=totals.pss,
        uss=totals.uss,
        workers=_workers(status.workers),
        limit=(cgroup.limit if cgroup is not None and cgroup.limit else None) or limit,
        working_set=cgroup.working_set if cgroup is not None else None,
    )
    return Observation(
        sample=sample,
        server=status.started_at,
        generation=status.generation,
        last=last.id if last is not None else "",
        saved=totals.saved,
        busy=sentence(status.refusal),
        sampled_age=status.sampling.age,
    )


def _believe(status: api.Status) -> None:
    """Refuse figures that no server can have: they would end up in sums, and in the status of a policy."""
    sizes = [abs(status.gain.predicted), *(abs(worker.gained or 0) for worker in status.workers)]
    for part in (status.totals, *(worker.memory for worker in status.workers)):
        sizes += [part.rss, part.pss, part.uss] if part is not None else []
    sizes += [abs(status.totals.saved)] if status.totals is not None else []
    if (cgroup := status.cgroup) is not None:
        sizes += [cgroup.working_set, min(cgroup.limit or 0, _LARGEST - 1)]
    if not all(0 <= size < _LARGEST for size in sizes):
        raise NonsenseError("the server claims sizes that no server has")
    if not 0 <= status.generation < _MOST_GENERATIONS or not 0 <= status.started_at < _END_OF_TIME:
        raise NonsenseError("the server claims a generation or a start that no server has")


def _workers(workers: Sequence[api.WorkerStatus]) -> tuple[decide.Worker, ...]:
    return tuple(
        decide.Worker(rss=m.rss, pss=m.pss, uss=m.uss, gained=worker.gained or 0)
        for worker in workers
        if (m := worker.memory) is not None
    )
