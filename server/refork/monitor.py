"""The monitor: carries out what the state machine decides, and tells it what has happened.

It owns the listening sockets, the signals and, in its nursery, the lines to its children. It never imports the
application and, once it has booted, never forks: molds do that, and a mold is executed. All of it runs in one asyncio
loop, so that facts are taken in one after the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
import time
from collections import Counter, deque
from typing import TYPE_CHECKING, Any

from gunicorn import SERVER_SOFTWARE, systemd
from gunicorn.pidfile import Pidfile

from refork import __version__, api, decisions, facts, hooks, report
from refork.api import Refusal
from refork.automatic import Automatic, Wish
from refork.children import Children
from refork.control import ControlServer
from refork.durations import Durations
from refork.errors import ConfigurationError, describe
from refork.events import Events
from refork.generations import Generations
from refork.hooks import Server
from refork.listeners import Listeners
from refork.metrics import MetricsServer, metrics_of
from refork.nursery import Nursery
from refork.operations import Operations
from refork.policy import Policy
from refork.population import Stage
from refork.process import become_subreaper, give_memory_back, keep_one_arena, set_title
from refork.sampler import Sampler
from refork.scoreboard import ROWS
from refork.upkeep import Limits, MoldFacts, Upkeep, WorkerFacts
from refork.workers import REFORKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from refork.cli import ReforkApplication
    from refork.control_tcp import ControlTcpServer
    from refork.decisions import Decision
    from refork.facts import Fact
    from refork.rollout import Rollout

IDLE_TICK = 1.0
BUSY_TICK = 0.1
"""Seconds between two looks at the clock while something is under way; whatever happens wakes the monitor at once."""
SECONDS_BETWEEN_STATUS_EVENTS = 2.0
SECONDS_BETWEEN_UPKEEP = 1.0


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
        self.outcomes: Counter[tuple[api.RolloutKind, api.Trigger, api.Outcome]] = Counter()
        self.durations = Durations()
        self.sampler = Sampler(self.pid, self.children.pids, log=self.log)
        self.upkeep = Upkeep()
        self.automatic = Automatic(Wish.of(self.cfg), self.sampler, self._serving, log=self.log)
        self.sampler.told = self.automatic.looked
        self.sampler.held = lambda: self.generations.phase is api.Phase.ROLLING
        self.hook_view = Server(self.pid, app, self.cfg, self.log, self.cfg.workers)
        self.events = Events()
        self.operations = Operations()
        self.listeners = Listeners(self.log)
        self.nursery = Nursery(
            self.hook_view,
            self.generations,
            children=self.children,
            listeners=self.listeners,
            sampler=self.sampler,
            events=self.events,
            tell=self._tell,
        )
        self._announced: api.Phase | None = None
        self._published = float("-inf")
        self._start_directory = app.start_directory
        self._upkept = -math.inf
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
            hooks.run(self.hook_view, "on_exit")

    def _open(self) -> None:
        if self.cfg.pidfile is not None:
            self._pidfile = Pidfile(self.cfg.pidfile)
            try:
                self._pidfile.create(self.pid)
            except (OSError, RuntimeError) as error:
                raise ConfigurationError(f"pid file {self.cfg.pidfile}: {error}") from error
        hooks.demand(self.hook_view, "on_starting")
        self._listen()
        self.log.info("Using worker: %s", self.cfg.worker_class_str)
        hooks.demand(self.hook_view, "nworkers_changed", self.cfg.workers, None)
        hooks.demand(self.hook_view, "when_ready")

    def _listen(self) -> None:
        self.listeners.listen(self.cfg)
        self.hook_view.LISTENERS = self.listeners.open

    def _close(self) -> None:
        self.listeners.close()
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
            metrics = metrics_of(lambda: report.status(self), self.events, bind=self.cfg.metrics_bind, log=self.log)
            endpoints.append(metrics)
        return endpoints

    def _control_tcp(self) -> ControlTcpServer:
        from refork.control_tcp import ControlTcpServer  # noqa: PLC0415 - only who has such a door needs it
        from refork.door import door_of  # noqa: PLC0415 - as above

        door = door_of(self.cfg)
        assert door is not None
        return ControlTcpServer(self, self.events, door=door, log=self.log)

    def _tick(self) -> None:
        self.nursery.kill_silent_workers()
        self._tell(facts.RequestsCounted(self.nursery.requests(), self.nursery.errors()))
        self._keep_up()
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
                self.nursery.exec_mold(generation)
            case decisions.ForkWorker():
                self.nursery.fork_worker(decision)
            case decisions.PromoteWorker():
                self.nursery.promote(decision)
            case decisions.DrainWorker(worker, quick):
                self.nursery.drain(worker, quick=quick)
            case decisions.KillWorker(worker):
                self.nursery.kill_worker(worker)
            case decisions.RetireMold(generation):
                self.nursery.retire(generation)
            case decisions.KillMold(generation):
                self.nursery.kill_mold(generation)
            case decisions.Advanced(rollout):
                self.log.info("%s: %s", rollout, rollout.phase)
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
        slots = {worker.slot for worker in now.population.workers.values()}
        arrived = now.population.ready() == len(slots) == now.wanted
        self.operations.resized(now.wanted, arrived=arrived, now=time.monotonic())

    def _finished(self, rollout: Rollout) -> None:
        outcome = rollout.outcome or api.Outcome.FAILED
        self.outcomes[rollout.kind, rollout.trigger, outcome] += 1
        self.durations.add(rollout.steps)
        if rollout.kind is not api.RolloutKind.TRIAL:
            self.automatic.finished(rollout)
        seconds = rollout.since - rollout.started
        if outcome is api.Outcome.SUCCEEDED:
            self.log.info("%s succeeded after %.3f s", rollout, seconds)
            self.listeners.let_go()
        else:
            self.log.error("%s failed after %.3f s: %s", rollout, seconds, rollout.reason)
            self._bar_class(rollout)
        ended = report.rollout(rollout, now=time.monotonic())
        self.operations.ended(ended)
        self.events.publish(ended)
        if rollout.kind is not api.RolloutKind.TRIAL:
            hooks.run(self.hook_view, "after_refork", outcome.value)

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

    # --- signals ------------------------------------------------------------------------------------------------------

    def _install_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number, handle in {
            signal.SIGCHLD: self.nursery.reap,
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
        self.listeners.close()
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
        self.nursery.reopen_logs()

    def _refuse_reexec(self) -> None:
        self.log.warning("USR2 does nothing: refork does not re-execute itself. HUP loads new code without downtime.")

    def _refork_by_signal(self) -> None:
        try:
            self._ask(facts.ReforkRequested(api.Trigger.SIGNAL, self.nursery.requests()))
        except Refusal as refusal:
            self.log.warning("refork refused: %s", refusal)

    def _refork_by_memory(self) -> None:
        if self.generations.refusal() or not self.automatic.due():
            return
        self.log.info("refork by memory: %s", self.automatic.explain())
        with contextlib.suppress(Refusal):  # what stands in its way was asked for before
            self._ask(facts.ReforkRequested(api.Trigger.MEMORY, self.nursery.requests()))

    def _reload(self) -> None:
        """Take up a new configuration and, by a rebase, new code; a broken one leaves everything as it is."""
        from refork.cli import load_application  # noqa: PLC0415 - cli imports this module

        try:
            app = load_application(self.app.argv, directory=self._start_directory)
            self.listeners.listen(app.cfg)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a configuration file may do anything
            self.log.error("the new configuration is broken, the old one stays: %s", describe(error))
            return
        self.app, self.cfg = app, app.cfg
        self.log.setup(self.cfg)
        self.log.reopen_files()
        self.hook_view.app, self.hook_view.cfg, self.hook_view.LISTENERS = app, self.cfg, self.listeners.open
        hooks.run(self.hook_view, "on_reload")
        self.generations.configure(policy_of(self.cfg))
        self.automatic.configure(Wish.of(self.cfg))
        self.generations.barred = ""
        if self.cfg.workers != self.generations.wanted:
            self._resize(self.cfg.workers)
        self._ask(facts.RebaseRequested(api.Trigger.RELOAD))

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
        self._ask(facts.ReforkRequested(api.Trigger.COMMAND, self.nursery.requests(), command.slot))
        return self._accepted()

    def _doctor(self, command: api.DoctorCommand) -> api.Accepted:
        self._ask(facts.TrialRequested(api.Trigger.COMMAND, self.nursery.requests(), command.slot))
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
        known = self.generations.population.workers
        workers = self.children.workers.values()
        return {w.id: w.pid for w in workers if w.id in known and known[w.id].stage is Stage.READY}

    def _keep_up(self) -> None:
        """Judge the growth and the age of everybody, once a second: looks are rarer, and ages long."""
        now = time.monotonic()
        if now - self._upkept < SECONDS_BETWEEN_UPKEEP:
            return
        self._upkept = now
        cgroup = self.sampler.cgroup
        limits = Limits.of(self.cfg, container=None if cgroup is None else cgroup.limit)
        workers = [
            WorkerFacts(worker.id, now - worker.started, look.memory, look.at)
            for worker in self.children.workers.values()
            if (look := self.sampler.track(worker.pid).look) is not None
        ]
        molds = [MoldFacts(mold.generation, self.sampler.memory(mold.pid)) for mold in self.children.molds.values()]
        self._tell(*self.upkeep.look(limits, workers, molds))

    def _notify_ready(self) -> None:
        if not self._notified and self.generations.phase is api.Phase.STEADY:
            self._notified = True
            give_memory_back()
            self.sampler.need_all()
            systemd.sd_notify("READY=1\nSTATUS=serving", self.log)
            self.log.info("serving: workers=%s gen=%s", self.generations.population.ready(), self.generations.current)
