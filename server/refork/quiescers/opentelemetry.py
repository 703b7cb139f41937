"""OpenTelemetry: export what is waiting, end the threads of batch processors and metric readers, restart them.

The SDK starts its threads in each forked process by itself, before anybody else has a say there. So while they rest,
what the threads would run does nothing.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from refork.quiescers import Rest
from refork.quiescers.threads import counted, ended, owner_of, running

SECONDS_TO_END = 5.0

_METHODS = ("worker", "_ticker")


def quiesce(_: list[Any]) -> Rest | None:
    """Rest all processors and readers that have a thread."""
    resting = [owner for thread in running() if _is_ours(owner := owner_of(thread))]
    stopped = [owner for owner in resting if (_stop_reader if hasattr(owner, "_ticker") else _stop_processor)(owner)]
    if not resting:
        return None
    did = f"exported what was waiting, ended {counted(len(stopped), 'thread')} of {len(resting)}"
    return Rest(did, wake=partial(_wake, stopped))


def _is_ours(owner: Any) -> bool:
    known = type(owner).__module__.startswith("opentelemetry.sdk.") and hasattr(owner, "_at_fork_reinit")
    return known and (hasattr(owner, "_ticker") or (hasattr(owner, "_worker_awaken") and hasattr(owner, "worker")))


def _stop_processor(processor: Any) -> bool:
    processor._shutdown = True  # noqa: SLF001 - its shutdown() would end the exporter as well
    processor._worker_awaken.set()  # noqa: SLF001
    stopped = ended([processor._worker_thread], seconds=SECONDS_TO_END)  # noqa: SLF001
    processor._shutdown = False  # noqa: SLF001
    if stopped:
        processor._worker_awaken.clear()  # noqa: SLF001
        processor.worker = _nothing
    return stopped


def _stop_reader(reader: Any) -> bool:
    reader._shutdown_event.set()  # noqa: SLF001 - as above
    stopped = ended([reader._daemon_thread], seconds=SECONDS_TO_END)  # noqa: SLF001
    if stopped:
        reader._shutdown_event.clear()  # noqa: SLF001
        reader._ticker = _nothing  # noqa: SLF001
    return stopped


def _wake(owners: list[Any]) -> None:
    for owner in owners:
        for name in _METHODS:
            vars(owner).pop(name, None)
        owner._at_fork_reinit()  # noqa: SLF001 - what the SDK itself does in a forked process


def _nothing() -> None:
    """Run in place of a resting thread's method."""
