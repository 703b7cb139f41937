"""refork.estimate makes of figures and samples what they allow, and no more."""

from __future__ import annotations

import random
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refork import estimate_proc
from refork.ctl_estimate import lines
from refork.estimate import MONITOR, RESIDUE, Process, Role, Sample, estimate

MIB = 1024 * 1024
WORKERS = 4


def process(pid: int, role: Role, *, private: int, shared: int = 40 * MIB, sharers: int = 5) -> Process:
    """Make up a process."""
    return Process(
        pid=pid, role=role, command="server", rss=private + shared, pss=private + shared // sharers, private=private
    )


def tree(*private: int, master: int = 10 * MIB) -> list[Process]:
    """Make up a master and a worker for each size."""
    workers = [process(2 + index, Role.WORKER, private=size) for index, size in enumerate(private)]
    return [process(1, Role.MASTER, private=master), *workers]


def samples(*, equal: int, number: int = 1000, changed: bool | None = None) -> list[Sample]:
    """Make up samples that are all alike."""
    return [Sample(compared=WORKERS - 1, equal=equal, changed=changed)] * number


def test_what_is_equal_in_all_workers_is_held_once() -> None:
    """Pages that preloading shared and reference counts unshared: a copy stays, the others are won."""
    found = estimate(tree(*[100 * MIB] * WORKERS), samples(equal=3), sampled=400 * MIB)
    assert found.duplicate is not None
    assert found.duplicate.value == pytest.approx(0.75)
    assert found.at_least.used == found.used - 310 * MIB + MONITOR + RESIDUE
    assert found.at_most.won >= found.at_least.won


def test_one_page_is_one_page() -> None:
    """Numbers and words agree."""
    told = "\n".join(lines(estimate(tree(100 * MIB, 100 * MIB), samples(equal=1, number=1), sampled=200 * MIB)))
    assert "(1 page compared)" in told
    assert "in 2 workers" in told


def test_what_differs_is_won_only_if_the_workers_do_the_same_work() -> None:
    """Nothing equal: nothing is sure, all but one worker's memory is possible."""
    found = estimate(tree(*[100 * MIB] * WORKERS), samples(equal=0), sampled=400 * MIB)
    assert found.at_least.won == 0
    assert found.at_most.used == found.used - 310 * MIB + MONITOR + (WORKERS + 1) * RESIDUE


def test_the_memory_of_the_largest_worker_stays() -> None:
    """Somebody has to have it, however equal the rest is."""
    found = estimate(tree(300 * MIB, 10 * MIB, 10 * MIB, 10 * MIB), samples(equal=3), sampled=330 * MIB)
    assert found.largest == 300 * MIB
    assert found.at_most.used >= 300 * MIB
    assert found.at_most.won <= 30 * MIB + 10 * MIB


def test_a_page_that_others_share_is_one_too_many() -> None:
    """One worker has made its own copy of what the others still share, and has not changed it."""
    held = [Sample(compared=3, equal=3, held=True)] * 100
    found = estimate(tree(*[100 * MIB] * WORKERS), held, sampled=400 * MIB)
    assert found.duplicate is not None
    assert found.duplicate.value == 1.0


def test_what_changes_all_the_time_is_not_won() -> None:
    """A page that is written to becomes private again, in every worker but the one that has to have it anyway."""
    still, restless = (
        estimate(tree(*[100 * MIB] * WORKERS), samples(equal=0, changed=changed), sampled=400 * MIB)
        for changed in (False, True)
    )
    assert still.at_most.won > 250 * MIB
    assert restless.at_most.won == 0
    assert (still.changing and still.changing.value, restless.changing and restless.changing.value) == (0, 1)


def test_one_worker_has_nobody_to_share_with() -> None:
    """Nothing to win, whatever the samples say."""
    found = estimate(tree(500 * MIB), [], sampled=0)
    assert (found.at_least.won, found.at_most.won) == (0, 0)


def test_without_samples_the_lower_end_says_nothing() -> None:
    """Page contents could not be read: the figures alone give the upper end."""
    found = estimate(tree(*[100 * MIB] * WORKERS), None, sampled=0)
    assert not found.contents
    assert estimate(tree(*[100 * MIB] * WORKERS), [], sampled=0).contents
    assert found.duplicate is None
    assert found.changing is None
    assert found.at_least.won == 0
    assert found.at_most.won > 200 * MIB


def test_other_processes_keep_what_they_have() -> None:
    """What a worker has started beside itself is no part of a refork."""
    alone = tree(*[100 * MIB] * WORKERS)
    helped = [*alone, process(99, Role.OTHER, private=70 * MIB, shared=0)]
    first, second = (estimate(each, samples(equal=3), sampled=400 * MIB) for each in (alone, helped))
    assert second.used - first.used == 70 * MIB
    assert second.at_most.won == first.at_most.won


sizes = st.integers(0, 1 << 40)


