"""Pods that answer like refork servers: many of them behind one port, each on a loopback address of its own.

Memory is whatever a test says it is; a refork takes a moment and leaves one copy of what the workers gained. A pod can
be told to be slow, huge, absurd, or silent. What it was commanded is written down.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
from aiohttp import web

from refork import api, decide

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 1 << 20


@dataclass
class FakePod:
    """One server."""

    address: str
    gained: list[int] = field(default_factory=lambda: [10 * MIB] * 4)
    base: int = 100 * MIB
    limit: int | None = 1024 * MIB
    refork_seconds: float = 0.3
    pays: bool = True
    succeeds: bool = True
    refusal: str = ""
    behaviour: str = "ok"
    token: str = ""
    started_at: float = field(default_factory=time.time)
    generation: int = 0
    reforks: int = 0
    commands: list[dict[str, Any]] = field(default_factory=list)
    command_times: list[float] = field(default_factory=list)
    polls: list[float] = field(default_factory=list)
    operations: dict[str, api.OperationStatus] = field(default_factory=dict)
    by_request: dict[str, str] = field(default_factory=dict)
    ends_at: float = 0.0
    current: str = ""

    @property
    def reforking(self) -> bool:
        return bool(self.current)

    def restart(self) -> None:
        """Become another server: it has forgotten everything."""
        self.started_at, self.generation, self.current = time.time(), 0, ""
        self.operations, self.by_request = {}, {}

    def step(self) -> None:
        """End a refork whose time has come."""
        if not self.current or time.time() < self.ends_at:
            return
        running = self.operations[self.current]
        outcome = api.Outcome.SUCCEEDED if self.succeeds else api.Outcome.FAILED
        if self.succeeds:
            self.generation += 1
            if self.pays:
                self.base += max(self.gained, default=0)
                self.gained = [0] * len(self.gained)
        self.operations[self.current] = msgspec.structs.replace(
            running, outcome=outcome, generation=self.generation, reason="" if self.succeeds else "the canary failed"
        )
        self.current = ""

    def status(self) -> api.Status:
        self.step()
        pss = self.base + sum(self.gained)
        rss = self.base * (len(self.gained) + 1) + sum(self.gained)
        share = self.base // max(1, len(self.gained))
        last = [_rollout(operation) for operation in self.operations.values() if operation.outcome is not None]
        return api.Status(
            api=api.VERSION,
            version="0.1.0",
            python="3.13.0",
            gunicorn="27.0.0",
            app="demo:app",
            worker_class="sync",
            pid=1,
            started_at=self.started_at,
            age=time.time() - self.started_at,
            phase=api.Phase.ROLLING if self.current else api.Phase.STEADY,
            generation=self.generation,
            wanted=len(self.gained),
            ready=len(self.gained),
            sealing="on",
            refusal=self.refusal,
            monitor_memory=None,
            molds=(),
            workers=tuple(
                api.WorkerStatus(
                    slot=slot,
                    generation=self.generation,
                    pid=10 + slot,
                    state=api.WorkerState.READY,
                    age=1.0,
                    memory=api.Memory(
                        rss=self.base + gained, pss=share + gained, uss=gained, shared=self.base, private_dirty=gained
                    ),
                    gained=gained,
                )
                for slot, gained in enumerate(self.gained)
            ),
            totals=api.Totals(rss=rss, pss=pss, uss=sum(self.gained), saved=rss - pss),
            last_rollout=last[-1] if last else None,
            gain=api.Gain(predicted=decide.predicted_gain(self.gained)),
            cgroup=api.Cgroup(version=2, usage=pss, working_set=pss, limit=self.limit, oom_kills=0),
        )

    def refork(self, command: dict[str, Any]) -> tuple[int, Any]:
        self.step()
        self.commands.append(command)
        self.command_times.append(time.time())
        request = command.get("request_id", "")
        if request in self.by_request:
            return 202, api.Accepted(operation=self.by_request[request], message="again")
        if self.current or self.refusal:
            return 409, api.Refused(error=self.refusal or "a rollout is under way")
        self.reforks += 1
        name = f"{self.address}-{self.started_at:.0f}-{self.reforks}"
        self.operations[name] = api.OperationStatus(
            id=name,
            kind=api.OperationKind.REFORK,
            trigger=api.Trigger.COMMAND,
            generation=self.generation + 1,
            phase=api.Phase.SURGE,
            started_at=time.time(),
            seconds=0.0,
        )
        self.by_request[request] = name
        self.current, self.ends_at = name, time.time() + self.refork_seconds
        return 202, api.Accepted(operation=name, message="a refork has begun")

    def operation(self, name: str) -> tuple[int, Any]:
        self.step()
        found = self.operations.get(name)
        return (
            (200, found) if found is not None else (404, api.Refused(error="the server knows no operation of this id"))
        )


def _rollout(operation: api.OperationStatus) -> api.RolloutStatus:
    """Show an operation as the status shows the last rollout."""
    return api.RolloutStatus(
        id=operation.id,
        kind=api.RolloutKind.REFORK,
        trigger=operation.trigger,
        generation=operation.generation,
        phase=operation.phase,
        started_at=operation.started_at,
        seconds=operation.seconds,
        outcome=operation.outcome,
    )


class FakePods:
    """All pods of a test, on one port."""

    def __init__(self) -> None:
        self.pods: dict[str, FakePod] = {}
        self.port = 0
        self.each: Callable[[FakePod], None] = lambda pod: None
        self.most_reforking = 0
        self._loop = asyncio.new_event_loop()
        self._thread: threading.Thread | None = None
        self._started = threading.Event()
        self._stop: asyncio.Event | None = None

    def add(self, number: int, **facts: Any) -> FakePod:
        """Add the pod of this number, at 127.1.x.y."""
        address = f"127.1.{number // 250}.{number % 250 + 1}"
        self.pods[address] = FakePod(address, **facts)
        return self.pods[address]

    def start(self) -> FakePods:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._started.wait(10)
        return self

    def stop(self) -> None:
        assert self._thread is not None
        self._loop.call_soon_threadsafe(self._stop.set)  # type: ignore[union-attr]
        self._thread.join(10)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        app = web.Application()
        app.router.add_get("/v1/status", self._status)
        app.router.add_post("/v1/refork", self._refork)
        app.router.add_get("/v1/operations/{operation}", self._operation)
        runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "0.0.0.0", 0, backlog=2048).start()
        self.port = runner.addresses[0][1]
        self._started.set()
        await self._stop.wait()
        await runner.cleanup()

    def _pod(self, request: web.Request) -> FakePod:
        assert request.transport is not None
        pod = self.pods[request.transport.get_extra_info("sockname")[0]]
        if pod.token and request.headers.get("Authorization") != f"Bearer {pod.token}":
            raise web.HTTPUnauthorized(text='{"error": "who are you?"}')
        return pod

    async def _status(self, request: web.Request) -> web.StreamResponse:
        pod = self._pod(request)
        pod.polls.append(time.time())
        match pod.behaviour:
            case "nonsense":
                return web.Response(body=b"\xff\x00 not what you think {")
            case "absurd":
                wrong = msgspec.structs.replace(pod.status(), totals=api.Totals(rss=-1, pss=1 << 60, uss=0, saved=0))
                return _reply(200, wrong)
            case "huge":
                response = web.StreamResponse()
                await response.prepare(request)
                for _ in range(1 << 14):
                    await response.write(b"x" * 65536)
                return response
            case "slow":
                await asyncio.sleep(60)
            case "dripping":
                response = web.StreamResponse()
                await response.prepare(request)
                for _ in range(600):
                    await response.write(b" ")
                    await asyncio.sleep(0.1)
                return response
            case "redirect":
                raise web.HTTPFound("http://127.0.0.1:1/")
            case "error":
                return web.Response(status=500)
            case "deep":
                return web.Response(status=500, body=b'{"error": "no", "more": ' + b"[" * 20_000)
        self.each(pod)
        return _reply(200, pod.status())

    async def _refork(self, request: web.Request) -> web.Response:
        pod = self._pod(request)
        answer = _reply(*pod.refork(json.loads(await request.read())))
        self.most_reforking = max(self.most_reforking, sum(each.reforking for each in self.pods.values()))
        return answer

    async def _operation(self, request: web.Request) -> web.Response:
        return _reply(*self._pod(request).operation(request.match_info["operation"]))


def _reply(status: int, answer: Any) -> web.Response:
    response = web.Response(status=status, body=msgspec.json.encode(answer), content_type="application/json")
    response.force_close()
    return response
