"""Carrying out one refork: command it, follow it, see what it won.

The command may be sent more than once, always under the same request id: after a time-out nobody knows whether it has
arrived. Every way in which it can end has a word.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from refork import api
from refork_operator.names import sentence
from refork_operator.podclient import PodError, RefusedError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from refork_operator.podclient import Endpoint, PodClient
    from refork_operator.pods import Pod
    from refork_operator.state import Intent

_FOLLOW_SECONDS = (0.2, 0.5, 1.0, 2.0)
_BUSY_SECONDS = 5.0
_PATIENCE_SECONDS = 60.0
_FRESH_SECONDS = 30.0
_BUSY, _TOO_SOON = 409, 429


class Outcome(StrEnum):
    """How a refork ended, as the first word of ``refork.dev/outcome`` and as a metric's label."""

    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    REFUSED = "Refused"
    UNREACHABLE = "Unreachable"
    LOST = "Lost"
    TIMED_OUT = "TimedOut"
    POSTPONED = "Postponed"


@dataclass(frozen=True, slots=True)
class Result:
    """How it ended, in a word and a sentence; ``realised`` is None if that is not known."""

    outcome: Outcome
    message: str
    realised: int | None = None
    retry_after: float = 0.0


class Reforks:
    """Reforks pods, one call each."""

    def __init__(
        self,
        client: PodClient,
        *,
        endpoint: Callable[[Pod], Awaitable[Endpoint]],
        patience: float,
        settle: float,
    ) -> None:
        self._client = client
        self._endpoint = endpoint
        self._patience = patience
        self._settle = settle

    async def carry_out(self, pod: Callable[[], Pod | None], intent: Intent, *, reason: str) -> Result:
        """Do it; ``pod`` tells the pod as it is at that moment, None when it is gone."""
        try:
            operation = await self._command(pod, intent, reason=reason)
            if isinstance(operation, Result):
                return operation
            rollout = await self._follow(pod, operation)
        except _GoneError:
            return Result(Outcome.LOST, "the pod is gone")
        if isinstance(rollout, Result):
            return rollout
        if rollout.outcome is not api.Outcome.SUCCEEDED:
            return Result(Outcome.FAILED, sentence(rollout.reason) or "the server gave no reason", realised=0)
        realised = await self._measure(pod, intent)
        return Result(Outcome.SUCCEEDED, f"generation {rollout.generation}", realised=realised)

    async def _command(self, pod: Callable[[], Pod | None], intent: Intent, *, reason: str) -> str | Result:
        """Send the command until there is an answer."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        pause = 0.5
        while True:
            try:
                endpoint = await self._endpoint(_present(pod))
                return await self._client.refork(endpoint, request_id=intent.id, reason=reason)
            except RefusedError as error:
                if error.status in (_BUSY, _TOO_SOON):
                    return Result(Outcome.POSTPONED, str(error), retry_after=error.retry_after or _BUSY_SECONDS)
                return Result(Outcome.REFUSED, str(error))
            except PodError as error:
                if time.monotonic() > deadline:
                    return Result(Outcome.UNREACHABLE, str(error))
            await asyncio.sleep(pause)
            pause = min(2 * pause, _BUSY_SECONDS)

    async def _follow(self, pod: Callable[[], Pod | None], operation: str) -> api.OperationStatus | Result:
        """Ask how it goes until it has ended."""
        deadline = time.monotonic() + self._patience
        heard = time.monotonic()
        asked = 0
        while True:
            await asyncio.sleep(_FOLLOW_SECONDS[min(asked, len(_FOLLOW_SECONDS) - 1)])
            asked += 1
            try:
                rollout = await self._client.operation(await self._endpoint(_present(pod)), operation)
            except PodError as error:
                if time.monotonic() - heard > _PATIENCE_SECONDS:
                    return Result(Outcome.UNREACHABLE, str(error))
                continue
            heard = time.monotonic()
            if rollout is None:
                return Result(Outcome.LOST, "the server was restarted meanwhile")
            if rollout.outcome is not None:
                return rollout
            if heard > deadline:
                return Result(Outcome.TIMED_OUT, f"still {rollout.phase} after {self._patience:.0f} s")

    async def _measure(self, pod: Callable[[], Pod | None], intent: Intent) -> int | None:
        """Compare memory before with memory after, as soon as the server has looked at it again."""
        if not intent.pss:
            return None
        since = time.monotonic()
        for _ in range(max(1, int(_FRESH_SECONDS / self._settle))):
            await asyncio.sleep(self._settle)
            asked = time.monotonic()
            try:
                seen = await self._client.status(await self._endpoint(_present(pod)), at=time.time(), limit=None)
            except PodError:
                continue
            if seen.server != intent.server:
                return None
            if seen.sampled_age < asked - since:
                return intent.pss - seen.sample.pss
        return None


class _GoneError(Exception):
    """There is no such pod any more."""


def _present(pod: Callable[[], Pod | None]) -> Pod:
    found = pod()
    if found is None:
        raise _GoneError
    return found
