"""The monitor's state in the words of ``refork.api``.

Nothing is measured here: memory is what the sampler has seen last, so that no number of askers costs the workers
anything.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import gunicorn

from refork import __version__, api, memory
from refork.api import MoldState, Phase, WorkerState
from refork.population import Stage
from refork.scoreboard import Cell

if TYPE_CHECKING:
    from refork.children import MoldProcess, WorkerProcess
    from refork.monitor import Monitor
    from refork.rollout import Rollout

PYTHON = ".".join(map(str, sys.version_info[:3]))

_WORKER_STATES = {
    Stage.FORKING: WorkerState.BOOTING,
    Stage.BOOTING: WorkerState.BOOTING,
    Stage.READY: WorkerState.READY,
    Stage.PROMOTING: WorkerState.DRAINING,
    Stage.DRAINING: WorkerState.DRAINING,
}


def status(monitor: Monitor) -> api.Status:
    """Describe everything, as it is known now."""
    now = time.monotonic()
    machine = monitor.generations
    sampler = monitor.sampler
    monitor_memory = sampler.memory(monitor.pid)
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
        python=PYTHON,
        gunicorn=gunicorn.__version__,
        app=str(monitor.cfg.default_proc_name),
        worker_class=monitor.cfg.worker_class_str,
        pid=monitor.pid,
        started_at=monitor.started_at,
        age=now - monitor.started,
        phase=machine.phase,
        generation=machine.current,
        wanted=machine.wanted,
        ready=machine.population.ready(),
        sealing=_sealing(monitor),
        refusal=machine.refusal(),
        monitor_memory=monitor_memory,
        molds=molds,
        workers=workers,
        totals=memory.totals(measured),
        rollout=None if machine.rollout is None else rollout(machine.rollout, now=now),
        last_rollout=None if machine.last_rollout is None else rollout(machine.last_rollout, now=now),
        rollouts=tuple(api.RolloutCount(*key, count) for key, count in sorted(monitor.outcomes.items())),
        served=_served(monitor),
        steps=monitor.durations.status(),
        monitor_process=sampler.process(monitor.pid),
        gain=monitor.automatic.gain(),
        cgroup=sampler.cgroup,
        sampling=sampler.sampling(),
        automatic=monitor.automatic.status(),
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
        phase=Phase.STEADY if rollout.outcome is api.Outcome.SUCCEEDED else rollout.phase,
        started_at=time.time() - (now - rollout.started),
        seconds=seconds,
        reason=rollout.reason,
        steps=tuple(api.StepStatus(phase, taken) for phase, taken in rollout.steps),
        outcome=rollout.outcome,
        findings=rollout.findings,
    )


def _sealing(monitor: Monitor) -> str:
    if not monitor.cfg.seal:
        return "off"
    seals = [mold.seal for mold in monitor.children.molds.values() if mold.seal is not None]
    if any(not seal.sealed for seal in seals):
        return f"frozen: {next(seal.reason for seal in seals if not seal.sealed)}"
    return "on"


def _served(monitor: Monitor) -> tuple[api.SlotCount, ...]:
    """Add what living processes have counted to what those before them had, by slot."""
    before = monitor.nursery.served
    requests, errors = before.requests.copy(), before.errors.copy()
    cpu, faults = before.cpu.copy(), before.faults.copy()
    for worker in monitor.children.workers.values():
        requests[worker.slot] += worker.cells[Cell.REQUESTS]
        errors[worker.slot] += worker.cells[Cell.ERRORS]
        seen = monitor.sampler.process(worker.pid)
        if seen is not None:
            cpu[worker.slot] += seen.cpu_seconds
            faults[worker.slot] += seen.minor_faults
    slots = sorted({*range(monitor.generations.wanted), *requests})
    return tuple(api.SlotCount(slot, requests[slot], errors[slot], cpu[slot], faults[slot]) for slot in slots)


def _mold(monitor: Monitor, mold: MoldProcess, *, now: float) -> api.MoldStatus:
    known = monitor.generations.population.molds.get(mold.generation)
    return api.MoldStatus(
        generation=mold.generation,
        pid=mold.pid,
        state=MoldState.RETIRING if known is None else known.state,
        age=now - mold.started,
        seal=mold.seal,
        memory=monitor.sampler.memory(mold.pid),
        process=monitor.sampler.process(mold.pid),
    )


def _worker(monitor: Monitor, worker: WorkerProcess, *, now: float) -> api.WorkerStatus:
    known = monitor.generations.population.workers.get(worker.id)
    track = monitor.sampler.track(worker.pid)
    return api.WorkerStatus(
        slot=worker.slot,
        generation=worker.generation,
        pid=worker.pid,
        state=WorkerState.DRAINING if known is None else _WORKER_STATES[known.stage],
        age=now - worker.started,
        requests=worker.cells[Cell.REQUESTS],
        errors=worker.cells[Cell.ERRORS],
        in_flight=worker.cells[Cell.IN_FLIGHT],
        memory=track.memory,
        process=monitor.sampler.process(worker.pid),
        gained=track.gained,
        erosion_rate=track.rate,
        growth=monitor.upkeep.growth(worker.id),
    )
