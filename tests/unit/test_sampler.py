"""refork.sampler knows the memory of real processes without being asked, and tells erosion from what was there."""

from __future__ import annotations

import asyncio
import logging
import mmap
import os
import subprocess
import sys
import threading
import time
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from refork import api, memory, sampler
from refork.pace import Pace
from refork.sampler import Look, Sampler, Track

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

MIB = 1024 * 1024
PATIENCE = 20

GROWING = f"""
import mmap, sys
for line in sys.stdin:
    area = mmap.mmap(-1, int(line), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    area.madvise(mmap.MADV_NOHUGEPAGE)
    for offset in range(0, int(line), {mmap.PAGESIZE}):
        area[offset] = 1
    globals()[f"kept{{offset}}"] = area
    print("grown", flush=True)
"""


def rollup(uss: int) -> api.Memory:
    """Make up a memory of which only the private part matters."""
    return api.Memory(rss=10 * MIB + uss, pss=uss, uss=uss, shared=10 * MIB, private_dirty=uss)


def look(at: float, uss: int | None) -> Look:
    """Make up a look."""
    return Look(1, at, 0.0, None if uss is None else rollup(uss), None)


# --- one process over time --------------------------------------------------------------------------------------------


def test_what_a_worker_was_born_with_is_no_erosion() -> None:
    """The baseline is the first look after it became ready; only what comes on top was gained."""
    track = Track()
    track.add(look(0.0, 5 * MIB))
    assert track.gained is None
    track.awaits_baseline = True
    track.add(look(1.0, 7 * MIB))
    assert track.gained == 0
    track.add(look(2.0, 9 * MIB))
    assert track.gained == 2 * MIB


def test_memory_that_is_given_back_is_no_negative_erosion() -> None:
    """A worker that shrinks below its baseline has nothing that a refork could win."""
    track = Track(awaits_baseline=True)
    track.add(look(0.0, 9 * MIB))
    track.add(look(10.0, 4 * MIB))
    assert track.gained == 0
    assert track.rate == -5 * MIB / 10


def test_the_rate_is_that_of_the_last_two_minutes() -> None:
    """An hour of calm after a burst is calm."""
    track = Track(awaits_baseline=True)
    track.add(look(0.0, 1 * MIB))
    for second in range(10, 70, 10):
        track.add(look(float(second), 1 * MIB + second * 1000))
    assert track.rate == pytest.approx(1000.0)
    for second in range(70, 400, 10):
        track.add(look(float(second), 1 * MIB + 60_000))
    assert track.rate == 0.0


def test_a_rate_takes_time_to_be_known() -> None:
    """Two looks within the same moment say nothing about a second."""
    track = Track(awaits_baseline=True)
    track.add(look(0.0, 1 * MIB))
    track.add(look(0.01, 2 * MIB))
    assert track.rate is None


def test_a_process_that_cannot_be_measured_keeps_its_baseline() -> None:
    """A look that failed is no fact about the memory."""
    track = Track(awaits_baseline=True)
    track.add(look(0.0, None))
    assert track.awaits_baseline
    track.add(look(1.0, 3 * MIB))
    track.add(look(2.0, None))
    assert (track.memory, track.gained, track.rate) == (None, None, None)
    track.add(look(3.0, 4 * MIB))
    assert track.gained == 1 * MIB


# --- real processes ---------------------------------------------------------------------------------------------------


