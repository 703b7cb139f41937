"""Seal the heap: make reads stop writing, so that forked workers go on sharing memory.

Forked processes share every page until one of them writes to it, and CPython writes to an object whenever it touches
it, because it counts references. `seal` makes everything that is alive immortal in the sense of PEP 683, so that nobody
counts any more, and freezes the garbage collector's generations, so that it does not touch them either. What it
costs: an object that was sealed is never freed. The C half and its safety argument are in `_heap.c`, the essay is
docs/SEALED_HEAP.md.

This module knows nothing of workers, molds or generations: any program that forks can use it alone. It never raises:
where the heap cannot be sealed it does what can be done (`gc.freeze`) and says why. It is imported by every worker, so
it imports nothing that Python has not loaded anyway.
"""

import gc
import sys
import time
from dataclasses import dataclass, field

try:
    from refork import _heap
except ImportError as error:  # Not built, other interpreter, or a sub-interpreter (3.12+ refuses it there).
    _heap = None  # type: ignore[assignment]
    _missing = f"the C extension refork._heap is not there ({error})"

MOST_COLLECTIONS = 4
"""A finalizer may make new garbage. Some do so for ever, hence a bound."""

MOST_MORTAL_KINDS = 16
"""The report travels over a channel: the kinds with the highest counts are named, the others summed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SealReport:
    """What `seal` did."""

    sealed: bool
    """False when it fell back to `gc.freeze`."""
    reason: str = ""
    """Why it fell back, or what kept it from sealing everything."""
    objects: int = 0
    """Objects made immortal by this call."""
    total_objects: int = 0
    """Objects made immortal so far, by this process and those it was forked from."""
    bytes: int = 0
    """Memory of `objects` where it is cheap to know: a lower bound."""
    filled: int = 0
    """Bytes of holes between live objects, given up so that new objects do not land on shared pages."""
    seconds: float = 0.0
    collected: int = 0
    """Objects that the garbage collector freed first."""
    mortal: dict[str, int] = field(default_factory=dict)
    """What was left mortal: `"module.type (why)"` to count."""


def capability() -> str:
    """Return why the heap of this process cannot be sealed, or "" when it can."""
    if _heap is None:
        if sys.implementation.name != "cpython":
            return f"{sys.implementation.name} has no immortal objects"
        return _missing
    return _heap.obstacle()


def is_sealed(value: object) -> bool:
    """Return whether references to `value` are no longer counted (also true of objects that are born so)."""
    return _heap is not None and _heap.is_sealed(value)


def seal() -> SealReport:
    """Make every live object immune to reference counts; to be called right before forking.

    Call it as often as there are generations: what is sealed already is counted once and costs no writes.
    """
    start = time.perf_counter()
    collected = _collect()
    reason = capability()
    if reason:
        return SealReport(
            sealed=False, reason=_freeze(reason), collected=collected, seconds=time.perf_counter() - start
        )
    try:
        objects, size, mortal, complete = _walk()
    except Exception as error:  # noqa: BLE001  A process that cannot be sealed must still be able to fork.
        reason = _freeze(f"{type(error).__name__}: {error}")
        return SealReport(sealed=False, reason=reason, collected=collected, seconds=time.perf_counter() - start)
    gc.collect()  # It finds nothing, but it empties the interpreter's free lists: those objects lie on shared pages.
    _heap.trim()
    filled = _heap.fill_holes()
    return SealReport(
        sealed=True,
        reason="" if complete else "out of memory for the walk: sealed in part",
        objects=objects,
        total_objects=_heap.total_objects(),
        bytes=size,
        filled=filled,
        seconds=time.perf_counter() - start,
        collected=collected,
        mortal=_summary(mortal),
    )


def _walk() -> tuple[int, int, list[tuple[type, str, int]], bool]:
    """Seal what is reachable, also from what earlier calls have frozen, and freeze it.

    The collector shows nobody its permanent generation, yet a container sealed there may hold new objects by now.
    Hence unfreeze, which links one list into another and writes to no object; but keep it from collecting meanwhile,
    which would write to all of them.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        gc.unfreeze()
        return _heap.walk()
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


def _collect() -> int:
    """Collect garbage before it becomes eternal; what earlier calls have frozen is not looked at."""
    total = 0
    for _ in range(MOST_COLLECTIONS):
        found = gc.collect() or 0  # PyPy does not count
        total += found
        if found == 0:
            break
    return total


def _freeze(reason: str) -> str:
    """Do what `gc` alone can do, and pass on why it is not more."""
    freeze = getattr(gc, "freeze", None)
    if freeze is None:  # PyPy
        return reason
    freeze()
    return reason


def _summary(kinds: list[tuple[type, str, int]]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for kind, why, count in kinds:
        name = f"{_name(kind)} ({why})"
        counts[name] = counts.get(name, 0) + count
    most = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    summary = dict(most[:MOST_MORTAL_KINDS])
    rest = sum(count for _, count in most[MOST_MORTAL_KINDS:])
    return {**summary, "others": rest} if rest else summary


def _name(kind: type) -> str:
    """Name a type without running a line of code of its metaclass; some made in C have no module."""
    qualname = type.__dict__["__qualname__"].__get__(kind)
    try:
        module = type.__dict__["__module__"].__get__(kind)
    except AttributeError:
        return str(qualname)
    return f"{module}.{qualname}" if isinstance(module, str) and module != "builtins" else str(qualname)
