"""The mold: a process with a warm application and a sealed heap that serves nothing and forks workers.

The first mold of a lineage is executed by the monitor, with a fresh interpreter, and loads the application
(``main``). Later ones are promoted workers. Both do the same from then on: seal, report, and fork when told to.

A worker is forked twice over: the process between the two ends at once, so that the kernel re-parents the worker to the
monitor (a child subreaper), which can then wait for it like for a child of its own, whatever becomes of the mold.
"""

from __future__ import annotations

import gc
import os
import socket
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gunicorn import util
from gunicorn.errors import AppImportError

from refork import channel as wire
from refork import evidence, fork_safety, heap, listeners, promotion, quiescers
from refork.channel import Channel
from refork.errors import ConfigurationError, describe
from refork.hooks import Server
from refork.lineage import Lineage, live, mold_signals
from refork.process import die_with_parent, flush_output, fork_away, set_title
from refork.scoreboard import Scoreboard
from refork.worker import Worker, build
from refork.workers import WORKER_BOOT_ERROR, adapt, count_requests

if TYPE_CHECKING:
    from collections.abc import Sequence

APP_LOAD_ERROR = 4
"""gunicorn's ``Arbiter.APP_LOAD_ERROR``."""

CHANNEL_VARIABLE = "REFORK_CHANNEL_FD"


@dataclass(slots=True)
class Mold:
    """The fork server of one generation; hooks get it as ``mold``."""

    lineage: Lineage
    channel: Channel
    generation: int
    promoted: bool

    @property
    def pid(self) -> int:
        """The process id."""
        return os.getpid()

    @property
    def cfg(self) -> Any:
        """The configuration."""
        return self.lineage.cfg

    @property
    def log(self) -> Any:
        """gunicorn's logger."""
        return self.lineage.log

    def serve(self) -> Worker | None:
        """Seal the heap and fork until told to end; in each forked worker, return the worker."""
        set_title(f"refork:mold[gen={self.generation}]")
        mold_signals(self.log)
        if self.promoted:
            try:
                self.cfg.after_mold_fork(self)
                fork_safety.run_hooks("after_mold_fork")
            except Exception as error:
                self.log.exception("the hook after_mold_fork failed")
                self.channel.send(wire.Failed(wire.clip(f"the hook after_mold_fork failed: {describe(error)}")))
                os._exit(1)
            quiescers.remember()
        else:
            promotion.settle_loaded(self.lineage, own=self.channel.fileno(), generation=self.generation)
        report = self._seal()
        self.channel.send(
            wire.MoldReady(
                pid=os.getpid(),
                sealed=report.sealed,
                reason=wire.clip(report.reason),
                objects=report.objects,
                total_objects=report.total_objects,
                seconds=report.seconds,
            )
        )
        if self.promoted:
            try:
                self.cfg.after_promote(self)
            except Exception:
                self.log.exception("the hook after_promote failed")
        return self._answer()

    def _seal(self) -> heap.SealReport:
        if self.cfg.seal:
            return heap.seal()
        gc.collect()
        gc.freeze()
        return heap.SealReport(sealed=False, reason="switched off with --no-seal")

    def _answer(self) -> Worker | None:
        while True:
            received = self.channel.receive()
            match received:
                case (wire.Fork() as order, (end,)):
                    worker = self._fork(order, socket.socket(fileno=end))
                    if worker is not None:
                        return worker
                case None | (wire.Retire(), _):
                    # No atexit handlers: they would clean up what the living workers still use.
                    flush_output()
                    os._exit(0)
                case (_, descriptors):
                    wire.close_all(descriptors)

    def _fork(self, order: wire.Fork, end: socket.socket) -> Worker | None:
        try:
            worker = self._prepare(order, end)
            flush_output()
            if not fork_away():
                self.channel.close()
                return worker
        except Exception as error:
            self.log.exception("worker[%s] gen=%s could not be forked", order.slot, self.generation)
            self.channel.send(wire.ForkFailed(order.worker, wire.clip(describe(error))))
        end.close()  # not earlier: its end-of-file would be heard before the reason
        return None

    def _prepare(self, order: wire.Fork, end: socket.socket) -> Worker:
        gunicorn_worker = build(self.lineage, age=order.worker + 1, row=order.row)
        self.cfg.before_worker_fork(self)
        quiescers.before_fork(self.log)
        self.cfg.pre_fork(self.lineage.server, gunicorn_worker)
        return Worker(
            lineage=self.lineage,
            channel=Channel(end),
            gunicorn_worker=gunicorn_worker,
            slot=order.slot,
            generation=self.generation,
        )


def main() -> None:
    """Load the application in a fresh interpreter, as the monitor has executed it, and be its first mold."""
    evidence.remember_given()
    channel = Channel(socket.socket(fileno=int(os.environ.pop(CHANNEL_VARIABLE))))
    monitor = os.getppid()
    received = channel.receive()
    if received is None:
        sys.exit(0)
    order, descriptors = received
    if not isinstance(order, wire.Load):
        raise TypeError(f"expected Load, got {order}")
    try:
        lineage = load(sys.argv[1:], monitor=monitor, descriptors=descriptors)
    except BaseException as error:  # noqa: BLE001 - an application may raise anything while it is imported
        status = exit_status(error)
        channel.send(wire.MoldFailed(wire.clip(describe(error)), status))
        sys.exit(status)
    live(Mold(lineage, channel, order.generation, promoted=False))


def exit_status(error: BaseException) -> int:
    """Return the status that gunicorn's arbiter ends with when its workers meet this while they boot."""
    if isinstance(error, AppImportError):
        return APP_LOAD_ERROR
    return error.exit_status if isinstance(error, ConfigurationError) else WORKER_BOOT_ERROR


def load(argv: Sequence[str], *, monitor: int, descriptors: tuple[int, ...]) -> Lineage:
    """Read the configuration and load the application, with the rights that its workers will have."""
    from refork.cli import load_application  # noqa: PLC0415 - the forked worker has no use for a command line

    app = load_application(list(argv))
    cfg = app.cfg
    log = cfg.open_log()
    set_title("refork:mold[loading]")
    mold_signals(log)
    os.environ.update(cfg.env)
    scoreboard_fd, *listener_fds = descriptors
    server = Server(pid=monitor, app=app, cfg=cfg, log=log, num_workers=cfg.workers)
    server.LISTENERS = listeners.adopt(listener_fds, cfg=cfg, log=log)
    worker_class = adapt(cfg.worker_class)
    if hasattr(worker_class, "check_config"):
        worker_class.check_config(cfg, log)
    if not getattr(worker_class, "counts_its_requests", False):
        count_requests(cfg)
    util.set_owner_process(cfg.uid, cfg.gid, initgroups=cfg.initgroups)
    die_with_parent(monitor)
    app.wsgi()
    return Lineage(app=app, log=log, server=server, worker_class=worker_class, scoreboard=Scoreboard(scoreboard_fd))


if __name__ == "__main__":
    main()
