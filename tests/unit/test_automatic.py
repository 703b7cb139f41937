"""refork.automatic asks for reforks that pay, compares what they won with what they promised, and may give up."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from refork import api
from refork.api import Outcome, Phase, RolloutKind, Trigger
from refork.automatic import Automatic, Wish
from refork.decide import Metric, Threshold
from refork.rollout import Rollout
from refork.sampler import Look, Track

MIB = 1024 * 1024
MONITOR, MOLD = 1, 2
COOLDOWN = 100.0
ROLLOUT = Rollout(1, RolloutKind.REFORK, Trigger.MEMORY, 1, 0, Phase.SURGE, 0.0, 0.0, 0.0)


class Configuration:
    """The settings that matter here."""

    def __init__(self, gain: str) -> None:
        self.refork_gain = gain
        self.refork_sustained = 5.0
        self.refork_cooldown = COOLDOWN


@dataclass
class Machine:
    """A sampler whose samples are what a test says; a look at everything takes no time."""

    now: float = 0.0
    tracks: dict[int, Track] = field(default_factory=dict)
    cgroup: api.Cgroup | None = None
    needed: int = 0

    def pids(self) -> tuple[int, ...]:
        return tuple(self.tracks)

    def track(self, pid: int) -> Track:
        return self.tracks.get(pid, Track())

    def pss(self, pids: object) -> int:
        assert isinstance(pids, tuple)
        memories = [self.track(pid).memory for pid in pids]
        return sum(memory.pss for memory in memories if memory is not None)

    def need_all(self, *, first: int | None = None) -> None:
        self.needed += 1

    def seen_since(self, then: float, pids: object) -> bool:
        return True

    def oldest(self) -> float:
        return self.now

    def sampling(self) -> api.Sampling:
        return api.Sampling(interval=1.0, seconds=0.0, cpu_share=0.0, age=0.0)

    def show(self, pid: int, *, private: int, born_with: int = MIB, worker: bool = True) -> None:
        """Say what a process has now."""
        memory = api.Memory(rss=private, pss=private, uss=private, shared=0, private_dirty=private)
        track = Track(baseline=born_with if worker else None)
        track.add(Look(pid, self.now, 0.0, memory, None))
        self.tracks[pid] = track

    def forget(self, *pids: int) -> None:
        for pid in pids:
            self.tracks.pop(pid, None)


class Server:
    """A server of three workers around the decision: it erodes, and is reforked when that is asked for."""

    def __init__(self, gain: str = "20M", *, limit: int | None = None) -> None:
        self.machine = Machine()
        if limit is not None:
            self.machine.cgroup = api.Cgroup(version=2, usage=0, working_set=0, limit=limit, oom_kills=0)
        self.workers = [10, 11, 12]
        sampler: Any = self.machine
        wish = Wish.of(Configuration(gain))
        self.automatic = Automatic(wish, sampler, lambda: dict(enumerate(self.workers)), log=logging.getLogger("test"))
        self.machine.show(MONITOR, private=30 * MIB, worker=False)
        self.machine.show(MOLD, private=50 * MIB, worker=False)
        self.erode(0)

    def erode(self, gained: int) -> None:
        """Say what each worker has gained since its fork."""
        for pid in self.workers:
            self.machine.show(pid, private=MIB + gained)

    def pass_time(self, seconds: float) -> int:
        """Let time pass, with a round of looks each second; return how often a refork was asked for."""
        asked = 0
        for _ in range(int(seconds)):
            self.machine.now += 1.0
            asked += self.automatic.due()
        return asked

    def refork(self, *, won: bool = True, trigger: Trigger = Trigger.MEMORY) -> None:
        """Carry out a refork: new workers share what the old ones had, or (not won) have it again at once."""
        rollout = replace(ROLLOUT, started=self.machine.now, trigger=trigger)
        for phase in (Phase.SURGE, Phase.DRAINING, Phase.SEALING, Phase.CANARY, Phase.ROLLING):
            self.automatic.advanced(replace(rollout, phase=phase))
        gained = self.machine.track(self.workers[0]).gained or 0
        self.machine.forget(*self.workers, MOLD)
        self.workers = [pid + 10 for pid in self.workers]
        self.machine.show(MOLD, private=50 * MIB + (gained if won else 0), worker=False)
        self.erode(0 if won else gained)
        self.automatic.finished(replace(rollout, outcome=Outcome.SUCCEEDED))
        self.automatic.looked()


def test_the_wish_is_read_from_the_settings() -> None:
    """A size is a threshold of bytes, a share one of the limit, and nought is none."""
    assert Wish.of(Configuration("0")).threshold is None
    assert Wish.of(Configuration("2M")).threshold == Threshold(Metric.GAIN, size=2 * MIB, sustained=5.0)
    assert Wish.of(Configuration("20%")).threshold == Threshold(Metric.GAIN, share=0.2, sustained=5.0)


def test_switched_off_it_never_asks_and_still_knows_what_reforks_win() -> None:
    """A refork that somebody commands is judged all the same, for the status."""
    server = Server("0")
    server.erode(500 * MIB)
    assert server.pass_time(1000) == 0
    assert server.automatic.status() is None
    assert server.automatic.gain().predicted == 1000 * MIB
    server.refork(trigger=Trigger.COMMAND)
    assert server.automatic.gain() == api.Gain(predicted=0, promised=1000 * MIB, realised=1000 * MIB)


def test_it_asks_when_the_gain_was_there_for_long_enough() -> None:
    """Not before, and not for what comes and goes."""
    server = Server()
    server.erode(15 * MIB)
    assert server.pass_time(4) == 0
    server.erode(0)
    server.pass_time(1)
    server.erode(15 * MIB)
    assert server.pass_time(5) == 0
    assert server.pass_time(1) == 1
    assert "a refork would win" in server.automatic.explain()


def test_the_same_samples_are_no_new_observation() -> None:
    """Between two rounds of looks nothing was learnt, however often the monitor's loop turns."""
    server = Server()
    server.erode(15 * MIB)
    server.machine.now += 1.0
    server.automatic.due()
    assert not any(server.automatic.due() for _ in range(100))


