"""A FastAPI application with a model that lifespan loads, a task in the background, and tasks after answers.

Startup runs again in every worker that a refork creates, so it takes the model as it finds it: the first worker loads
it into the module, the workers forked from that one find it there, warm and shared. What belongs to one process only,
the background task here, starts and ends with each lifespan.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator

from fastapi import BackgroundTasks, FastAPI, Response

MODEL_SIZE = int(os.environ.get("MODEL_SIZE", "50000"))

model: dict[str, tuple[int, float]] = {}
counts = {"starts": 0, "loads": 0, "beats": 0, "answers": 0}


def load_model() -> None:
    """Expensive, therefore done once and inherited."""
    counts["loads"] += 1
    model.update((f"feature{number}", (number, number / MODEL_SIZE)) for number in range(MODEL_SIZE))


async def beat() -> None:
    """What a worker does beside answering."""
    while True:
        counts["beats"] += 1
        await asyncio.sleep(0.1)


@contextlib.asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Start and end with the worker."""
    counts["starts"] += 1
    if not model:
        load_model()
    background = asyncio.create_task(beat())
    yield
    background.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await background


app = FastAPI(lifespan=lifespan)


def count_answer() -> None:
    """What is done after an answer."""
    counts["answers"] += 1


@app.get("/")
async def predict(response: Response, tasks: BackgroundTasks, feature: str = "feature1") -> dict[str, object]:
    """Look one feature up."""
    response.headers["X-Worker-Pid"] = str(os.getpid())
    tasks.add_task(count_answer)
    return {"feature": feature, "weights": model.get(feature), "size": len(model)}


@app.get("/health")
async def health(response: Response) -> dict[str, object]:
    """Answer without touching the model."""
    response.headers["X-Worker-Pid"] = str(os.getpid())
    return {"status": "ok", **counts}
