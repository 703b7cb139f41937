"""The monitor's state in the words of ``refork.api``."""

from __future__ import annotations

import platform
import time
from typing import TYPE_CHECKING

import gunicorn

from refork import __version__, api, memory
from refork.api import MoldState, Phase, WorkerState
from refork.generations import Stage
from refork.scoreboard import Cell

if TYPE_CHECKING:
    from refork.children import MoldProcess, WorkerProcess
    from refork.generations import Rollout
    from refork.monitor import Monitor

_WORKER_STATES = {
    Stage.FORKING: WorkerState.BOOTING,
    Stage.BOOTING: WorkerState.BOOTING,
    Stage.READY: WorkerState.READY,
    Stage.PROMOTING: WorkerState.DRAINING,
    Stage.DRAINING: WorkerState.DRAINING,
}


def status(monitor: Monitor) -> api.Status:
    """Measure and describe everything, now."""
    now = time.monotonic()
    machine = monitor.generations
    monitor_memory = memory.read(monitor.pid)
    molds = tuple(_mold(monitor, mold, now=now) for mold in monitor.children.molds.values())
    workers = tuple(
        _worker(monitor, worker, now=now)
        for worker in sorted(monitor.children.workers.values(), key=lambda w: (w.slot, w.id))
        if worker.pid
    )
    measured = [monitor_memory, *(m.memory for m in molds), *(w.memory for w in workers)]
    return api.Status(
        api=api.VERSION,
        version=__version__,
        python=platform.python_version(),
        gunicorn=gunicorn.__version__,
        app=str(monitor.cfg.default_proc_name),
        worker_class=monitor.cfg.worker_class_str,
        pid=monitor.pid,
        started_at=monitor.started_at,
        age=now - monitor.started,
        phase=machine.phase,
        generation=machine.current,
        wanted=machine.wanted,
        ready=machine.ready(),
        sealing=_sealing(monitor),
        refusal=machine.refusal(),
        monitor_memory=monitor_memory,
        molds=molds,
        workers=workers,
        totals=memory.totals(measured),
        rollout=None if machine.rollout is None else rollout(machine.rollout, now=now),
        last_rollout=None if machine.last_rollout is None else rollout(machine.last_rollout, now=now),
    )


def rollout(rollout: Rollout, *, now: float) -> api.RolloutStatus:
    """Describe a refork or rebase, under way or ended; ``now`` is on the monotonic clock."""
    ended = rollout.outcome is not None
    seconds = (rollout.since if ended else now) - rollout.started
    return api.RolloutStatus(
        id=str(rollout.id),
        kind=rollout.kind,
        trigger=rollout.trigger,
        generation=rollout.generation,
        phase=Phase.STEADY if ended else rollout.phase,
        started_at=time.time() - (now - rollout.started),
        seconds=seconds,
        reason=rollout.reason,
        steps=tuple(api.StepStatus(phase, taken) for phase, taken in rollout.steps),
        outcome=rollout.outcome,
    )


def _sealing(monitor: Monitor) -> str:
    if not monitor.cfg.seal:
        return "off"
    seals = [mold.seal for mold in monitor.children.molds.values() if mold.seal is not None]
    if any(not seal.sealed for seal in seals):
        return f"frozen: {next(seal.reason for seal in seals if not seal.sealed)}"
    return "on"


def _mold(monitor: Monitor, mold: MoldProcess, *, now: float) -> api.MoldStatus:
    known = monitor.generations.molds.get(mold.generation)
    return api.MoldStatus(
        generation=mold.generation,
        pid=mold.pid,
        state=MoldState.RETIRING if known is None else known.state,
        age=now - mold.started,
        seal=mold.seal,
        memory=memory.read(mold.pid),
    )


def _worker(monitor: Monitor, worker: WorkerProcess, *, now: float) -> api.WorkerStatus:
    known = monitor.generations.workers.get(worker.id)
    return api.WorkerStatus(
        slot=worker.slot,
        generation=worker.generation,
        pid=worker.pid,
        state=WorkerState.DRAINING if known is None else _WORKER_STATES[known.stage],
        age=now - worker.started,
        requests=worker.cells[Cell.REQUESTS],
        errors=worker.cells[Cell.ERRORS],
        in_flight=worker.cells[Cell.IN_FLIGHT],
        memory=memory.read(worker.pid),
    )