def test_a_share_is_one_of_the_limit() -> None:
    """20 % of 100 MiB are reached with 20 MiB, and without a limit never."""
    limited = Server("20%", limit=100 * MIB)
    limited.erode(11 * MIB)
    assert limited.pass_time(10) > 0
    unlimited = Server("20%")
    unlimited.erode(1000 * MIB)
    assert unlimited.pass_time(100) == 0


def test_after_a_refork_there_is_a_cool_down() -> None:
    """Never more than one in it, however fast memory erodes."""
    server = Server()
    asked = 0
    for _ in range(10 * int(COOLDOWN)):
        server.erode(15 * MIB)
        if server.pass_time(1):
            asked += 1
            server.refork()
    assert 5 <= asked <= 10
    status = server.automatic.status()
    assert status is not None
    assert (status.unpaid, status.stopped) == (0, False)


def test_reforks_that_do_not_pay_come_less_often_and_then_no_more(caplog: pytest.LogCaptureFixture) -> None:
    """Three in a row, with doubled cool-downs; then it says so once, until it is told otherwise."""
    server = Server()
    times = []
    for _ in range(20 * int(COOLDOWN)):
        server.erode(15 * MIB)
        if server.pass_time(1):
            times.append(server.machine.now)
            server.refork(won=False)
    assert len(times) == 3
    assert times[1] - times[0] >= 2 * COOLDOWN
    assert times[2] - times[1] >= 4 * COOLDOWN
    status = server.automatic.status()
    assert status is not None
    assert (status.stopped, status.reason, status.unpaid) == (True, "DoesNotPay", 3)
    assert sum("refork by memory has stopped" in record.message for record in caplog.records) == 1

    server.automatic.configure(Wish.of(Configuration("20M")))
    status = server.automatic.status()
    assert status is not None
    assert not status.stopped
    assert server.pass_time(10) > 0


def test_a_refork_that_failed_has_won_nothing() -> None:
    """It counts as one that did not pay, and what the last successful one won stays to be seen."""
    server = Server()
    server.erode(15 * MIB)
    server.pass_time(10)
    server.automatic.advanced(replace(ROLLOUT, started=server.machine.now))
    server.automatic.finished(replace(ROLLOUT, outcome=Outcome.FAILED))
    status = server.automatic.status()
    assert status is not None
    assert status.unpaid == 1
    assert server.automatic.gain().realised is None
    assert server.pass_time(COOLDOWN) == 0


@pytest.mark.parametrize("kind", [RolloutKind.REBASE, RolloutKind.TRIAL])
def test_what_is_no_refork_proves_nothing(kind: RolloutKind) -> None:
    """A fresh load promises nothing, and a trial changes nothing."""
    server = Server()
    server.erode(15 * MIB)
    phase = Phase.LOADING if kind is RolloutKind.REBASE else Phase.SURGE
    server.automatic.advanced(replace(ROLLOUT, kind=kind, phase=phase))
    server.automatic.finished(replace(ROLLOUT, kind=kind, outcome=Outcome.FAILED))
    status = server.automatic.status()
    assert status is not None
    assert status.unpaid == 0
    assert server.automatic.gain().promised is None


def test_a_look_that_comes_late_counts_as_long_as_the_worker_is_there() -> None:
    """On a busy machine the new generation may have begun before every old worker was looked at."""
    server = Server()
    server.automatic.advanced(replace(ROLLOUT, phase=Phase.SURGE))
    server.automatic.advanced(replace(ROLLOUT, phase=Phase.CANARY))
    server.erode(15 * MIB)
    server.automatic.advanced(replace(ROLLOUT, phase=Phase.ROLLING))
    server.machine.forget(*server.workers[1:])
    server.automatic.finished(replace(ROLLOUT, outcome=Outcome.SUCCEEDED))
    server.automatic.looked()
    assert server.automatic.gain().promised == 30 * MIB
    assert server.automatic.gain().realised == 2 * 16 * MIB


def test_the_spare_worker_is_no_part_of_what_was_won() -> None:
    """Its own pages were not there before; the pages it shares were the others', and count."""
    server = Server()
    server.erode(15 * MIB)
    server.automatic.advanced(replace(ROLLOUT, phase=Phase.SURGE))
    shared = api.Memory(rss=12 * MIB, pss=5 * MIB, uss=2 * MIB, shared=10 * MIB, private_dirty=2 * MIB)
    spare = Track()
    spare.add(Look(99, 0.0, 0.0, shared, None))
    server.machine.tracks[99] = spare
    server.automatic.advanced(replace(ROLLOUT, phase=Phase.DRAINING))
    server.machine.forget(99)
    server.automatic.finished(replace(ROLLOUT, outcome=Outcome.SUCCEEDED))
    server.automatic.looked()
    assert server.automatic.gain().realised == 3 * MIB
