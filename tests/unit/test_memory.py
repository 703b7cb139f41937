"""refork.memory tells what the kernel says about a process, and nothing when it says nothing."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refork import api, memory

ROLLUP = b"""\
55a843974000-7ffc35c4f000 ---p 00000000 00:00 0                          [rollup]
Rss:                1784 kB
Pss:                 345 kB
Pss_Dirty:           112 kB
Pss_Anon:            112 kB
Pss_File:            230 kB
Pss_Shmem:             3 kB
Shared_Clean:       1632 kB
Shared_Dirty:          8 kB
Private_Clean:        40 kB
Private_Dirty:       112 kB
KSM:                   4 kB
Swap:                 16 kB
SwapPss:               5 kB
"""

PAGES = 2000
NOISE = 64  # pages that the interpreter itself may write to between two looks

# A parent with touched private anonymous pages, and its forked child, which writes to as many of them as it is told.
FORKED = f"""
import mmap, os, sys
area = mmap.mmap(-1, {PAGES} * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
area.madvise(mmap.MADV_NOHUGEPAGE)
def write(pages):
    for page in range(pages):
        area[page * mmap.PAGESIZE] = 1 + page % 100
write({PAGES})
child = os.fork()
if child:
    sys.exit(os.waitpid(child, 0)[1])
print(os.getpid(), flush=True)
for line in sys.stdin:
    write(int(line))
    print("written", flush=True)
"""


@pytest.mark.parametrize("pages", [1, 500, PAGES])
def test_private_dirty_grows_by_the_pages_that_a_forked_child_writes_to(pages: int) -> None:
    """The figure that refork is about is the number of pages, times their size, that stopped being shared."""
    with subprocess.Popen(
        [sys.executable, "-c", FORKED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        looks = []
        for order in (0, pages):  # the first makes the child touch all of the interpreter that the second needs
            print(order, file=parent.stdin, flush=True)
            assert parent.stdout.readline() == "written\n"
            looks.append(memory.read(child))
        before, after = looks
        parent.stdin.close()

    assert before is not None
    assert after is not None
    grown = (after.private_dirty - before.private_dirty) // mmap.PAGESIZE
    unshared = (before.shared - after.shared) // mmap.PAGESIZE
    assert pages <= grown <= pages + NOISE
    assert pages - NOISE <= unshared <= pages + NOISE  # file pages that are mapped meanwhile count as shared too
    assert after.uss - before.uss >= pages * mmap.PAGESIZE
    assert after.rss >= after.pss >= after.uss >= after.private_dirty


def test_a_process_that_is_gone_has_no_memory() -> None:
    """A zombie, and then nothing at all, is None and no exception."""
    with subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert memory.read(process.pid) is None
        assert memory.start_ticks(process.pid) is not None
    assert memory.read(process.pid) is None
    assert memory.start_ticks(process.pid) is None
    assert memory.started_at(process.pid) is None


@pytest.mark.parametrize("pid", [0, -1, 2**31 - 1])
def test_a_pid_that_names_nobody_is_no_error(pid: int) -> None:
    """Whatever number comes, the answer is None."""
    assert memory.read(pid) is None
    assert memory.started_at(pid) is None


def test_the_start_of_a_process_is_an_instant_of_now() -> None:
    """The start time is Unix time, good to the tick and the whole second of the boot time."""
    before = time.time()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        started = memory.started_at(process.pid)
    assert started is not None
    assert before - 2 <= started <= time.time() + 2


def test_a_rollup_is_read_in_bytes() -> None:
    """The kernel counts in KiB, refork in bytes; USS and shared are sums."""
    kib = 1024
    assert memory.parse_rollup(ROLLUP) == api.Memory(
        rss=1784 * kib,
        pss=345 * kib,
        uss=152 * kib,
        shared=1640 * kib,
        private_dirty=112 * kib,
        private_clean=40 * kib,
        shared_clean=1632 * kib,
        shared_dirty=8 * kib,
        pss_anon=112 * kib,
        pss_file=230 * kib,
        pss_shmem=3 * kib,
        swap=16 * kib,
        ksm=4 * kib,
    )


def test_what_an_older_kernel_does_not_tell_is_nought() -> None:
    """PSS by kind, swap and KSM are extras: the figures that matter are there without them."""
    extras = (b"Pss_A", b"Pss_F", b"Pss_S", b"Swap", b"KSM")
    lines = [line for line in ROLLUP.splitlines(keepends=True) if not line.startswith(extras)]
    parsed = memory.parse_rollup(b"".join(lines))
    assert parsed is not None
    assert (parsed.pss, parsed.pss_anon, parsed.swap, parsed.ksm) == (345 * 1024, 0, 0, 0)


@pytest.mark.parametrize("missing", [b"Rss", b"Pss:", b"Shared_Clean", b"Shared_Dirty", b"Private_Clean", b"Private_D"])
def test_half_a_rollup_is_none(missing: bytes) -> None:
    """A figure that is not there is not taken for zero."""
    lines = [line for line in ROLLUP.splitlines(keepends=True) if not line.startswith(missing)]
    assert memory.parse_rollup(b"".join(lines)) is None


def test_a_process_may_call_itself_anything() -> None:
    """A title with spaces, parentheses and newlines does not shift the fields of its stat."""
    text = b"42 (refork: a) R 1\n(b) ) S " + b" ".join(b"%d" % number for number in range(4, 53))
    assert memory.parse_start_ticks(text) == 22


def test_a_process_is_more_than_its_memory() -> None:
    """Page faults, processor time, threads, descriptors and the start are those that the kernel tells."""
    ready = "import threading; threading.Thread(target=input, daemon=True).start(); print('.', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", ready], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        seen = memory.process(process.pid)
        fds = len(os.listdir(f"/proc/{process.pid}/fd"))
        started = memory.started_at(process.pid)
    assert seen is not None
    assert (seen.threads, seen.fds, seen.started_at) == (2, fds, started)
    assert seen.minor_faults > 100
    assert seen.cpu_seconds >= 0
    assert memory.process(process.pid) is None


def test_a_stat_is_read_by_the_places_of_its_fields() -> None:
    """Minor faults are field 10, processor time 14 and 15 in ticks, threads 20, the start 22."""
    text = b"42 (a) b) S " + b" ".join(b"%d" % number for number in range(4, 53))
    tick = 1 / os.sysconf("SC_CLK_TCK")
    assert memory.parse_stat(text, boot=1000.0, fds=7) == api.Process(
        minor_faults=10, cpu_seconds=29 * tick, threads=20, fds=7, started_at=1000.0 + 22 * tick
    )
    assert memory.parse_stat(text.replace(b" 20 ", b" x "), boot=0.0, fds=None) is None


@given(
    st.binary()
    | st.lists(st.sampled_from([*ROLLUP.splitlines(), b"Rss: -1 kB", b"Pss: x kB", b"\xff"])).map(b"\n".join)
)
def test_garbage_is_parsed_to_facts_or_none(text: bytes) -> None:
    """No parser raises, whatever it is given."""
    parsed = memory.parse_rollup(text)
    assert parsed is None or min(parsed.rss, parsed.pss, parsed.uss, parsed.shared, parsed.private_dirty) >= 0
    assert memory.parse_start_ticks(text) is None or b")" in text
    assert memory.parse_boot_time(text) is None or b"btime" in text
    assert memory.parse_stat(text, boot=0.0, fds=None) is None or b")" in text


@given(st.lists(st.none() | st.builds(api.Memory, *[st.integers(0, 2**50)] * 5)))
def test_totals_add_up_what_is_known(memories: list[api.Memory | None]) -> None:
    """What could not be measured counts for nothing, and saved is RSS less PSS."""
    totals = memory.totals(memories)
    assert totals.rss == sum(one.rss for one in memories if one)
    assert totals.saved == totals.rss - totals.pss
    assert totals.shared_ratio == (1 - totals.uss / totals.rss if totals.rss else 0.0)
