"""The nursery: brings up the monitor's processes, hears what they say, and takes note of their ends.

Molds are executed, workers are forked by molds, and a promoted worker becomes a mold. What they say on their lines, and
that they have ended, is told to the state machine as facts.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from refork import api, facts, hooks
from refork import channel as wire
from refork.channel import Channel
from refork.children import MoldProcess, WorkerProcess
from refork.multiproc import Undertaker, directory_of
from refork.population import Stage
from refork.process import CUT_SHORT, describe_status
from refork.scoreboard import Cell, Scoreboard

if TYPE_CHECKING:
    from collections.abc import Callable

    from refork import decisions
    from refork.children import Children
    from refork.events import Events
    from refork.generations import Generations
    from refork.hooks import Server
    from refork.listeners import Listeners
    from refork.sampler import Sampler

_MOLD_COMMAND = "from refork.mold import main; main()"
_TIME_WAS_UP = "killed, because its time was up"
_NOT_WANTED = "killed, because nobody wants it any more"
_NOT_UNDERSTOOD = "killed, because it sent what is no message"


@dataclass(slots=True)
class Served:
    """What the processes of each slot have counted that are there no more; processor time in seconds."""

    requests: Counter[int] = field(default_factory=Counter)
    errors: Counter[int] = field(default_factory=Counter)
    cpu: defaultdict[int, float] = field(default_factory=lambda: defaultdict(float))
    faults: Counter[int] = field(default_factory=Counter)


class Nursery:
    """All processes of one server. ``tell`` takes facts about them; ``server`` is what hooks are given."""

    def __init__(  # noqa: PLR0913 - it stands between all of these
        self,
        server: Server,
        machine: Generations,
        *,
        children: Children,
        listeners: Listeners,
        sampler: Sampler,
        events: Events,
        tell: Callable[..., None],
    ) -> None:
        self.served = Served()
        self.children = children
        self._server = server
        self._log: Any = server.log
        self._machine = machine
        self._listeners = listeners
        self._sampler = sampler
        self._undertaker = Undertaker(directory_of(server.cfg), log=server.log)
        self._events = events
        self._tell = tell
        self._scoreboard = Scoreboard.create()
        self._directory = server.app.start_directory

    def requests(self) -> dict[int, int]:
        """Return what living workers have served, by their number."""
        return {worker.id: worker.cells[Cell.REQUESTS] for worker in self.children.workers.values()}

    def errors(self) -> dict[int, int]:
        """Return how many of their answers were errors, by their number."""
        return {worker.id: worker.cells[Cell.ERRORS] for worker in self.children.workers.values()}

    # --- orders -------------------------------------------------------------------------------------------------------

    def exec_mold(self, generation: int) -> None:
        """Begin a process that loads the application."""
        channel, end = Channel.pair()
        with end:
            os.set_inheritable(end.fileno(), True)
            environment = {**os.environ, "REFORK_CHANNEL_FD": str(end.fileno())}
            flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # noqa: SLF001
            command = [sys.executable, *flags, "-c", _MOLD_COMMAND, *self._server.app.argv]
            self._server.cfg.pre_exec(self._server)
            with contextlib.chdir(self._directory):
                pid = os.posix_spawn(sys.executable, command, environment)
        mold = MoldProcess(generation, pid, channel, time.monotonic())
        self.children.molds[generation] = mold
        channel.send(wire.Load(generation), (self._scoreboard.fd, *self._listeners.fds()))
        self._listen(channel, lambda: self._hear_mold(mold))
        self._log.info("mold gen=%s pid=%s loading", generation, pid)

    def fork_worker(self, order: decisions.ForkWorker) -> None:
        """Have a mold fork; whether it could is said on the worker's line."""
        channel, end = Channel.pair()
        row = self.children.take_row()
        cells = self._scoreboard.row(row)
        cells.clear()
        worker = WorkerProcess(
            order.worker,
            order.slot,
            order.generation,
            row,
            cells,
            channel,
            time.monotonic(),
            self._server.cfg,
            self._log,
        )
        self.children.workers[worker.id] = worker
        self._listen(channel, lambda: self._hear_worker(worker))
        with end:
            mold = self.children.molds.get(order.generation)
            # If this fails the other end is closed with `end`, and the channel's end-of-file says the rest.
            if mold is not None:
                mold.channel.send(wire.Fork(worker.id, worker.slot, row), (end.fileno(),))

    def promote(self, order: decisions.PromoteWorker) -> None:
        """Have a worker stop gracefully and become a mold."""
        worker = self.children.workers[order.worker]
        worker.promoting = order.generation
        deadline = time.monotonic() + self._machine.policy.promote_timeout
        worker.channel.send(wire.Promote(order.generation, deadline, order.trial), self._listeners.fds())
        self._kill(worker.pid, signal.SIGTERM)

    def drain(self, number: int, *, quick: bool) -> None:
        """Have a worker end; ``quick``: without its requests."""
        self._signal_worker(number, signal.SIGQUIT if quick else signal.SIGTERM)

    def kill_worker(self, number: int) -> None:
        """End a worker whose time is up."""
        self._signal_worker(number, signal.SIGKILL)

    def retire(self, generation: int) -> None:
        """Have a mold end."""
        self.children.molds[generation].channel.send(wire.Retire())

    def kill_mold(self, generation: int) -> None:
        """End a mold whose time is up."""
        self._put_an_end_to(self.children.molds[generation], _TIME_WAS_UP)

    def reopen_logs(self) -> None:
        """Have everybody open the log files anew."""
        for pid in self.children.pids():
            self._kill(pid, signal.SIGUSR1)

    def _signal_worker(self, number: int, what: signal.Signals) -> None:
        worker = self.children.workers.get(number)
        if worker is None:
            return
        if what is signal.SIGKILL:
            worker.killed = _TIME_WAS_UP
        if worker.pid == 0:
            worker.doomed = True  # it is told by its first word
        else:
            self._kill(worker.pid, what)

    def _put_an_end_to(self, process: WorkerProcess | MoldProcess, why: str) -> None:
        """Kill a process; its end is told with the first reason that there was for it."""
        process.killed = process.killed or why
        if process.pid:
            self._kill(process.pid, signal.SIGKILL)

    def _kill(self, pid: int, what: signal.Signals) -> None:
        # The pid is a child's that has not been waited for, so it cannot have been given to anybody else.
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, what)

    # --- what children say --------------------------------------------------------------------------------------------

    def _listen(self, channel: Channel, hear: Callable[[], None]) -> None:
        asyncio.get_running_loop().add_reader(channel.fileno(), hear)

    def _hang_up(self, channel: Channel) -> None:
        if channel.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(channel.fileno())
            channel.close()

    def _next_message(self, process: WorkerProcess | MoldProcess) -> wire.AnyMessage | None:
        """Return a message, None if there is none to come."""
        if process.channel.fileno() < 0:
            return None
        try:
            received = process.channel.receive()
        except BlockingIOError:
            return None
        except wire.Garbled as error:
            self._log.error("pid=%s sent what is no message (%s): it is killed", process.pid, error)
            received = None
            self._put_an_end_to(process, _NOT_UNDERSTOOD)
        if received is None:
            self._hang_up(process.channel)
            return None
        wire.close_all(received[1])
        return received[0]

    def _hear_mold(self, mold: MoldProcess) -> None:
        while (message := self._next_message(mold)) is not None:
            match message:
                case wire.MoldReady():
                    self._mold_ready(mold, message)
                case wire.MoldFailed(reason, exit_code):
                    mold.failure, mold.exit_code = reason, exit_code
                case wire.ForkFailed(number, reason):
                    self._fork_failed(number, reason)
                case _:
                    self._log.error("%s sent an unexpected %s", mold, type(message).__name__)

    def _hear_worker(self, worker: WorkerProcess) -> None:
        while (message := self._next_message(worker)) is not None:
            match message:
                case wire.Born(pid):
                    worker.failure = ""
                    self._worker_born(worker, pid)
                case wire.Ready():
                    seconds = time.monotonic() - worker.started
                    self._log.info("%s ready after %.3f s", worker, seconds)
                    self._sampler.began(worker.pid)
                    self._tell(facts.WorkerReady(worker.id))
                    self._publish_change(worker, api.WorkerChange.READY)
                case wire.Failed(reason):
                    worker.failure = reason
                case wire.Drained():
                    self._tell(facts.WorkerDrained(worker.id))
                case wire.PromotionRefused(reason):
                    self._tell(facts.PromotionRefused(worker.id, reason))
                case wire.Tried(findings):
                    self._tried(worker, findings)
                case wire.MoldReady():
                    self._promoted(worker, message)
                    return
                case _:
                    self._log.error("%s sent an unexpected %s", worker, type(message).__name__)
        if worker.pid == 0 and worker.channel.fileno() < 0:
            self._stillborn(worker)

    def _fork_failed(self, number: int, reason: str) -> None:
        """Keep the reason. The end of the line is what decides: a worker whose intermediate was killed may live."""
        worker = self.children.workers.get(number)
        if worker is not None:
            worker.failure = reason

    def _why_stillborn(self, worker: WorkerProcess) -> str:
        """Say why a worker has not said a word: what its mold said, or died of, if that is why."""
        mold = self.children.molds.get(worker.generation)
        if mold is not None:
            self._hear_mold(mold)
        return worker.failure or (mold.failure if mold is not None else "") or "it ended before its first word"

    def _worker_born(self, worker: WorkerProcess, pid: int) -> None:
        worker.pid = pid
        if worker.doomed or worker.id not in self._machine.population.workers:
            worker.doomed = True
            self._put_an_end_to(worker, _NOT_WANTED)
        else:
            self._tell(facts.WorkerBorn(worker.id))

    def _stillborn(self, worker: WorkerProcess) -> None:
        if worker.id not in self.children.workers:
            return
        reason = self._why_stillborn(worker)
        self._log.error("worker[%s] gen=%s could not be forked: %s", worker.slot, worker.generation, reason)
        self._forget_worker(worker)
        self._tell(facts.WorkerGone(worker.id, reason))

    def _publish_change(self, worker: WorkerProcess, change: api.WorkerChange, reason: str = "") -> None:
        self._events.publish(api.WorkerEvent(worker.slot, worker.generation, worker.pid, change, reason))

    def _tried(self, worker: WorkerProcess, findings: tuple[str, ...]) -> None:
        for finding in findings:
            self._log.warning("%s is not safe to fork from: %s", worker, finding)
        self._tell(facts.Tried(worker.id, findings))

    def _promoted(self, worker: WorkerProcess, message: wire.MoldReady) -> None:
        self._count_out(worker)
        mold = self.children.promote(worker, worker.promoting or 0)
        self._sampler.promoted(mold.pid)
        loop = asyncio.get_running_loop()
        loop.remove_reader(mold.channel.fileno())
        self._listen(mold.channel, lambda: self._hear_mold(mold))
        self._mold_ready(mold, message)
        self._hear_mold(mold)

    def _mold_ready(self, mold: MoldProcess, message: wire.MoldReady) -> None:
        mold.seal = api.SealStatus(
            sealed=message.sealed,
            reason=message.reason,
            objects=message.objects,
            total_objects=message.total_objects,
            seconds=message.seconds,
        )
        verb = "sealed" if message.sealed else f"frozen ({message.reason})"
        self._log.info("%s ready: objects=%s %s in %.3f s", mold, message.objects, verb, message.seconds)
        self._tell(facts.MoldReady(mold.generation))

    # --- the end of children ------------------------------------------------------------------------------------------

    def reap(self) -> None:
        """Take note of every child that has ended, the adopted ones of the application among them."""
        for worker in self.children.unborn():
            self._hear_worker(worker)  # its pid may be on the line still
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            process = self.children.by_pid(pid)
            if isinstance(process, WorkerProcess):
                self._hear_worker(process)
                process = self.children.by_pid(pid)  # its last words may have made it a mold
            if isinstance(process, WorkerProcess):
                self._worker_gone(process, status)
            elif process is not None:
                self._mold_gone(process, status)
            self._sampler.forget(pid)
            self._undertaker.ended(pid)

    def _worker_gone(self, worker: WorkerProcess, status: int) -> None:
        reason = worker.failure or _how(worker, status)
        log = self._log.info if status == 0 or worker.doomed else self._log.error
        log("%s ended: %s", worker, reason)
        self._forget_worker(worker)
        hooks.run(self._server, "child_exit", worker)
        self._tell(facts.WorkerGone(worker.id, reason, clean=status == 0))
        self._publish_change(worker, api.WorkerChange.GONE, reason)

    def _mold_gone(self, mold: MoldProcess, status: int) -> None:
        self._hear_mold(mold)
        reason = mold.failure or _how(mold, status)
        retired = self._machine.population.molds.get(mold.generation)
        expected = retired is None or retired.state is api.MoldState.RETIRING
        (self._log.info if expected else self._log.error)("%s ended: %s", mold, reason)
        self._hang_up(mold.channel)
        self.children.molds.pop(mold.generation, None)
        if mold.was is not None:
            hooks.run(self._server, "child_exit", mold.was)
            # Known as a worker still, if it was given up while it was promoted.
            self._tell(facts.WorkerGone(mold.was.id, reason))
        self._tell(facts.MoldGone(mold.generation, reason, mold.exit_code))

    def _forget_worker(self, worker: WorkerProcess) -> None:
        self._hang_up(worker.channel)
        if self.children.workers.pop(worker.id, None) is not None:
            self._count_out(worker)

    def _count_out(self, worker: WorkerProcess) -> None:
        """Add what a process has counted to its slot, and free its row."""
        self.served.requests[worker.slot] += worker.cells[Cell.REQUESTS]
        self.served.errors[worker.slot] += worker.cells[Cell.ERRORS]
        seen = self._sampler.process(worker.pid)
        if seen is not None:
            self.served.cpu[worker.slot] += seen.cpu_seconds
            self.served.faults[worker.slot] += seen.minor_faults
        self.children.release_row(worker.row)

    def kill_silent_workers(self) -> None:
        """End workers whose loop has not turned for ``timeout`` seconds: first so that they can say where they were."""
        if not self._server.cfg.timeout:
            return
        now = time.monotonic_ns()
        for worker in self.children.workers.values():
            known = self._machine.population.workers.get(worker.id)
            if known is None or known.stage is not Stage.READY:
                continue
            silent = (now - worker.cells[Cell.HEARTBEAT]) / 1e9
            if silent <= self._server.cfg.timeout:
                continue
            if worker.aborted:
                worker.killed = f"killed, because it was silent for {silent:.0f} s"
            else:
                self._log.critical("%s timed out: silent for %.0f s", worker, silent)
            self._kill(worker.pid, signal.SIGKILL if worker.aborted else signal.SIGABRT)
            worker.aborted = True


def _how(process: WorkerProcess | MoldProcess, status: int) -> str:
    """Say how a process ended: as the monitor had it, if that is why."""
    if isinstance(process, MoldProcess) and os.WIFEXITED(status) and os.WEXITSTATUS(status) == CUT_SHORT:
        return "it shared the fate of the process that it forked by, which was killed"
    by_monitor = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    return process.killed if by_monitor and process.killed else describe_status(status)
