"""The worker: serves requests in a slot, and may be promoted.

A gunicorn worker class does the serving. Around it: the process is made the monitor's child before anything runs, the
heartbeat goes to the scoreboard, and when the class has come back from its loop the channel is asked whether this was
the end or a promotion.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from gunicorn.errors import AppImportError
from gunicorn.workers import base

from refork import channel as wire
from refork import fork_safety, leaving, listeners, promotion, quiescers, reseed
from refork.errors import describe
from refork.lineage import worker_signals
from refork.process import die_with_parent, set_title, wait_for_parent
from refork.workers import WORKER_BOOT_ERROR

if TYPE_CHECKING:
    from refork.channel import Channel
    from refork.lineage import Lineage
    from refork.mold import Mold
    from refork.scoreboard import Row


class Heartbeat:
    """What stands where gunicorn has a temporary file whose time of change is the heartbeat.

    It has that file's interface, and needs no writable file system. A worker's first heartbeat comes from its loop,
    when it has begun to accept: that is what makes it ready.
    """

    def __init__(self, _cfg: Any, *, row: Row, fd: int) -> None:
        self.row = row
        self._fd = fd
        self._channel: Channel | None = None
        self._ready = False
        self._promotion: tuple[wire.Promote, tuple[int, ...]] | None = None

    def connect(self, channel: Channel) -> None:
        """Take up the line on which readiness is told and a promotion is announced."""
        self._channel = channel

    def notify(self) -> None:
        """Beat; the first time, say that the worker is ready."""
        self.row.beat()
        if not self._ready and self._channel is not None:
            self._ready = True
            self._channel.send(wire.Ready())

    def promoting(self) -> bool:
        """Whether the monitor has announced that this worker is to become a mold."""
        return self.promotion() is not None

    def promotion(self) -> tuple[wire.Promote, tuple[int, ...]] | None:
        """Return the announcement with its descriptors, if it has arrived."""
        if self._promotion is None and self._channel is not None:
            try:
                received = self._channel.receive(wait=False)
            except BlockingIOError:
                received = None
            if received is not None and isinstance(received[0], wire.Promote):
                self._promotion = (received[0], received[1])
        return self._promotion

    def fileno(self) -> int:
        """Return a descriptor that may be set close-on-exec."""
        return self._fd

    def close(self) -> None:
        """Leave the scoreboard open: it belongs to all."""


def build(lineage: Lineage, *, age: int, row: int) -> Any:
    """Make the gunicorn worker object, before the fork, as gunicorn does."""
    board = lineage.scoreboard
    # gunicorn has no setting for where the heartbeat goes: it looks the class up in this module.
    base.WorkerTmp = partial(Heartbeat, row=board.row(row), fd=board.fd)
    cfg = lineage.cfg
    return lineage.worker_class(age, lineage.monitor, lineage.listeners, lineage.app, cfg.timeout / 2, cfg, lineage.log)


@dataclass(slots=True)
class Worker:
    """A forked process with a slot."""

    lineage: Lineage
    channel: Channel
    gunicorn_worker: Any
    slot: int
    generation: int

    def serve(self) -> Mold | None:
        """Serve until stopped; return the mold to become, None if the process is to end."""
        lineage = self.lineage
        wait_for_parent(lineage.monitor)
        die_with_parent(lineage.monitor)
        set_title(f"refork:worker[{self.slot}] gen={self.generation}")
        worker_signals()
        if not self.channel.send(wire.Born(os.getpid())):
            os._exit(0)  # the monitor has given this fork up, and would not know of it
        status = self._run()
        announced = self.gunicorn_worker.tmp.promotion()
        if announced is None or status != 0:
            self._exit(status)
        order, fds = announced
        mold = promotion.promote(self, order)
        if mold is None:
            self._exit(0)
        lineage.listeners.extend(listeners.adopt(fds, cfg=lineage.cfg, log=lineage.log))
        return mold

    def _run(self) -> int:
        """Run gunicorn's worker as its arbiter would; return the exit status it asks for."""
        worker, cfg, log = self.gunicorn_worker, self.lineage.cfg, self.lineage.log
        worker.pid = os.getpid()
        worker.tmp.connect(self.channel)
        try:
            log.debug("worker[%s] gen=%s pid=%s booting", self.slot, self.generation, worker.pid)
            reseed.reseed()
            quiescers.wake(log)
            cfg.post_fork(self.lineage.server, worker)
            cfg.after_worker_fork(worker)
            fork_safety.forget_sections()
            fork_safety.run_hooks("after_worker_fork")
            die_with_parent(self.lineage.monitor)
            worker.init_process()
        except SystemExit as end:
            return end.code if isinstance(end.code, int) else int(end.code is not None)
        except AppImportError as error:
            return self._fail(error, WORKER_BOOT_ERROR)
        except Exception as error:
            log.exception("worker[%s] gen=%s failed", self.slot, self.generation)
            return self._fail(error, 1 if worker.booted else WORKER_BOOT_ERROR)
        return 0

    def _fail(self, error: BaseException, status: int) -> int:
        self.channel.send(wire.Failed(wire.clip(describe(error))))
        return status

    def _exit(self, status: int) -> None:
        """End the process: gunicorn's hook first."""
        try:
            self.lineage.cfg.worker_exit(self.lineage.server, self.gunicorn_worker)
        except Exception:
            self.lineage.log.exception("the hook worker_exit failed")
        leaving.leave(status)
