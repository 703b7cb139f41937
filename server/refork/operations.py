"""What commands have led to: each operation by its id, also when it has long ended, and each command only once.

Whoever commands over a network cannot know whether an answer that never came was a command that never arrived. So a
command may carry an id of its sender's making, and the same id again is answered with the same operation. Commands of
one kind keep a distance in time, because nobody gains from a refork a tenth of a second after the last one.

All of it is bounded, and in memory: a restarted server knows nothing of what it was told before. The module knows no
clock and no process; the monitor tells it the time and what has ended.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from refork import api

if TYPE_CHECKING:
    from collections.abc import Callable

OPERATIONS_KEPT = 100
COMMANDS_KEPT = 1000


@dataclass(frozen=True, slots=True)
class Resize:
    """A change of the number of workers, until there are so many."""

    id: str
    count: int
    generation: int
    phase: api.Phase
    started: float
    started_at: float
    command: api.WorkersCommand

    def status(self, *, now: float, outcome: api.Outcome | None = None, reason: str = "") -> api.OperationStatus:
        """Describe it; ``now`` is on the clock of ``started``."""
        return api.OperationStatus(
            id=self.id,
            kind=api.OperationKind.WORKERS,
            trigger=api.Trigger.COMMAND,
            generation=self.generation,
            phase=self.phase if outcome is None else api.Phase.STEADY,
            started_at=self.started_at,
            seconds=now - self.started,
            reason=reason,
            outcome=outcome,
            asked=self.command.reason,
            request_id=self.command.request_id,
        )


class Operations:
    """The operations of one server, and the commands that they came from."""

    def __init__(self, *, kept: int = OPERATIONS_KEPT, commands_kept: int = COMMANDS_KEPT) -> None:
        self._kept = kept
        self._commands_kept = commands_kept
        self._ended: OrderedDict[str, api.OperationStatus] = OrderedDict()
        self._commands: OrderedDict[str, tuple[api.Command, api.Accepted]] = OrderedDict()
        self._asked: OrderedDict[str, api.Command] = OrderedDict()
        self._last: dict[type[msgspec.Struct], float] = {}
        self._resizes = 0
        self.resize: Resize | None = None

    # --- commands -----------------------------------------------------------------------------------------------------

    def once[C: api.Command](
        self, command: C, act: Callable[[C], api.Accepted], *, refusal: str, now: float, interval: float
    ) -> api.Accepted:
        """Carry out a command, unless it was before or comes too soon.

        Raises:
            api.Refusal: its id was another command's, or ``refusal`` says why not, or it comes too soon, or ``act``
                says why not.
        """
        known = self._commands.get(command.request_id)
        if known is not None:
            return self._again(command, *known)
        if refusal:
            raise api.Refusal(refusal)
        last = self._last.get(type(command))
        if last is not None and now - last < interval:
            wait = interval - (now - last)
            raise api.Refusal(
                f"there was such a command {now - last:.1f} s ago, and {interval:g} s must lie between them",
                status=429,
                retry_after=wait,
            )
        accepted = act(command)
        self._last[type(command)] = now
        if command.request_id:
            _remember(self._commands, command.request_id, (command, accepted), at_most=self._commands_kept)
        if accepted.operation:
            _remember(self._asked, accepted.operation, command, at_most=self._kept)
        return accepted

    def _again(self, command: api.Command, before: api.Command, accepted: api.Accepted) -> api.Accepted:
        if msgspec.structs.replace(command, reason="") != msgspec.structs.replace(before, reason=""):
            raise api.Refusal(f"the request_id {command.request_id} was given to another command before")
        return accepted

    # --- rollouts -----------------------------------------------------------------------------------------------------

    def describe(self, rollout: api.RolloutStatus) -> api.OperationStatus:
        """Describe a rollout as an operation, with what was said when it was asked for."""
        command = self._asked.get(rollout.id)
        return api.OperationStatus(
            id=rollout.id,
            kind=api.OperationKind(rollout.kind),
            trigger=rollout.trigger,
            generation=rollout.generation,
            phase=rollout.phase,
            started_at=rollout.started_at,
            seconds=rollout.seconds,
            reason=rollout.reason,
            steps=rollout.steps,
            outcome=rollout.outcome,
            asked="" if command is None else command.reason,
            request_id="" if command is None else command.request_id,
            findings=rollout.findings,
        )

    def ended(self, rollout: api.RolloutStatus) -> None:
        """Keep a rollout that has ended."""
        self._keep(self.describe(rollout))

    def look(self, operation: str, *, now: float) -> api.OperationStatus | None:
        """Find a resize under way, or anything that has ended."""
        if self.resize is not None and self.resize.id == operation:
            return self.resize.status(now=now)
        return self._ended.get(operation)

    # --- the number of workers ----------------------------------------------------------------------------------------

    def begin_resize(
        self, command: api.WorkersCommand, *, generation: int, phase: api.Phase, now: float, started_at: float
    ) -> Resize:
        """Begin to change the number of workers; one that was under way is overtaken."""
        self._resizes += 1
        if self.resize is not None:
            reason = f"overtaken by workers-{self._resizes}"
            self._keep(self.resize.status(now=now, outcome=api.Outcome.FAILED, reason=reason))
        self.resize = Resize(f"workers-{self._resizes}", command.count, generation, phase, now, started_at, command)
        return self.resize

    def resized(self, wanted: int, *, arrived: bool, now: float) -> None:
        """Tell how many workers are wanted, and whether there are so many: a resize may have ended by that."""
        resize = self.resize
        if resize is None:
            return
        if wanted != resize.count:
            reason = f"{wanted} workers are wanted since"
            self._keep(resize.status(now=now, outcome=api.Outcome.FAILED, reason=reason))
        elif arrived:
            self._keep(resize.status(now=now, outcome=api.Outcome.SUCCEEDED))
        else:
            return
        self.resize = None

    def _keep(self, operation: api.OperationStatus) -> None:
        _remember(self._ended, operation.id, operation, at_most=self._kept)


def _remember[V](memory: OrderedDict[str, V], key: str, value: V, *, at_most: int) -> None:
    """Keep a value, and forget the oldest when there are too many."""
    memory[key] = value
    memory.move_to_end(key)
    while len(memory) > at_most:
        memory.popitem(last=False)