@given(
    st.lists(sizes, max_size=8),
    sizes,
    st.lists(st.builds(Sample, compared=st.integers(0, 7), equal=st.integers(0, 7), held=st.booleans(),
                       changed=st.none() | st.booleans()).filter(lambda sample: sample.equal <= sample.compared)),
    sizes,
)  # fmt: skip
def test_the_range_is_a_range(private: list[int], master: int, drawn: list[Sample], sampled: int) -> None:
    """Never more than there is, never less than nothing, and the ends in order; whatever the samples."""
    found = estimate(tree(*private, master=master), drawn, sampled=sampled)
    assert 0 <= found.at_least.won <= found.at_most.won <= found.used
    assert found.at_least.won + found.at_least.used == found.used
    for share in (found.duplicate, found.changing):
        assert share is None or (0 <= share.value <= 1 and share.margin >= 0)
    assert all(line.isprintable() for line in lines(found))


@pytest.mark.parametrize("seed", range(5))
def test_samples_tell_how_much_would_be_left(seed: int) -> None:
    """Of a known population, the share of distinct contents comes out within the margin that is stated (doubled)."""
    chance = random.Random(seed)
    # At each address, the workers hold contents out of 1 (all equal) to 4 (all different).
    addresses = [[chance.randrange(kinds) for _ in range(WORKERS)] for kinds in (1, 2, 4) for _ in range(3000)]
    truth = sum(len(set(contents)) for contents in addresses) / (WORKERS * len(addresses))
    drawn = []
    for _ in range(3000):
        contents, worker = chance.choice(addresses), chance.randrange(WORKERS)
        equal = sum(other == contents[worker] for other in contents) - 1
        drawn.append(Sample(compared=WORKERS - 1, equal=equal))
    found = estimate(tree(*[100 * MIB] * WORKERS), drawn, sampled=400 * MIB).duplicate
    assert found is not None
    assert found.value == pytest.approx(1 - truth, abs=2 * found.margin)
    assert found.margin < 0.02


MAP = "7f0000000000-7f0000100000 r-xp 00001000 08:01 4711                       {}\n"


@pytest.mark.parametrize(
    ("program", "mapped", "python"),
    [
        ("/usr/bin/python3.13", "", True),
        ("/usr/bin/uwsgi-core", "/usr/lib/x86_64-linux-gnu/libpython3.11.so.1.0", True),
        ("/venv/bin/uwsgi", "/usr/lib/python3.13/lib-dynload/math.cpython-313-x86_64-linux-gnu.so", True),
        ("/usr/bin/ruby3.1", "/usr/lib/x86_64-linux-gnu/libruby-3.1.so.3.1.7", False),
        ("/opt/python/bin/server", "/opt/python/lib/libserver.so", False),
    ],
)
def test_python_is_known_also_where_it_is_a_library(program: str, mapped: str, python: bool) -> None:  # noqa: FBT001 - cases
    """As in uWSGI, whose program is not named so."""
    assert estimate_proc.is_python(program, MAP.format(mapped).encode()) is python


SMAPS = b"""\
55d0a0000000-55d0a0100000 rw-p 00000000 00:00 0                          [heap]
Size:               1024 kB
Private_Clean:         0 kB
Private_Dirty:       512 kB
VmFlags: rd wr mr mw me ac sd
7f0000000000-7f0000100000 r-xp 00001000 08:01 4711                       /usr/lib/libc.so.6
Private_Dirty:         0 kB
7f1000000000-7f1000100000 rw-s 00000000 00:01 4712                       /memfd:Private_Dirty:  4 kB (deleted)
Private_Dirty:         8 kB
7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0                          [stack]
Private_Dirty:        16 kB
"""


def test_private_memory_is_found_by_mapping() -> None:
    """Shared mappings and those without a private page are left out, whatever their names."""
    found = list(estimate_proc.parse_areas(SMAPS))
    assert [(area.start, area.name) for area in found] == [(0x55D0A0000000, b"[heap]"), (0x7FFC00000000, b"[stack]")]


@given(st.binary() | st.lists(st.sampled_from([*SMAPS.splitlines(), b"", b"x"])).map(b"\n".join))
def test_a_garbled_list_of_mappings_is_no_error(text: bytes) -> None:
    """Names of files can hold anything."""
    assert all(area.end >= 0 for area in estimate_proc.parse_areas(text))


@given(st.lists(st.integers(0, 50), min_size=1, max_size=6), st.integers(0, 400), st.randoms(use_true_random=False))
def test_each_page_is_drawn_once_at_most(lengths: list[int], number: int, chance: random.Random) -> None:
    """A sample without replacement, from all workers together."""

    class Pages:
        def __init__(self, length: int) -> None:
            self.pages = array("Q", range(length))

    workers = [Pages(length) for length in lengths]
    number = min(number, sum(lengths))
    drawn = estimate_proc._draw(workers, number=number, chance=chance)  # type: ignore[arg-type]
    assert len({(id(worker), address) for worker, address in drawn}) == len(drawn) == number
    assert all(address in worker.pages for worker, address in drawn)
