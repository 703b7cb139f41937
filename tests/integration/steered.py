"""A server without workers, for the tests of its endpoints: real endpoints, a pretended monitor.

As a script it is that server; imported, it starts one and asks it. Its rollouts go one step further each time they are
looked at, so that no test has to wait for time to pass.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import refork
from refork import api, endpoint
from refork.address import parse_unix
from refork.api import Refusal
from refork.bind import BindError
from refork.cluster import keys_of
from refork.control import ControlServer
from refork.control_tcp import ControlTcpServer
from refork.door import Door
from refork.events import Events
from refork.metrics import metrics_of
from refork.operations import Operations

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

SLOT_WITHOUT_WORKER = 7
SLOT_WITH_BUG = 9
SLOT_THAT_HANGS = 5
PATIENCE = 20

MIB = 1024 * 1024
ALL_STEPS = (
    api.Phase.SURGE,
    api.Phase.DRAINING,
    api.Phase.SEALING,
    api.Phase.CANARY,
    api.Phase.ROLLING,
    api.Phase.RETIRING,
)


def memory(*, rss: int, shared: int, sharers: int = 4) -> api.Memory:
    """Make up the memory of a process, in MiB."""
    return api.Memory(
        rss=rss * MIB,
        pss=(rss - shared) * MIB + shared * MIB // sharers,
        uss=(rss - shared) * MIB,
        shared=shared * MIB,
        private_dirty=(rss - shared) * MIB,
    )


def make_status(*, app: str = "demo:app", pid: int = 4711, **changes: Any) -> api.Status:
    """Make up the status of a server with a mold and two workers."""
    started = api.RolloutStatus(
        id="refork-0",
        kind=api.RolloutKind.REFORK,
        trigger=api.Trigger.REQUESTS,
        generation=1,
        phase=api.Phase.STEADY,
        started_at=1000.0,
        seconds=2.5,
        steps=(
            api.StepStatus(phase=api.Phase.SURGE, seconds=0.25),
            api.StepStatus(phase=api.Phase.ROLLING, seconds=2.0),
        ),
        outcome=api.Outcome.SUCCEEDED,
    )
    facts: dict[str, Any] = {
        "api": api.VERSION,
        "version": refork.__version__,
        "python": "3.13.0",
        "gunicorn": "27.0.1",
        "app": app,
        "worker_class": "sync",
        "pid": pid,
        "started_at": 900.0,
        "age": 3700.0,
        "phase": api.Phase.STEADY,
        "generation": 1,
        "wanted": 2,
        "ready": 2,
        "sealing": "on",
        "refusal": "",
        "monitor_memory": memory(rss=40, shared=10),
        "molds": (
            api.MoldStatus(
                generation=1,
                pid=pid + 1,
                state=api.MoldState.READY,
                age=3600.0,
                seal=api.SealStatus(sealed=True, reason="", objects=10, total_objects=200_010, seconds=0.1),
                memory=memory(rss=200, shared=198),
            ),
        ),
        "workers": tuple(
            api.WorkerStatus(
                slot=slot,
                generation=1,
                pid=pid + 2 + slot,
                state=api.WorkerState.READY,
                age=65.0,
                requests=100 + slot,
                memory=memory(rss=200, shared=196),
            )
            for slot in range(2)
        ),
        "totals": api.Totals(rss=640 * MIB, pss=300 * MIB, uss=40 * MIB, saved=340 * MIB),
        "last_rollout": started,
        "rollouts": (
            api.RolloutCount(
                kind=api.RolloutKind.REFORK, trigger=api.Trigger.REQUESTS, outcome=api.Outcome.SUCCEEDED, count=1
            ),
        ),
        "served": (
            api.SlotCount(slot=0, requests=1100, errors=3),
            api.SlotCount(slot=1, requests=1101, errors=0),
        ),
    }
    return api.Status(**(facts | changes))


@dataclass
class Pretender:
    """Takes commands like a monitor, and does nothing. A new number of workers is as many events."""

    app: str
    ready: int = 2
    interval: float = 0.0
    events: Events = field(default_factory=Events)
    known: Operations = field(default_factory=Operations)
    operations: dict[str, list[api.OperationStatus]] = field(default_factory=dict)

    def status(self) -> api.Status:
        return make_status(app=self.app, ready=self.ready, pid=os.getpid())

    def refork(self, command: api.ReforkCommand) -> api.Accepted:
        return self._once(command, self._refork)

    def doctor(self, command: api.DoctorCommand) -> api.Accepted:
        return self._once(command, lambda _: self._accept("doctor", [_rollout(phase=api.Phase.DRAINING)]))

    def rebase(self, command: api.RebaseCommand) -> api.Accepted:
        return self._once(command, self._rebase)

    def workers(self, command: api.WorkersCommand) -> api.Accepted:
        return self._once(command, self._workers)

    def _once[C: api.Command](self, command: C, act: Callable[[C], api.Accepted]) -> api.Accepted:
        return self.known.once(command, act, refusal="", now=time.monotonic(), interval=self.interval)

    def _refork(self, command: api.ReforkCommand) -> api.Accepted:
        if command.slot == SLOT_WITHOUT_WORKER:
            raise Refusal(f"slot {SLOT_WITHOUT_WORKER} has no worker")
        if command.slot == SLOT_WITH_BUG:
            raise ZeroDivisionError
        steps = [_rollout(steps=ALL_STEPS[:number], phase=phase) for number, phase in enumerate(ALL_STEPS)]
        end = _rollout(steps=ALL_STEPS, phase=api.Phase.STEADY, outcome=api.Outcome.SUCCEEDED)
        return self._accept("refork", steps[:1] if command.slot == SLOT_THAT_HANGS else [*steps, end])

    def _rebase(self, command: api.RebaseCommand) -> api.Accepted:
        del command
        failed = _rollout(
            kind=api.OperationKind.REBASE,
            phase=api.Phase.LOADING,
            outcome=api.Outcome.FAILED,
            reason="the application does not import: No module named 'nonsense'",
        )
        return self._accept("rebase", [_rollout(kind=api.OperationKind.REBASE, phase=api.Phase.LOADING), failed])

    def _workers(self, command: api.WorkersCommand) -> api.Accepted:
        for slot in range(command.count):
            self.events.publish(api.WorkerEvent(slot, 1, 4711, api.WorkerChange.READY, command.reason))
        return api.Accepted(operation="workers-1", message=f"{command.count} workers wanted")

    def operation(self, operation: str) -> api.OperationStatus | None:
        script = self.operations.get(operation)
        if script is None:
            return None
        return script.pop(0) if len(script) > 1 else script[0]

    def _accept(self, name: str, script: list[api.OperationStatus]) -> api.Accepted:
        operation = f"{name}-{len(self.operations) + 1}"
        self.operations[operation] = script
        return api.Accepted(operation=operation, message=f"{name} to generation 2 begins")


def _rollout(
    *,
    phase: api.Phase,
    kind: api.OperationKind = api.OperationKind.REFORK,
    steps: Sequence[api.Phase] = (),
    outcome: api.Outcome | None = None,
    reason: str = "",
) -> api.OperationStatus:
    return api.OperationStatus(
        id="refork-1",
        kind=kind,
        trigger=api.Trigger.COMMAND,
        generation=2,
        phase=phase,
        started_at=1000.0,
        seconds=1.5,
        reason=reason,
        steps=tuple(api.StepStatus(phase=step, seconds=0.25) for step in steps),
        outcome=outcome,
    )


@dataclass
class Running:
    """A server that was started for a test."""

    process: subprocess.Popen[str]
    addresses: dict[str, str]
    log: Path

    @property
    def control(self) -> str:
        return self.addresses["control"]

    @property
    def metrics(self) -> str:
        return self.addresses["metrics"]

    @property
    def tcp(self) -> str:
        return self.addresses["tcp"]

    def log_text(self) -> str:
        return self.log.read_text()

    def stop(self) -> int:
        """Ask it to end as a monitor is asked, and wait until it has."""
        self.process.terminate()
        return self.process.wait(PATIENCE)


def environment(**more: str) -> dict[str, str]:
    """Let a process import what this one imports."""
    kept = {name: value for name, value in os.environ.items() if name != "REFORK_CONTROL"}
    return kept | {"PYTHONPATH": str(Path(refork.__file__).parents[1])} | more


def launch(log: Path, *arguments: str, prefix: Sequence[str] = ()) -> Running:
    """Start a server; it is listening when this returns. Raises AssertionError when it ends instead."""
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [*prefix, sys.executable, __file__, *arguments],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=environment(),
        )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, f"it ended with {process.wait(PATIENCE)}: {log.read_text()}"
    return Running(process=process, addresses=json.loads(line), log=log)


def dial(address: str) -> socket.socket:
    """Connect to a unix socket; blocking, because a full queue would end a non-blocking attempt."""
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(parse_unix(address).sockaddr)
    sock.settimeout(PATIENCE)
    return sock


def ask(
    address: str,
    method: str,
    path: str,
    *,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> tuple[int, Any, http.client.HTTPMessage]:
    """Make one request: its status, its JSON (or text), its headers."""
    if address.startswith("unix:"):
        connection = http.client.HTTPConnection("refork")
        connection.sock = dial(address)
    else:
        connection = http.client.HTTPConnection(address, timeout=PATIENCE)
    try:
        connection.request(method, path, body=body, headers=dict(headers or {}))
        response = connection.getresponse()
        text = response.read().decode()
        is_json = response.headers.get_content_type() == "application/json"
        return response.status, json.loads(text) if is_json and text else text, response.headers
    finally:
        connection.close()


async def _serve(arguments: argparse.Namespace) -> None:
    pretender = Pretender(app=arguments.app, ready=arguments.ready, interval=arguments.interval)
    events = pretender.events
    log = logging.getLogger("steered")
    servers: dict[str, Any] = {
        "control": ControlServer(pretender, events, bind=arguments.control, log=log, pid=arguments.pid or os.getpid()),
    }
    if arguments.metrics:
        servers["metrics"] = metrics_of(pretender.status, events, bind=arguments.metrics, log=log)
    if arguments.tcp:
        servers["tcp"] = ControlTcpServer(pretender, events, door=_door(arguments), log=log)
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    for server in servers.values():
        await server.start()
    print(json.dumps({name: str(server.address) for name, server in servers.items()}), flush=True)
    await stopped.wait()
    for server in servers.values():
        await server.stop()
    loaded = sorted({"cryptography", "jwt", "prometheus_client", "uvicorn"} & set(sys.modules))
    log.info("stopped modules=%s", ",".join(loaded))


def _door(arguments: argparse.Namespace) -> Door:
    return Door(
        bind=arguments.tcp,
        token_file=arguments.token_file,
        service_accounts=tuple(arguments.accounts),
        keys=keys_of(arguments.jwks, pod=arguments.pod),
        issuer=arguments.issuer,
        certfile=arguments.certfile,
        keyfile=arguments.keyfile,
        client_ca=arguments.client_ca,
        plaintext=arguments.plaintext,
    )


def main() -> int:
    """Be the server."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--control", default="auto")
    parser.add_argument("--metrics")
    parser.add_argument("--app", default="demo:app")
    parser.add_argument("--pid", type=int)
    parser.add_argument("--deadline", type=float)
    parser.add_argument("--stream", type=float, nargs=2)
    parser.add_argument("--ready", type=int, default=2)
    parser.add_argument("--interval", type=float, default=0.0)
    parser.add_argument("--tcp")
    parser.add_argument("--accounts", nargs="*", default=())
    parser.add_argument("--plaintext", action="store_true")
    for name in ("token-file", "jwks", "issuer", "certfile", "keyfile", "client-ca", "pod"):
        parser.add_argument(f"--{name}", default="")
    arguments = parser.parse_args()
    logging.basicConfig(format="%(levelname)s %(name)s %(message)s", level=logging.DEBUG)
    logging.getLogger("asyncio").setLevel(logging.INFO)
    if arguments.deadline:
        endpoint.SECONDS_TO_ASK_AND_BE_ANSWERED = arguments.deadline
    if arguments.stream:
        from refork import streams  # noqa: PLC0415 - it loads the web framework

        streams.SECONDS_BETWEEN_SIGNS_OF_LIFE, streams.SECONDS_A_STREAM_LASTS = arguments.stream
    try:
        asyncio.run(_serve(arguments))
    except BindError as error:
        print(f"BindError: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