@contextmanager
def growing() -> Iterator[tuple[int, Callable[[int], None]]]:
    """Run a process that takes as much private memory as it is told to."""
    with subprocess.Popen(
        [sys.executable, "-c", GROWING], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def grow(size: int) -> None:
            print(size, file=process.stdin, flush=True)
            assert process.stdout is not None
            assert process.stdout.readline() == "grown\n"

        grow(mmap.PAGESIZE)
        yield process.pid, grow
        process.stdin.close()


@dataclass
class Watched:
    """A sampler that runs, and what it has told."""

    sampler: Sampler
    told: asyncio.Event = field(default_factory=asyncio.Event)

    async def until(self, fact: Callable[[], Any]) -> Any:
        """Wait for a fact that comes with some look."""
        async with asyncio.timeout(PATIENCE):
            while not (found := fact()):
                self.told.clear()
                await self.told.wait()
        return found


@asynccontextmanager
async def watching(*pids: int) -> AsyncIterator[Watched]:
    """Run a sampler for this process and these, which looks at each of them once a second."""
    pace = Pace(time.monotonic(), shortest=1.0)
    watched = Watched(Sampler(os.getpid(), lambda: pids, log=logging.getLogger("test"), pace=pace))
    watched.sampler.told = watched.told.set
    task = asyncio.create_task(watched.sampler.run())
    try:
        yield watched
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def test_everybody_is_seen_without_being_asked_for() -> None:
    """Monitor and children have samples soon after the start; one that was never seen has none."""

    async def scenario() -> None:
        with growing() as (pid, _):
            async with watching(pid) as watched:
                seen = watched.sampler
                assert seen.memory(pid) is None
                await watched.until(lambda: seen.memory(pid) and seen.memory(os.getpid()))
                process = seen.process(pid)
                assert process is not None
                assert process.threads == 1
                assert seen.memory(1 << 30) is None
                assert seen.track(1 << 30).gained is None
                assert seen.pss([pid]) <= seen.pss([pid, os.getpid(), 1 << 30])

    asyncio.run(scenario())


def test_what_a_worker_takes_after_it_was_ready_is_gained() -> None:
    """From the kernel's figures: 20 MiB written to are 20 MiB of erosion."""

    async def scenario() -> None:
        with growing() as (pid, grow):
            async with watching(pid) as watched:
                seen = watched.sampler
                seen.began(pid)
                await watched.until(lambda: seen.track(pid).gained is not None)
                grow(20 * MIB)
                await watched.until(lambda: (seen.track(pid).gained or 0) >= 20 * MIB)
                assert (seen.track(pid).gained or 0) < 22 * MIB
                assert await watched.until(lambda: seen.track(pid).rate) > 0
                seen.promoted(pid)
                assert seen.track(pid).gained is None

    asyncio.run(scenario())


def test_a_process_that_is_reaped_is_forgotten() -> None:
    """Its number may be another's the next moment."""

    async def scenario() -> None:
        with growing() as (pid, _):
            async with watching(pid) as watched:
                seen = watched.sampler
                await watched.until(lambda: seen.memory(pid))
                seen.forget(pid)
                assert seen.memory(pid) is None

    asyncio.run(scenario())


def test_a_process_that_is_reaped_while_it_is_looked_at_stays_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the look brings comes too late."""
    looking, go_on = threading.Event(), threading.Event()
    pids = [4_000_000]

    def slow(pid: int, place: object = None) -> Look:
        if pid in pids:
            looking.set()
            assert go_on.wait(PATIENCE)
        return Look(pid, 0.0, 0.0, rollup(MIB), None)

    monkeypatch.setattr(sampler, "take", slow)

    async def scenario() -> None:
        seen = Sampler(os.getpid(), lambda: list(pids), log=logging.getLogger("test"))
        watched = Watched(seen)
        seen.told = watched.told.set
        seen.began(pids[0])
        task = asyncio.create_task(seen.run())
        await asyncio.to_thread(looking.wait, PATIENCE)
        seen.forget(pids[0])
        gone = pids.pop()
        go_on.set()
        await watched.until(lambda: seen.memory(os.getpid()))
        assert seen.memory(gone) is None
        task.cancel()

    asyncio.run(scenario())


def test_looking_never_holds_up_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process whose page tables take long to walk costs its own time, and nobody else's."""
    go_on = threading.Event()

    def slow(pid: int, place: object = None) -> Look:
        assert go_on.wait(PATIENCE)
        return Look(pid, 0.0, 0.0, rollup(MIB), None)

    monkeypatch.setattr(sampler, "take", slow)

    async def scenario() -> None:
        async with watching() as watched:
            for _ in range(100):
                await asyncio.sleep(0)
            assert watched.sampler.memory(os.getpid()) is None
            go_on.set()
            await watched.until(lambda: watched.sampler.memory(os.getpid()))

    asyncio.run(scenario())


def test_a_look_that_fails_is_logged_and_the_next_one_made(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever goes wrong, the monitor serves on."""
    monkeypatch.setattr(sampler, "SHORTEST", 0.0)
    attempts = iter([True])

    def fragile(pid: int, place: object = None) -> Look:
        if next(attempts, False):
            raise MemoryError("no room to read")
        return Look(pid, 0.0, 0.0, rollup(MIB), None)

    monkeypatch.setattr(sampler, "take", fragile)

    async def scenario() -> None:
        async with watching() as watched:
            await watched.until(lambda: watched.sampler.memory(os.getpid()))

    asyncio.run(scenario())
    assert "sampling memory failed" in caplog.text


def test_the_cost_of_a_look_is_its_processor_time() -> None:
    """It includes the kernel's work, and is what the budget is charged."""
    taken = sampler.take(os.getpid())
    assert taken.cost > 0
    assert taken.memory is not None
    assert abs(taken.memory.rss - (memory.read(os.getpid()) or taken.memory).rss) < 5 * MIB

    async def scenario() -> api.Sampling:
        async with watching() as watched:
            await watched.until(lambda: watched.sampler.memory(os.getpid()))
            return watched.sampler.sampling()

    told = asyncio.run(scenario())
    assert told.seconds > 0
    assert told.interval >= 1.0
    assert told.age >= 0


def test_the_control_group_is_read_with_the_monitor() -> None:
    """It is one look of the same kind, paid for in the same way."""

    async def scenario() -> None:
        async with watching() as watched:
            await watched.until(lambda: watched.sampler.memory(os.getpid()))
            found = watched.sampler.cgroup
            if found is None:
                pytest.skip("this process is in no control group that counts memory")
            assert found.usage > 0

    asyncio.run(scenario())
