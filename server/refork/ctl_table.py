"""How ``reforkctl`` shows a status to a person: one row a process, then the sums, then what went on.

Pure but for the printing: a status in, lines out. What a server says about itself (its application's name, a reason) is
shown as text and never obeyed: control characters and markup lose their meaning here.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from refork.ctl_words import duration, plain, size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refork import api

# Wider than any table: without a terminal nobody's screen is a reason to leave anything out.
_UNLIMITED = 10_000

_COLUMNS = ("ROLE", "SLOT", "GEN", "PID", "STATE", "REQUESTS", "AGE", "RSS", "PSS", "USS", "SHARED")
_TO_THE_LEFT = frozenset({"ROLE", "STATE"})


def show(status: api.Status) -> None:
    """Print a status."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _UNLIMITED)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    for column in _COLUMNS:
        table.add_column(column, justify="left" if column in _TO_THE_LEFT else "right", no_wrap=True)
    for row in rows(status):
        table.add_row(*[Text(plain(cell)) for cell in row])
    console.print(table)
    console.print()
    for line in lines(status):
        console.print(Text(plain(line)), soft_wrap=True)


def rows(status: api.Status) -> Iterator[tuple[str, ...]]:
    """Make the rows of the table: monitor, molds, workers by slot."""
    yield _row("monitor", "", "", status.pid, status.phase, "", status.age, status.monitor_memory)
    for mold in sorted(status.molds, key=lambda mold: mold.generation):
        yield _row("mold", "", str(mold.generation), mold.pid, mold.state, "", mold.age, mold.memory)
    for worker in sorted(status.workers, key=lambda worker: (worker.slot, worker.generation)):
        requests, generation = str(worker.requests), str(worker.generation)
        yield _row(
            "worker", str(worker.slot), generation, worker.pid, worker.state, requests, worker.age, worker.memory
        )


def _row(  # noqa: PLR0913, PLR0917  (one parameter a column)
    role: str, slot: str, generation: str, pid: int, state: str, requests: str, age: float, memory: api.Memory | None
) -> tuple[str, ...]:
    sizes = ("-", "-", "-", "-")
    if memory is not None:
        shared = f"{100 * memory.shared / memory.rss:.0f}%" if memory.rss else "-"
        sizes = (size(memory.rss), size(memory.pss), size(memory.uss), shared)
    return (role, slot, generation, str(pid), state, requests, duration(age), *sizes)


def lines(status: api.Status) -> Iterator[str]:
    """Make the lines under the table: the sums, the server, the rollouts."""
    if status.totals is not None:
        totals = status.totals
        share = f" ({100 * totals.saved / totals.rss:.0f}% of RSS)" if totals.rss else ""
        yield f"memory: {size(totals.pss)} used, {size(totals.saved)} saved by sharing{share}; RSS {size(totals.rss)}"
    if status.cgroup is not None and status.cgroup.limit:
        yield f"limit: {limit_line(status.cgroup, limit=status.cgroup.limit)}"
    yield f"gain: {gain_line(status)}"
    yield (
        f"server: {status.app} worker_class={status.worker_class} ready={status.ready}/{status.wanted} "
        f"generation={status.generation} phase={status.phase} sealing={status.sealing} refork={status.version}"
    )
    if status.rollout is not None:
        yield f"now: {rollout_line(status.rollout)}"
    if status.last_rollout is not None:
        ended = status.last_rollout.started_at + status.last_rollout.seconds
        ago = max(0.0, status.started_at + status.age - ended)
        yield f"last: {rollout_line(status.last_rollout)}, {duration(ago)} ago"
    if status.refusal:
        yield f"a refork would be refused: {status.refusal}"


def limit_line(cgroup: api.Cgroup, *, limit: int) -> str:
    """Tell how near the container is to its limit, as Kubernetes counts it."""
    killed = f"; {cgroup.oom_kills} processes killed for want of memory" if cgroup.oom_kills else ""
    share = f"{100 * cgroup.working_set / limit:.0f}%"
    return f"{size(cgroup.working_set)} of the container's {size(limit)} ({share}){killed}"


def gain_line(status: api.Status) -> str:
    """Tell what a refork is worth, and why none comes by itself any more."""
    gain, automatic = status.gain, status.automatic
    words = f"a refork would win {size(gain.predicted)}"
    if gain.realised is not None:
        promised = "" if gain.promised is None else f" of {size(gain.promised)} promised"
        words += f"; the last one won {size(gain.realised)}{promised}"
    return words + (f"; by memory: {automatic.message}" if automatic is not None and automatic.message else "")


def rollout_line(rollout: api.RolloutStatus) -> str:
    """Tell of one rollout in a line."""
    ending = str(rollout.outcome) if rollout.outcome is not None else f"is {rollout.phase}"
    steps = ", ".join(f"{step.phase} {step.seconds:.2f}" for step in rollout.steps)
    told = f" ({steps})" if steps else ""
    reason = f": {rollout.reason}" if rollout.reason else ""
    return (
        f"{rollout.kind} {rollout.id} to generation {rollout.generation} by {rollout.trigger} "
        f"{ending} after {rollout.seconds:.2f} s{told}{reason}"
    )
