"""The command ``refork-exporter``: watches a prefork server that is not refork, from a container beside it.

A platform team wants to see what there is to win before it changes anything. So this reads ``/proc`` with the rights of
the server's user, and nothing else: it stops, traces, signals and writes to no process (see docs/ESTIMATE.md).

Three things go on. The exporter looks around for the server and its workers (``exporter_watch``); refork's own sampler
looks at their memory, at a pace that keeps to a budget (``sampler``); and now and then there is an estimate
(``exporter_estimates``). A scrape reads what they know, and measures nothing.

It may be process 1 of its container: signals have handlers, and children that are left to it need nobody to reap them.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING

from refork import __version__, cgroup, exporter_settings
from refork.bind import BindError
from refork.exporter_estimates import Estimates
from refork.exporter_report import Estimated, Report, Seen, Trouble
from refork.exporter_search import State
from refork.exporter_watch import Watch
from refork.metrics import MetricsServer
from refork.pace import Pace
from refork.process import give_memory_back, keep_one_arena
from refork.sampler import Sampler

if TYPE_CHECKING:
    from collections.abc import Sequence

    from refork.endpoint import Stay
    from refork.exporter_settings import Settings
    from refork.web import Application

OK, CANNOT_LISTEN = 0, 1

# As gunicorn writes them, and refork: whoever collects their lines can read these.
LINE, DATE = "%(asctime)s [%(process)d] [%(levelname)s] %(message)s", "[%Y-%m-%d %H:%M:%S %z]"

_LOOKS, _ESTIMATES, _LOOKING_AROUND = 0.4, 0.3, 0.1
"""How what all of this may cost is divided. The rest is for what it costs beside itself, and for scrapes."""


def main(words: Sequence[str] | None = None) -> int:
    """Watch until told to end; the result is the exit code."""
    settings = exporter_settings.parse(sys.argv[1:] if words is None else words, env=os.environ)
    logging.basicConfig(format=LINE, datefmt=DATE, level=logging.INFO, stream=sys.stderr)
    # What the kernel reaps itself, nobody has to wait for (sigaction(2)).
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    keep_one_arena()
    return asyncio.run(Exporter(settings).run())


class Exporter:
    """Puts the parts together."""

    def __init__(self, settings: Settings) -> None:
        self._log = logging.getLogger("refork.exporter")
        self._own = os.getpid()
        self._settings = settings
        self._watch = Watch(self._own, pid=settings.pid, log=self._log)
        pace = Pace(time.monotonic(), share=settings.cpu_share * _LOOKS, shortest=settings.interval)
        self._sampler = Sampler(self._own, self._watch.pids, log=self._log, pace=pace)
        self._estimates = Estimates(
            interval=settings.estimate_interval, share=settings.cpu_share * _ESTIMATES, log=self._log
        )
        self._metrics = MetricsServer(self._application, bind=settings.bind, log=self._log)
        self._troubles: Counter[Trouble] = Counter()
        self._end = asyncio.Event()

    async def run(self) -> int:
        """Watch and answer until a signal ends it."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end.set)
        try:
            await self._metrics.start()
        except BindError as error:
            self._log.error("%s: choose another --bind", error)
            return CANNOT_LISTEN
        give_memory_back()
        tasks = [asyncio.create_task(each) for each in (self._sampler.run(), self._look_around())]
        await self._end.wait()
        for task in tasks:
            task.cancel()
        self._estimates.stop()
        await self._metrics.stop()
        self._log.info("ended")
        return OK

    async def _look_around(self) -> None:
        while True:
            before = time.thread_time()
            try:
                self._look()
            except Exception:  # noqa: BLE001 - a look that failed is no reason to look no more
                self._troubles[Trouble.INTERNAL] += 1
                self._log.exception("looking around failed")
            cost = time.thread_time() - before
            await asyncio.sleep(max(self._settings.interval, cost / (self._settings.cpu_share * _LOOKING_AROUND)))

    def _look(self) -> None:
        """Look around; have those looked at who are new, and forget those who are gone."""
        before, master = {each.identity for each in self._watch.processes}, self._watch.master
        self._watch.look()
        now = {each.identity for each in self._watch.processes}
        for pid, _ in before - now:
            self._sampler.forget(pid)
        for pid, _ in now - before:
            self._sampler.need(pid)
        found = self._watch.master
        if found is None or master is None or found.identity != master.identity:
            self._sampler.place = None if found is None else cgroup.find_of(found.pid)
            self._sampler.cgroup = None
        watching = self._watch.found.state is State.WATCHING
        self._estimates.want(found if watching else None, now=time.monotonic())

    def _report(self) -> Report:
        sampler, estimates = self._sampler, self._estimates
        return Report(
            version=__version__,
            found=self._watch.found,
            seen=tuple(
                Seen(role=role, slot=slot, memory=sampler.memory(pid), process=sampler.process(pid))
                for role, slot, pid in self._watch.places()
            ),
            cgroup=sampler.cgroup,
            sampling=sampler.sampling(),
            estimated=Estimated(
                latest=estimates.latest,
                age=estimates.age(time.monotonic()),
                outcomes=estimates.outcomes,
                seconds=estimates.seconds,
            ),
            troubles=self._troubles + self._watch.troubles + estimates.troubles,
            own_memory=sampler.memory(self._own),
            own_process=sampler.process(self._own),
        )

    def _application(self, _: Stay) -> Application:
        from refork.exporter_app import application  # noqa: PLC0415 - not before somebody asks

        return application(self._report, log=self._log)


if __name__ == "__main__":
    sys.exit(main())
