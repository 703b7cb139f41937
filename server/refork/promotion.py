"""From a drained worker to a mold: put to rest what can rest, make sure that nothing unsafe to fork is left.

What a fork cannot carry is a thread (it is gone in the child, and so is the hope that it ever releases a lock) and a
connection (two processes that speak on one corrupt it). A worker that still has either when it has drained is not
promoted, and says which. On trial, it says so in any case, and ends.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING, Any

from refork import audit, evidence, fork_safety, quiescers
from refork import channel as wire
from refork.lineage import mold_signals

if TYPE_CHECKING:
    from refork.lineage import Lineage
    from refork.mold import Mold
    from refork.worker import Worker

SECONDS_TO_CONCLUDE = evidence.THREAD_PATIENCE + 1.0
"""So long before its deadline a promotion stops waiting for sections, to say why it did not succeed."""


def promote(worker: Worker, order: wire.Promote) -> Mold | None:
    """Make a mold of a worker whose loop has ended; None, with the reason sent, if it must not be one."""
    from refork.mold import Mold  # noqa: PLC0415 - the two roles follow each other in turn

    lineage = worker.lineage
    policy = policy_of(lineage.cfg)
    try:
        found = _examine(worker, order, policy)
    except _HookFailed as failure:
        _decline(worker, order, (str(failure),))
        return None
    if order.trial or (found and policy.mode is audit.Mode.REFUSE):
        _decline(worker, order, audit.sentences(found))
        return None
    say(found, policy, lineage.log, who=f"worker[{worker.slot}]")
    worker.channel.send(wire.Drained())
    worker.gunicorn_worker = None
    return Mold(lineage, worker.channel, order.generation, promoted=True)


def settle_loaded(lineage: Lineage, *, own: int, generation: int) -> None:
    """Put to rest what the application has begun while it was loaded, and warn of what workers will not have.

    Nothing is refused here: an application that is loaded before it is forked has always been at this risk.
    """
    policy = policy_of(lineage.cfg)
    try:
        quiescers.quiesce(lineage.log)
        found = audit.findings(_facts(lineage, own=own, patience=0.0), policy)
    except Exception:
        lineage.log.exception("mold gen=%s could not be looked at", generation)
        return
    say(found, policy, lineage.log, who=f"mold gen={generation}")


def policy_of(cfg: Any) -> audit.Policy:
    """Return the settings that decide what a finding does."""
    return audit.Policy(audit.Mode(cfg.fork_safety), tuple(cfg.fork_safety_allow))


def say(found: tuple[audit.Finding, ...], policy: audit.Policy, log: Any, *, who: str) -> None:
    """Write down what was found and is lived with."""
    write = log.debug if policy.mode is audit.Mode.ALLOW else log.warning
    for finding in found:
        write("%s is forked from although %s", who, finding)


class _HookFailed(Exception):
    """A function that was to make the process safe to fork from did not get to its end."""


def _decline(worker: Worker, order: wire.Promote, reasons: tuple[str, ...]) -> None:
    """Say why the worker ends instead of being a mold."""
    if order.trial:
        worker.channel.send(wire.Tried(reasons))
        return
    reason = f"worker[{worker.slot}] is not safe to fork from: {'; '.join(reasons)}"
    worker.lineage.log.warning("%s", reason)
    worker.channel.send(wire.PromotionRefused(wire.clip(reason)))


def _examine(worker: Worker, order: wire.Promote, policy: audit.Policy) -> tuple[audit.Finding, ...]:
    """Bring the worker to rest, and return what is unsafe nevertheless."""
    lineage = worker.lineage
    sections = _wait_for_sections(worker, deadline=order.deadline)
    try:
        lineage.cfg.before_promote(worker.gunicorn_worker)
        fork_safety.run_hooks("before_promote")
    except Exception as error:
        lineage.log.exception("the hook before_promote failed")
        raise _HookFailed(f"the hook before_promote failed: {error!r}") from error
    mold_signals(lineage.log)
    _clear(worker)
    quiescers.quiesce(lineage.log)
    return audit.findings(_facts(lineage, own=worker.channel.fileno(), sections=sections), policy)


def _wait_for_sections(worker: Worker, *, deadline: float) -> tuple[str, ...]:
    cut: tuple[str, ...] = getattr(worker.gunicorn_worker, "sections_cut", ())
    held = fork_safety.held()
    if not held:
        return cut
    worker.lineage.log.info("pid=%s waits for critical sections: %s", os.getpid(), ", ".join(held))
    return cut + fork_safety.wait(deadline=deadline - SECONDS_TO_CONCLUDE)


def _facts(
    lineage: Lineage, *, own: int, sections: tuple[str, ...] = (), patience: float = evidence.THREAD_PATIENCE
) -> audit.Facts:
    ours = (own, lineage.scoreboard.fd, *(listener.fileno() for listener in lineage.listeners))
    return evidence.collect(own=ours, log=lineage.log, sections=sections, patience=patience)


def _clear(worker: Worker) -> None:
    """Close what gunicorn's worker had open for itself and leaves to the end of the process."""
    signal.set_wakeup_fd(-1)
    for fd in worker.gunicorn_worker.PIPE:
        os.close(fd)
    worker.gunicorn_worker.PIPE = []
    worker.lineage.close_listeners()
    asyncio = sys.modules.get("asyncio")
    if asyncio is not None:
        asyncio.set_event_loop(None)
