"""The monitor: carries out what the state machine decides, and tells it what has happened.

It owns the listening sockets, the signals and the lines to its children. It never imports the application and, once it
has booted, never forks: molds do that, and a mold is executed. All of it runs in one asyncio loop, so that facts are
taken in one after the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict, deque
from typing import TYPE_CHECKING, Any

from gunicorn import SERVER_SOFTWARE, systemd
from gunicorn.pidfile import Pidfile

from refork import __version__, api, decisions, facts, listeners, report
from refork import channel as wire
from refork.api import Refusal
from refork.automatic import Automatic, Wish
from refork.channel import Channel
from refork.children import Children, MoldProcess, WorkerProcess
from refork.control import ControlServer
from refork.durations import Durations
from refork.errors import ConfigurationError, describe
from refork.events import Events
from refork.generations import Generations
from refork.hooks import Server
from refork.metrics import MetricsServer
from refork.multiproc import Undertaker, directory_of
from refork.operations import Operations
from refork.population import Policy, Stage
from refork.process import become_subreaper, describe_status, give_memory_back, keep_one_arena, set_title
from refork.sampler import Sampler
from refork.scoreboard import ROWS, Cell, Scoreboard
from refork.upkeep import Limits, MoldFacts, Upkeep, WorkerFacts
from refork.workers import REFORKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from refork.cli import ReforkApplication
    from refork.control_tcp import ControlTcpServer
    from refork.decisions import Decision
    from refork.facts import Fact
    from refork.population import Rollout

IDLE_TICK = 1.0
BUSY_TICK = 0.02
SECONDS_BETWEEN_STATUS_EVENTS = 2.0
_MOLD_COMMAND = "from refork.mold import main; main()"


def serve(app: ReforkApplication) -> int:
    """Serve an application until told to stop; return the exit status."""
    return Monitor(app).run()


def policy_of(cfg: Any) -> Policy:
    """Return the settings that the state machine decides by."""
    return Policy(
        surge=cfg.refork_surge,
        max_unavailable=cfg.refork_max_unavailable,
        spawn_timeout=cfg.spawn_timeout,
        promote_timeout=cfg.promote_timeout,
        graceful_timeout=cfg.graceful_timeout,
        canary_seconds=cfg.canary_seconds,
        max_generations=cfg.max_generations,
        max_growth=cfg.max_sealed_growth or math.inf,
        schedule=cfg.refork_after,
    )


class Monitor:
    """One running server."""

    def __init__(self, app: ReforkApplication) -> None:
        self.app = app
        self.cfg: Any = app.cfg
        self.log: Any = self.cfg.open_log()
        self.pid = os.getpid()
        self.started_at = time.time()
        self.started = time.monotonic()
        self.generations = Generations(policy_of(self.cfg), wanted=self.cfg.workers)
        self.children = Children(ROWS)
        self.scoreboard = Scoreboard.create()
        self.outcomes: Counter[tuple[api.RolloutKind, api.Trigger, api.Outcome]] = Counter()
        self.slot_requests: Counter[int] = Counter()
        self.slot_errors: Counter[int] = Counter()
        self.slot_cpu: defaultdict[int, float] = defaultdict(float)
        self.slot_faults: Counter[int] = Counter()
        self.durations = Durations()
        self.sampler = Sampler(self.pid, self.children.pids, log=self.log)
        self.upkeep = Upkeep()
        self.automatic = Automatic(Wish.of(self.cfg), self.sampler, self._serving, log=self.log)
        self.sampler.told = self.automatic.looked
        self.sampler.held = lambda: self.generations.phase is api.Phase.ROLLING
        self.undertaker = Undertaker(directory_of(self.cfg), log=self.log)
        self.hook_view = Server(self.pid, app, self.cfg, self.log, self.cfg.workers)
        self.events = Events()
        self.operations = Operations()
        self._announced: api.Phase | None = None
        self._published = float("-inf")
        self._start_directory = app.start_directory
        self._listeners: list[Any] = []
        self._replaced_listeners: list[Any] = []
        self._systemd = False
        self._notified = False
        self._pidfile: Pidfile | None = None
        self._facts: deque[Fact] = deque()
        self._wake = asyncio.Event()
        self._halt: decisions.Halt | None = None
        self._handling = False

    # --- life ---------------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Open, serve, close; return the exit status.

        Raises:
            ConfigurationError: an address cannot be bound, another server has the pid file, or a hook fails.
        """
        os.environ["SERVER_SOFTWARE"] = SERVER_SOFTWARE
        self.log.info("Starting refork %s", __version__)
        become_subreaper()
        keep_one_arena()
        set_title(f"refork:monitor[{self.cfg.proc_name}]")
        try:
            self._open()
        except ConfigurationError as error:
            if self.cfg.daemon:  # whoever started it has long left, and standard error with them
                self.log.error("%s", error)
            self._close()
            raise
        try:
            return asyncio.run(self._serve())
        finally:
            self._close()
            self._hook("on_exit", self.hook_view)

    def _open(self) -> None:
        if self.cfg.pidfile is not None:
            self._pidfile = Pidfile(self.cfg.pidfile)
            try:
                self._pidfile.create(self.pid)
            except (OSError, RuntimeError) as error:
                raise ConfigurationError(f"pid file {self.cfg.pidfile}: {error}") from error
        self._hook_at_start("on_starting", self.hook_view)
        self._listeners, self._systemd = listeners.open_all(self.cfg, self.log)
        self.hook_view.LISTENERS = self._listeners
        shown = ",".join(str(listener) for listener in self._listeners)
        self.log.info("Listening at: %s (%s)", shown, self.pid)
        self.log.info("Using worker: %s", self.cfg.worker_class_str)
        self._hook_at_start("nworkers_changed", self.hook_view, self.cfg.workers, None)
        self._hook_at_start("when_ready", self.hook_view)

    def _hook_at_start(self, name: str, *arguments: Any) -> None:
        try:
            getattr(self.cfg, name)(*arguments)
        except Exception as error:
            raise ConfigurationError(f"the hook {name} failed: {describe(error)}") from error

    def _close(self) -> None:
        listeners.close_all(self._listeners, unlink=not self._systemd)
        if self._pidfile is not None:
            self._pidfile.unlink()

    async def _serve(self) -> int:
        self._install_signals()
        endpoints = self._endpoints()
        for endpoint in endpoints:
            await endpoint.start()
        self._carry_out(self.generations.start(time.monotonic()))
        sampling = asyncio.create_task(self.sampler.run(), name="sampler")
        while self._halt is None:
            self._tick()
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                idle = self.generations.phase is api.Phase.STEADY
                await asyncio.wait_for(self._wake.wait(), IDLE_TICK if idle else BUSY_TICK)
        sampling.cancel()
        for endpoint in endpoints:
            await endpoint.stop()
        if self._halt.reason:
            self.log.error("Shutting down: %s", self._halt.reason)
        else:
            self.log.info("Shutting down: monitor")
        return self._halt.exit_code

    def _endpoints(self) -> list[ControlServer | ControlTcpServer | MetricsServer]:
        endpoints: list[ControlServer | ControlTcpServer | MetricsServer] = []
        if self.cfg.control_bind != "none":
            endpoints.append(ControlServer(self, self.events, bind=self.cfg.control_bind, log=self.log, pid=self.pid))
        if self.cfg.control_tcp:
            endpoints.append(self._control_tcp())
        if self.cfg.metrics_bind:
            metrics = MetricsServer(lambda: report.status(self), self.events, bind=self.cfg.metrics_bind, log=self.log)
            endpoints.append(metrics)
        return endpoints

    def _control_tcp(self) -> ControlTcpServer:
        from refork.control_tcp import ControlTcpServer  # noqa: PLC0415 - only who has such a door needs it
        from refork.door import door_of  # noqa: PLC0415 - as above

        door = door_of(self.cfg)
        assert door is not None
        return ControlTcpServer(self, self.events, door=door, log=self.log)

    def _tick(self) -> None:
        self._kill_silent_workers()
        self._tell(facts.RequestsCounted(self._requests(), self._errors()), *self._upkeep())
        self._refork_by_memory()
        self._tell(facts.Tick())
        self._publish_status()

    def _publish_status(self) -> None:
        """Tell those who listen how the server is, every now and then."""
        now = time.monotonic()
        if self.events.heard and now - self._published >= SECONDS_BETWEEN_STATUS_EVENTS:
            self._published = now
            self.events.publish(self.status())

    # --- facts and decisions ------------------------------------------------------------------------------------------

    def _tell(self, *told: Fact) -> None:
        """Put facts to the state machine, one at a time, also those that carrying out its decisions brings up."""
        self._facts.extend(told)
        if self._handling:
            return
        self._handling = True
        try:
            while self._facts:
                self._carry_out(self.generations.handle(self._facts.popleft(), time.monotonic()))
        finally:
            self._handling = False
        self._notify_ready()

    def _ask(self, fact: Fact) -> None:
        """Put a request to the state machine.

        Raises:
            Refusal: why not.
        """
        self._carry_out(self.generations.handle(fact, time.monotonic()))
        self._tell(facts.Tick())

    def _carry_out(self, decided: list[Decision]) -> None:
        for decision in decided:
            try:
                self._carry_out_one(decision)
            except Exception:
                self.log.exception("could not carry out %s", decision)
        self._announce()
        self._wake.set()

    def _carry_out_one(self, decision: Decision) -> None:
        match decision:
            case decisions.ExecMold(generation):
                self._exec_mold(generation)
            case decisions.ForkWorker():
                self._fork_worker(decision)
            case decisions.PromoteWorker(worker):
                self._promote(self.children.workers[worker], decision)
            case decisions.DrainWorker(worker, quick):
                self._signal_worker(worker, signal.SIGQUIT if quick else signal.SIGTERM)
            case decisions.KillWorker(worker):
                self._signal_worker(worker, signal.SIGKILL)
            case decisions.RetireMold(generation):
                self.children.molds[generation].channel.send(wire.Retire())
            case decisions.KillMold(generation):
                self._kill(self.children.molds[generation].pid, signal.SIGKILL)
            case decisions.Advanced(rollout):
                self.log.info("%s to gen=%s: %s", rollout.kind, rollout.generation, rollout.phase)
                if rollout.kind is not api.RolloutKind.TRIAL:
                    self.automatic.advanced(rollout)
            case decisions.Finished(rollout):
                self._finished(rollout)
            case decisions.Halt():
                self._halt = decision

    def _announce(self) -> None:
        """Tell of a new phase, and see whether a resize has ended."""
        now = self.generations
        if now.phase is not self._announced:
            self._announced = now.phase
            self.events.publish(api.PhaseEvent(now.phase, now.current))
        slots = {worker.slot for worker in now.workers.values()}
        arrived = now.ready() == len(slots) == now.wanted
        self.operations.resized(now.wanted, arrived=arrived, now=time.monotonic())

    def _exec_mold(self, generation: int) -> None:
        channel, end = Channel.pair()
        with end:
            os.set_inheritable(end.fileno(), True)
            environment = {**os.environ, "REFORK_CHANNEL_FD": str(end.fileno())}
            flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # noqa: SLF001
            command = [sys.executable, *flags, "-c", _MOLD_COMMAND, *self.app.argv]
            self.cfg.pre_exec(self.hook_view)
            with contextlib.chdir(self._start_directory):
                pid = os.posix_spawn(sys.executable, command, environment)
        mold = MoldProcess(generation, pid, channel, time.monotonic())
        self.children.molds[generation] = mold
        channel.send(wire.Load(generation), (self.scoreboard.fd, *self._listening()))
        self._listen(channel, lambda: self._hear_mold(mold))
        self.log.info("mold gen=%s pid=%s loading", generation, pid)

    def _listening(self) -> tuple[int, ...]:
        return tuple(listener.fileno() for listener in self._listeners)

    def _fork_worker(self, order: decisions.ForkWorker) -> None:
        channel, end = Channel.pair()
        row = self.children.take_row()
        cells = self.scoreboard.row(row)
        cells.clear()
        worker = WorkerProcess(
            order.worker, order.slot, order.generation, row, cells, channel, time.monotonic(), self.cfg, self.log
        )
        self.children.workers[worker.id] = worker
        self._listen(channel, lambda: self._hear_worker(worker))
        with end:
            mold = self.children.molds.get(order.generation)
            # If this fails the other end is closed with `end`, and the channel's end-of-file says the rest.
            if mold is not None:
                mold.channel.send(wire.Fork(worker.id, worker.slot, row), (end.fileno(),))

    def _promote(self, worker: WorkerProcess, order: decisions.PromoteWorker) -> None:
        worker.promoting = order.generation
        deadline = time.monotonic() + self.generations.policy.promote_timeout
        worker.channel.send(wire.Promote(order.generation, deadline, order.trial), self._listening())
        self._kill(worker.pid, signal.SIGTERM)

    def _signal_worker(self, number: int, what: signal.Signals) -> None:
        worker = self.children.workers.get(number)
        if worker is None:
            return
        if worker.pid == 0:
            worker.doomed = True  # it is told by its first word
        else:
            self._kill(worker.pid, what)

    def _kill(self, pid: int, what: signal.Signals) -> None:
        # The pid is a child's that has not been waited for, so it cannot have been given to anybody else.
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, what)

    def _finished(self, rollout: Rollout) -> None:
        outcome = rollout.outcome or api.Outcome.FAILED
        self.outcomes[rollout.kind, rollout.trigger, outcome] += 1
        self.durations.add(rollout.steps)
        if rollout.kind is not api.RolloutKind.TRIAL:
            self.automatic.finished(rollout)
        seconds = rollout.since - rollout.started
        if outcome is api.Outcome.SUCCEEDED:
            self.log.info("%s to gen=%s succeeded after %.3f s", rollout.kind, rollout.generation, seconds)
            self._close_replaced_listeners()
        else:
            self.log.error(
                "%s to gen=%s failed after %.3f s: %s", rollout.kind, rollout.generation, seconds, rollout.reason
            )
            self._bar_class(rollout)
        ended = report.rollout(rollout, now=time.monotonic())
        self.operations.ended(ended)
        self.events.publish(ended)
        if rollout.kind is not api.RolloutKind.TRIAL:
            self._hook("after_refork", self.hook_view, outcome.value)

    def _bar_class(self, rollout: Rollout) -> None:
        """Do not try again with a worker class that we do not know and that does not come back clean."""
        name = self.cfg.worker_class_str
        in_promotion = {api.Phase.DRAINING, api.Phase.SEALING}
        if name in REFORKING or rollout.phase not in in_promotion or self.generations.phase is api.Phase.STOPPING:
            return
        self.generations.barred = (
            f"worker class {name} is served but not reforked: it did not come back clean from a graceful stop"
            f" ({rollout.reason})"
        )
        self.log.warning("%s", self.generations.barred)

    # --- what children say --------------------------------------------------------------------------------------------

    def _listen(self, channel: Channel, hear: Callable[[], None]) -> None:
        asyncio.get_running_loop().add_reader(channel.fileno(), hear)

    def _hang_up(self, channel: Channel) -> None:
        if channel.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(channel.fileno())
            channel.close()

    def _next_message(self, channel: Channel, pid: int) -> wire.AnyMessage | None:
        """Return a message, None if there is none to come."""
        if channel.fileno() < 0:
            return None
        try:
            received = channel.receive()
        except BlockingIOError:
            return None
        except wire.Garbled as error:
            self.log.error("pid=%s sent what is no message (%s): it is killed", pid, error)
            received = None
            if pid:
                self._kill(pid, signal.SIGKILL)
        if received is None:
            self._hang_up(channel)
            return None
        wire.close_all(received[1])
        return received[0]

    def _hear_mold(self, mold: MoldProcess) -> None:
        while (message := self._next_message(mold.channel, mold.pid)) is not None:
            match message:
                case wire.MoldReady():
                    self._mold_ready(mold, message)
                case wire.MoldFailed(reason, exit_code):
                    mold.failure, mold.exit_code = reason, exit_code
                case wire.ForkFailed(number, reason):
                    self._fork_failed(number, reason)
                case _:
                    self.log.error("%s sent an unexpected %s", mold, type(message).__name__)

    def _hear_worker(self, worker: WorkerProcess) -> None:
        while (message := self._next_message(worker.channel, worker.pid)) is not None:
            match message:
                case wire.Born(pid):
                    worker.failure = ""
                    self._worker_born(worker, pid)
                case wire.Ready():
                    seconds = time.monotonic() - worker.started
                    self.log.info("%s ready after %.3f s", worker, seconds)
                    self.sampler.began(worker.pid)
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
                    self.log.error("%s sent an unexpected %s", worker, type(message).__name__)
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
        if worker.doomed or worker.id not in self.generations.workers:
            self._kill(pid, signal.SIGKILL)
        else:
            self._tell(facts.WorkerBorn(worker.id))

    def _stillborn(self, worker: WorkerProcess) -> None:
        if worker.id not in self.children.workers:
            return
        reason = self._why_stillborn(worker)
        self.log.error("worker[%s] gen=%s could not be forked: %s", worker.slot, worker.generation, reason)
        self._forget_worker(worker)
        self._tell(facts.WorkerGone(worker.id, reason))

    def _publish_change(self, worker: WorkerProcess, change: api.WorkerChange, reason: str = "") -> None:
        self.events.publish(api.WorkerEvent(worker.slot, worker.generation, worker.pid, change, reason))

    def _tried(self, worker: WorkerProcess, findings: tuple[str, ...]) -> None:
        for finding in findings:
            self.log.warning("%s is not safe to fork from: %s", worker, finding)
        self._tell(facts.Tried(worker.id, findings))

    def _promoted(self, worker: WorkerProcess, message: wire.MoldReady) -> None:
        self._count_out(worker)
        mold = self.children.promote(worker, worker.promoting or 0)
        self.sampler.promoted(mold.pid)
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
        self.log.info("%s ready: objects=%s %s in %.3f s", mold, message.objects, verb, message.seconds)
        self._tell(facts.MoldReady(mold.generation))

    # --- the end of children ------------------------------------------------------------------------------------------

    def _reap(self) -> None:
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
            self.sampler.forget(pid)
            self.undertaker.ended(pid)

    def _worker_gone(self, worker: WorkerProcess, status: int) -> None:
        reason = worker.failure or describe_status(status)
        log = self.log.info if status == 0 or worker.doomed else self.log.error
        log("%s ended: %s", worker, reason)
        self._forget_worker(worker)
        self._hook("child_exit", self.hook_view, worker)
        self._tell(facts.WorkerGone(worker.id, reason, clean=status == 0))
        self._publish_change(worker, api.WorkerChange.GONE, reason)

    def _mold_gone(self, mold: MoldProcess, status: int) -> None:
        self._hear_mold(mold)
        reason = mold.failure or describe_status(status)
        retired = self.generations.molds.get(mold.generation)
        expected = retired is None or retired.state is api.MoldState.RETIRING
        (self.log.info if expected else self.log.error)("%s ended: %s", mold, reason)
        self._hang_up(mold.channel)
        self.children.molds.pop(mold.generation, None)
        if mold.was is not None:
            self._hook("child_exit", self.hook_view, mold.was)
            # Known as a worker still, if it was given up while it was promoted.
            self._tell(facts.WorkerGone(mold.was.id, reason))
        self._tell(facts.MoldGone(mold.generation, reason, mold.exit_code))

    def _forget_worker(self, worker: WorkerProcess) -> None:
        self._hang_up(worker.channel)
        if self.children.workers.pop(worker.id, None) is not None:
            self._count_out(worker)

    def _count_out(self, worker: WorkerProcess) -> None:
        """Add what a process has counted to its slot, and free its row."""
        self.slot_requests[worker.slot] += worker.cells[Cell.REQUESTS]
        self.slot_errors[worker.slot] += worker.cells[Cell.ERRORS]
        seen = self.sampler.process(worker.pid)
        if seen is not None:
            self.slot_cpu[worker.slot] += seen.cpu_seconds
            self.slot_faults[worker.slot] += seen.minor_faults
        self.children.release_row(worker.row)

    def _kill_silent_workers(self) -> None:
        """End workers whose loop has not turned for ``timeout`` seconds: first so that they can say where they were."""
        if not self.cfg.timeout:
            return
        now = time.monotonic_ns()
        for worker in self.children.workers.values():
            known = self.generations.workers.get(worker.id)
            if known is None or known.stage is not Stage.READY:
                continue
            silent = (now - worker.cells[Cell.HEARTBEAT]) / 1e9
            if silent <= self.cfg.timeout:
                continue
            if not worker.aborted:
                self.log.critical("%s timed out: silent for %.0f s", worker, silent)
            self._kill(worker.pid, signal.SIGKILL if worker.aborted else signal.SIGABRT)
            worker.aborted = True

    # --- signals ------------------------------------------------------------------------------------------------------

    def _install_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number, handle in {
            signal.SIGCHLD: self._reap,
            signal.SIGTERM: lambda: self._stop(graceful=True),
            signal.SIGINT: lambda: self._stop(graceful=False),
            signal.SIGQUIT: lambda: self._stop(graceful=False),
            signal.SIGHUP: self._reload,
            signal.SIGTTIN: lambda: self._resize(self.generations.wanted + 1),
            signal.SIGTTOU: lambda: self._resize(max(1, self.generations.wanted - 1)),
            signal.SIGUSR1: self._reopen_logs,
            signal.SIGUSR2: self._refuse_reexec,
            signal.SIGWINCH: self._stop_workers,
            signal.SIGURG: self._refork_by_signal,
        }.items():
            loop.add_signal_handler(number, self._on_signal, number, handle)

    def _on_signal(self, number: int, handle: Callable[[], None]) -> None:
        if number != signal.SIGCHLD:
            self.log.info("Handling signal: %s", signal.Signals(number).name[3:].lower())
        try:
            handle()
        except Exception:
            self.log.exception("handling a signal failed")

    def _stop(self, *, graceful: bool) -> None:
        systemd.sd_notify("STOPPING=1", self.log)
        listeners.close_all(self._listeners, unlink=not self._systemd)
        self._tell(facts.StopRequested(graceful=graceful))

    def _resize(self, wanted: int) -> None:
        before, self.hook_view.num_workers = self.generations.wanted, wanted
        self.cfg.nworkers_changed(self.hook_view, wanted, before)
        self._tell(facts.Resized(wanted))

    def _stop_workers(self) -> None:
        if self.cfg.daemon:  # as gunicorn has it: a terminal that changes its size is no reason
            self._resize(0)

    def _reopen_logs(self) -> None:
        self.log.reopen_files()
        for pid in self.children.pids():
            self._kill(pid, signal.SIGUSR1)

    def _refuse_reexec(self) -> None:
        self.log.warning("USR2 does nothing: refork does not re-execute itself. HUP loads new code without downtime.")

    def _refork_by_signal(self) -> None:
        try:
            self._ask(facts.ReforkRequested(api.Trigger.SIGNAL, self._requests()))
        except Refusal as refusal:
            self.log.warning("refork refused: %s", refusal)

    def _refork_by_memory(self) -> None:
        if self.generations.refusal() or not self.automatic.due():
            return
        self.log.info("refork by memory: %s", self.automatic.explain())
        with contextlib.suppress(Refusal):  # what stands in its way was asked for before
            self._ask(facts.ReforkRequested(api.Trigger.MEMORY, self._requests()))

    def _reload(self) -> None:
        """Take up a new configuration and, by a rebase, new code; a broken one leaves everything as it is."""
        from refork.cli import load_application  # noqa: PLC0415 - cli imports this module

        try:
            app = load_application(self.app.argv, directory=self._start_directory)
            self._reopen_listeners(app.cfg)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a configuration file may do anything
            self.log.error("the new configuration is broken, the old one stays: %s", describe(error))
            return
        self.app, self.cfg = app, app.cfg
        self.log.setup(self.cfg)
        self.log.reopen_files()
        self.hook_view.app, self.hook_view.cfg = app, self.cfg
        self._hook("on_reload", self.hook_view)
        self.generations.policy = policy_of(self.cfg)
        self.automatic.configure(Wish.of(self.cfg))
        self.generations.barred = ""
        if self.cfg.workers != self.generations.wanted:
            self._resize(self.cfg.workers)
        self._ask(facts.RebaseRequested(api.Trigger.RELOAD))

    def _reopen_listeners(self, cfg: Any) -> None:
        """Listen where the new configuration says; the old sockets stay open until nobody serves from them."""
        if cfg.address == self.cfg.address or self._systemd:
            return
        opened, _ = listeners.open_all(cfg, self.log)
        self._close_replaced_listeners()
        self._replaced_listeners, self._listeners = self._listeners, opened
        self.hook_view.LISTENERS = opened
        self.log.info("Listening at: %s (%s)", ",".join(str(listener) for listener in opened), self.pid)

    def _close_replaced_listeners(self) -> None:
        listeners.close_all(self._replaced_listeners, unlink=True)
        self._replaced_listeners = []

    # --- what the control endpoint asks -------------------------------------------------------------------------------

    def status(self) -> api.Status:
        """Return everything there is to know; what is known of memory will soon be newer, because somebody asked."""
        self.sampler.ask()
        return report.status(self)

    def refork(self, command: api.ReforkCommand) -> api.Accepted:
        """Begin a refork.

        Raises:
            Refusal: why not.
        """
        return self._once(command, self._refork, refusal=self.generations.refusal(command.slot))

    def rebase(self, command: api.RebaseCommand) -> api.Accepted:
        """Begin to load the application afresh.

        Raises:
            Refusal: why not.
        """
        busy = self.generations.refusal() if self.generations.rollout is not None else ""
        return self._once(command, self._rebase, refusal=busy)

    def workers(self, command: api.WorkersCommand) -> api.Accepted:
        """Change the number of workers.

        Raises:
            Refusal: why not.
        """
        return self._once(command, self._set_workers)

    def doctor(self, command: api.DoctorCommand) -> api.Accepted:
        """Begin to look whether a worker is safe to fork from.

        Raises:
            Refusal: why not.
        """
        return self._once(command, self._doctor, refusal=self.generations.refusal(command.slot))

    def operation(self, operation: str) -> api.OperationStatus | None:
        """Return a refork, a rebase or a resize by its id: under way, or one of the last hundred."""
        now = time.monotonic()
        rollout = self.generations.rollout
        if rollout is not None and str(rollout.id) == operation:
            return self.operations.describe(report.rollout(rollout, now=now))
        return self.operations.look(operation, now=now)

    def _once[C: api.Command](self, command: C, act: Callable[[C], api.Accepted], *, refusal: str = "") -> api.Accepted:
        interval = self.cfg.refork_min_interval
        return self.operations.once(command, act, refusal=refusal, now=time.monotonic(), interval=interval)

    def _refork(self, command: api.ReforkCommand) -> api.Accepted:
        self._ask(facts.ReforkRequested(api.Trigger.COMMAND, self._requests(), command.slot))
        return self._accepted()

    def _doctor(self, command: api.DoctorCommand) -> api.Accepted:
        self._ask(facts.TrialRequested(api.Trigger.COMMAND, self._requests(), command.slot))
        return self._accepted()

    def _rebase(self, command: api.RebaseCommand) -> api.Accepted:
        del command
        self._ask(facts.RebaseRequested(api.Trigger.COMMAND))
        return self._accepted()

    def _set_workers(self, command: api.WorkersCommand) -> api.Accepted:
        if self.generations.phase is api.Phase.STOPPING:
            raise Refusal("the server is stopping")
        now, begun_at = time.monotonic(), time.time()
        resize = self.operations.begin_resize(
            command, generation=self.generations.current, phase=self.generations.phase, now=now, started_at=begun_at
        )
        self._resize(command.count)
        return api.Accepted(resize.id, f"{command.count} workers wanted")

    def _accepted(self) -> api.Accepted:
        rollout = self.generations.rollout or self.generations.last_rollout
        if rollout is None:
            return api.Accepted("", "done")
        return api.Accepted(str(rollout.id), f"{rollout.kind} to generation {rollout.generation} has begun")

    # --- small verbs --------------------------------------------------------------------------------------------------

    def _serving(self) -> dict[int, int]:
        """Name the workers that are ready, with their pids."""
        known = self.generations.workers
        workers = self.children.workers.values()
        return {w.id: w.pid for w in workers if w.id in known and known[w.id].stage is Stage.READY}

    def _requests(self) -> dict[int, int]:
        return {worker.id: worker.cells[Cell.REQUESTS] for worker in self.children.workers.values()}

    def _errors(self) -> dict[int, int]:
        return {worker.id: worker.cells[Cell.ERRORS] for worker in self.children.workers.values()}

    def _upkeep(self) -> list[Fact]:
        cgroup, now = self.sampler.cgroup, time.monotonic()
        limits = Limits.of(self.cfg, container=None if cgroup is None else cgroup.limit)
        workers = [
            WorkerFacts(worker.id, now - worker.started, look.memory, look.at)
            for worker in self.children.workers.values()
            if (look := self.sampler.track(worker.pid).look) is not None
        ]
        molds = [MoldFacts(mold.generation, self.sampler.memory(mold.pid)) for mold in self.children.molds.values()]
        return self.upkeep.look(limits, workers, molds)

    def _notify_ready(self) -> None:
        if not self._notified and self.generations.phase is api.Phase.STEADY:
            self._notified = True
            give_memory_back()
            self.sampler.need_all()
            systemd.sd_notify("READY=1\nSTATUS=serving", self.log)
            self.log.info("serving: workers=%s gen=%s", self.generations.ready(), self.generations.current)

    def _hook(self, name: str, *arguments: Any) -> None:
        try:
            getattr(self.cfg, name)(*arguments)
        except Exception:
            self.log.exception("the hook %s failed", name)
