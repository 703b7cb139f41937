"""What lifespan startup has loaded, carried across a promotion (``lifespan_keep``).

An ASGI application's lifespan is one call that is suspended while the application serves. By default it is resumed to
shut down when its worker is promoted, and each new worker makes the call anew. Kept, it stays suspended for good: its
task is taken out of the event loop's hands, so that neither the end of the loop nor the garbage collector throws
anything into it, and the workers of the next generation serve with the state it has left, without a startup of their
own. What it holds open (connections, tasks) is then shared by all of them, and its shutdown never runs.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from refork.workers.counting import Application, Event, Receive, Send


@dataclass(frozen=True, slots=True)
class KeptLifespan:
    """A suspended lifespan; ``task`` is only held so that nothing ever resumes or destroys it."""

    app: Any
    task: asyncio.Task[Any]
    state: dict[str, Any]

    @classmethod
    def of(cls, app: Any) -> Self | None:
        """Return what was kept of ``app``, if this process descends from a worker that kept it."""
        return next((kept for kept in _kept if kept.app is app), None)  # type: ignore[return-value]

    def without_lifespan(self, app: Application) -> Application:
        """Return ``app`` with a lifespan that starts and shuts down at once."""

        async def served(scope: Event, receive: Receive, send: Send) -> None:
            if scope["type"] != "lifespan":
                await app(scope, receive, send)
                return
            for step in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{step}.complete"})

        return served

    def for_uvicorn(self) -> Any:
        """Return what uvicorn takes for a lifespan, with this one's state."""
        from uvicorn.lifespan.off import LifespanOff  # noqa: PLC0415 - only where uvicorn serves

        lifespan = LifespanOff(None)  # type: ignore[arg-type]
        lifespan.state = self.state
        return lifespan


_kept: list[KeptLifespan] = []


def keep(app: Any, *, task: asyncio.Task[Any], state: dict[str, Any]) -> None:
    """Take the suspended lifespan ``task`` of ``app`` out of its loop, and remember it in all descendants."""
    if KeptLifespan.of(app) is not None:
        return
    asyncio._unregister_task(task)  # noqa: SLF001 - documented under "Extending asyncio"
    _kept.append(KeptLifespan(app, task, state))
