"""What ``reforkctl top`` shows: the saved memory first, then who has it, then what can be done about it.

Pure: a status and what the person has chosen in, something that rich can print out. What a server says about itself
loses its control characters here, as in ``refork.ctl_table``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

from refork import api
from refork.ctl_table import duration, plain, rollout_line, size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import RenderableType

UNICODE, ASCII = ("█", "▒", "·"), ("#", "=", ".")
"""The letters of bars: private, shared, saved. They differ in shape, so that colour is not needed to tell them."""

_STEPS = {
    api.RolloutKind.REFORK: (
        api.Phase.SURGE,
        api.Phase.DRAINING,
        api.Phase.SEALING,
        api.Phase.CANARY,
        api.Phase.ROLLING,
        api.Phase.RETIRING,
    ),
    api.RolloutKind.REBASE: (api.Phase.LOADING, api.Phase.CANARY, api.Phase.ROLLING, api.Phase.RETIRING),
}
_NARROWEST_BAR = 10
_WIDTH_OF_FIGURES = 86
_SECONDS_OF_RATE = 10.0
_HELP = "r refork   s sort   q quit"


class Sort(StrEnum):
    """What the workers are sorted by; each but the first with the largest on top."""

    SLOT = "slot"
    PRIVATE = "private"
    PSS = "PSS"
    REQUESTS = "requests"
    AGE = "age"

    def next(self) -> Sort:
        """Return the one that the key goes on to."""
        order = list(Sort)
        return order[(order.index(self) + 1) % len(order)]


@dataclass(slots=True)
class View:
    """What is on the screen: the last status, and what the person has chosen and been told."""

    sort: Sort = Sort.SLOT
    asking: bool = False
    message: str = ""
    lost: str = ""
    status: api.Status | None = None
    seen: list[tuple[float, int]] = field(default_factory=list)

    def take(self, status: api.Status) -> None:
        """Show this from now on."""
        total = sum(slot.requests for slot in status.served)
        if self.seen and (total < self.seen[-1][1] or status.age < self.seen[-1][0]):
            self.seen.clear()  # it has started anew
        self.seen = [look for look in self.seen if look[0] > status.age - _SECONDS_OF_RATE] + [(status.age, total)]
        self.status, self.lost = status, ""

    @property
    def rate(self) -> float | None:
        """Requests a second, over the last few of them."""
        (first, before), (last, after) = (self.seen[0], self.seen[-1]) if self.seen else ((0.0, 0), (0.0, 0))
        return (after - before) / (last - first) if last > first else None


def picture(view: View, *, width: int, letters: tuple[str, str, str] = UNICODE, keys: bool = True) -> RenderableType:
    """Draw everything: the headline, the sum, what goes on, the processes, what can be done."""
    status = view.status
    if status is None:
        return Text("no status yet")
    parts: list[RenderableType] = [
        *_headline(status, width=width, letters=letters),
        Text(""),
        *(Text(plain(line), overflow="ellipsis", no_wrap=True) for line in _facts(view, status)),
        _steps(status),
        Text(""),
        _table(status, sort=view.sort, width=width, letters=letters),
    ]
    if keys:
        parts += [Text(""), _footer(view)]
    return Group(*parts)


def _headline(status: api.Status, *, width: int, letters: tuple[str, str, str]) -> Iterator[Text]:
    totals = status.totals
    if totals is None or not totals.rss:
        yield Text("nothing is measured yet", style="bold")
        return
    share = 100 * totals.saved / totals.rss
    yield Text.assemble(
        (f"{size(totals.saved)} saved by sharing", "bold green"),
        f"   {size(totals.pss)} in use, where {size(totals.rss)} would be without sharing: {share:.0f}% less",
        overflow="ellipsis",
        no_wrap=True,
    )
    once = max(0, totals.pss - totals.uss)
    parts = ((totals.uss, letters[0], "red"), (once, letters[1], "blue"), (totals.saved, letters[2], "green"))
    yield _bar(parts, whole=totals.rss, width=width)
    yield Text.assemble(
        (letters[0], "red"), f" private {size(totals.uss)}   ",
        (letters[1], "blue"), f" shared, held once {size(once)}   ",
        (letters[2], "green"), f" saved {size(totals.saved)}",
        overflow="ellipsis", no_wrap=True,
    )  # fmt: skip


def _facts(view: View, status: api.Status) -> Iterator[str]:
    rate = "-" if view.rate is None else f"{view.rate:.0f}"
    yield (
        f"{status.app}   {status.worker_class}   ready {status.ready}/{status.wanted}   "
        f"generation {status.generation}   sealing {status.sealing}   {rate} requests/s   up {duration(status.age)}"
    )
    yield _gain(status)


def _gain(status: api.Status) -> str:
    gain = getattr(status, "gain", None)
    words = "a refork would win: not known yet"
    if gain is not None and gain.predicted is not None:
        words = f"a refork would win {size(gain.predicted)}"
    if gain is not None and gain.realised is not None:
        words += f"; the last one won {size(gain.realised)}"
    return words + (f"; not now: {status.refusal}" if status.refusal else "")


def _steps(status: api.Status) -> Text:
    rollout = status.rollout or status.last_rollout
    if rollout is None:
        return Text(f"{status.phase}; no refork yet")
    if rollout.outcome is not None:
        ended = rollout.started_at + rollout.seconds
        ago = duration(max(0.0, status.started_at + status.age - ended))
        style = "red" if rollout.outcome is api.Outcome.FAILED else ""
        line = f"{status.phase}; last: {rollout_line(rollout)}, {ago} ago"
        return Text(plain(line), style=style, overflow="ellipsis", no_wrap=True)
    done = {step.phase: step.seconds for step in rollout.steps}
    names = list(dict.fromkeys([*_STEPS[rollout.kind], *done, rollout.phase]))
    text = Text(f"{rollout.kind} to generation {rollout.generation}: ", overflow="ellipsis", no_wrap=True)
    for name in names:
        if name == rollout.phase:
            text.append(f"[{name}] ", style="bold reverse")
        elif name in done:
            text.append(f"{name} {done[name]:.2f} s  ", style="blue")
        else:
            text.append(f"{name}  ", style="dim")
    return text


def _table(status: api.Status, *, sort: Sort, width: int, letters: tuple[str, str, str]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold", pad_edge=False)
    for column in ("PROCESS", "GEN", "STATE", "REQUESTS", "AGE", "RSS", "PSS", "PRIVATE", "GAINED"):
        table.add_column(column, justify="left" if column in {"PROCESS", "STATE"} else "right", no_wrap=True)
    room = width - _WIDTH_OF_FIGURES
    if room >= _NARROWEST_BAR:
        table.add_column("PRIVATE, SHARED", no_wrap=True)
    lines = list(_lines(status, sort=sort))
    most = max((memory.rss for *_, memory in lines if memory is not None), default=0)
    for name, generation, state, requests, age, gained, memory in lines:
        sizes = (size(memory.rss), size(memory.pss), size(memory.uss)) if memory is not None else ("-", "-", "-")
        cells = [name, generation, state, requests, duration(age), *sizes, gained]
        bar = [_memory_bar(memory, whole=most, width=room, letters=letters)] if room >= _NARROWEST_BAR else []
        table.add_row(*[Text(plain(cell)) for cell in cells], *bar)
    return table


type _Line = tuple[str, str, str, str, float, str, api.Memory | None]


def _lines(status: api.Status, *, sort: Sort) -> Iterator[_Line]:
    yield "monitor", "", "", "", status.age, "", status.monitor_memory
    for mold in sorted(status.molds, key=lambda mold: mold.generation):
        yield "mold", str(mold.generation), mold.state, "", mold.age, "", mold.memory
    for worker in sorted(status.workers, key=_KEYS[sort]):
        gained = getattr(worker, "gained", None)
        yield (
            f"worker {worker.slot}",
            str(worker.generation),
            worker.state,
            str(worker.requests),
            worker.age,
            size(gained) if gained is not None else "-",
            worker.memory,
        )


_KEYS: dict[Sort, Callable[[api.WorkerStatus], tuple[float, int, int]]] = {
    Sort.SLOT: lambda worker: (0, worker.slot, worker.generation),
    Sort.PRIVATE: lambda worker: (-(worker.memory.uss if worker.memory else 0), worker.slot, worker.generation),
    Sort.PSS: lambda worker: (-(worker.memory.pss if worker.memory else 0), worker.slot, worker.generation),
    Sort.REQUESTS: lambda worker: (-worker.requests, worker.slot, worker.generation),
    Sort.AGE: lambda worker: (-worker.age, worker.slot, worker.generation),
}


def _memory_bar(memory: api.Memory | None, *, whole: int, width: int, letters: tuple[str, str, str]) -> Text:
    if memory is None:
        return Text("")
    parts = ((memory.uss, letters[0], "red"), (memory.rss - memory.uss, letters[1], "blue"))
    return _bar(parts, whole=whole, width=width)


def _bar(parts: tuple[tuple[int, str, str], ...], *, whole: int, width: int) -> Text:
    """Draw parts of a whole; each ends where the sum up to it ends, so that rounding never adds up."""
    ends = [0]
    for part, _, _ in parts:
        ends.append(ends[-1] + max(0, part))
    cells = [min(width, round(width * end / max(whole, 1))) for end in ends]
    text = Text(no_wrap=True, overflow="crop")
    for (start, end), (_, letter, style) in zip(pairwise(cells), parts, strict=True):
        text.append(letter * (end - start), style=style)
    return text


def _footer(view: View) -> Text:
    if view.asking:
        return Text("refork now? [y/n] ", style="bold reverse")
    footer = Text(f"{_HELP}   sorted by {view.sort}", style="dim", overflow="ellipsis", no_wrap=True)
    if view.lost:
        return Text(f"{plain(view.lost)}; trying again   q quit", style="bold red", overflow="ellipsis", no_wrap=True)
    return Text.assemble((f"{plain(view.message)}   ", "bold"), footer) if view.message else footer
