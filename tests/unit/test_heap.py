"""Sealing must save memory and must change nothing else.

Every test that seals does so in a child of its own: what is sealed once stays so, and the test run is not to be.
"""

import gc
import io
import os
import pickle
import platform
import sqlite3
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from refork import heap

OBSTACLE = heap.capability()
can_seal = pytest.mark.skipif(bool(OBSTACLE), reason=f"cannot seal here: {OBSTACLE}")
SOURCES = str(Path(heap.__file__).parents[1])
CACHE_SIZE = 200_000
MANY = 50_000
"""More objects of one kind than there are of any that other tests of this process have left behind."""

FORKS = 4


def in_child[T](job: Callable[[], T]) -> T:
    """Run `job` in a forked child and hand back its result, or raise what it raised."""
    receive, send = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(receive)
        os._exit(_report(send, job))
    os.close(send)
    with os.fdopen(receive, "rb") as pipe:
        answer = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status == 0, f"the child ended with status {status}"
    error, result = pickle.loads(answer)
    if error is not None:
        raise error
    return result  # type: ignore[no-any-return]


def _report(send: int, job: Callable[[], object]) -> int:
    try:
        answer = pickle.dumps((None, job()))
    except BaseException as error:  # noqa: BLE001  The parent raises it.
        answer = pickle.dumps((AssertionError(f"{type(error).__name__}: {error}"), None))
    with os.fdopen(send, "wb") as pipe:
        pipe.write(answer)
    return 0


def private_dirty() -> int:
    """Return how many KiB of this process's memory it shares with nobody because it was written to."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Private_Dirty:"):
            return int(line.split()[1])
    raise AssertionError("the kernel does not tell")


class Item:
    """A cached object such as an ORM makes."""

    def __init__(self, number: int) -> None:
        self.number = number + 1_000_000
        self.name = f"item {number}"
        self.tags = [f"tag {number}", number * 1.5]
        self.extra = {"weight": number + 2_000_000, "label": str(number)}


class Closing:
    """An object with a finalizer that is to be heard."""

    def __init__(self, heard: list[str]) -> None:
        self.heard = heard

    def __del__(self) -> None:
        self.heard.append("closed")


def build_cache() -> dict[str, Item]:
    return {f"key {number}": Item(number) for number in range(CACHE_SIZE)}


def read(cache: dict[str, Item]) -> int:
    total = 0
    for item in map(cache.__getitem__, cache):
        total += item.number + len(item.name) + len(item.tags[0]) + item.extra["weight"]  # type: ignore[arg-type,operator]
    return total


def cost_of_reading(prepare: Callable[[], object]) -> tuple[list[int], set[int]]:
    """Build a cache, prepare the heap, fork; return each child's private KiB gained by reading, and the results."""
    cache = build_cache()
    prepare()

    def child() -> tuple[int, int]:
        before = private_dirty()
        result = read(cache)
        return private_dirty() - before, result

    costs, results = zip(*(in_child(child) for _ in range(FORKS)), strict=True)
    return list(costs), set(results)


@can_seal
def test_reading_a_sealed_cache_in_forked_workers_costs_next_to_nothing() -> None:
    """Four workers that read 200,000 cached objects keep sharing 95 % and more of what they would have copied."""
    unsealed, plain_results = in_child(lambda: cost_of_reading(lambda: None))
    sealed, sealed_results = in_child(lambda: cost_of_reading(heap.seal))
    assert sealed_results == plain_results
    assert len(sealed_results) == 1
    assert max(sealed) <= 0.05 * min(unsealed)


@can_seal
def test_using_sealed_strings_as_keys_does_not_copy_them() -> None:
    """A string keeps the hash that it is asked for first, so it is asked for before the fork."""

    def cost(prepare: Callable[[], object]) -> int:
        texts: list[str | bytes] = [f"text {number}" for number in range(200_000)]
        texts += [f"octets {number}".encode() for number in range(200_000)]
        prepare()

        def worker() -> int:
            before = private_dirty()
            total = sum(hash(text) for text in texts)
            return private_dirty() - before if total else 0

        return in_child(worker)

    assert in_child(lambda: cost(heap.seal)) <= 0.05 * in_child(lambda: cost(lambda: None))


def blocks_between_holes() -> list[bytes]:
    """Return blocks of nearly a page, each with a smaller one before it that is free again, too large for pymalloc."""
    pairs = [(bytes(600), bytes(4000)) for _ in range(1000)]
    return [kept for _, kept in pairs]


@can_seal
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc tells about its heap")
def test_new_objects_do_not_land_in_the_holes_of_shared_pages() -> None:
    """What a worker allocates from malloc lies together, and not one piece on each of a thousand shared pages."""

    def job() -> tuple[int, int]:
        kept = blocks_between_holes()
        report = heap.seal()

        def worker() -> int:
            before = private_dirty()
            new = [bytes(600) for _ in range(len(kept))]
            return private_dirty() - before if new else 0

        return in_child(worker), report.filled

    gained, filled = in_child(job)
    assert filled >= 600_000
    assert gained <= 2 * 600  # KiB, for objects of 600 KiB together


NO_MEMORY = """
import resource
from refork import heap

def fill_without_memory():
    kept, eaten = [[n] for n in range(100_000)], []
    free = [bytes(600) for _ in range(60_000)]
    del free
    limits = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        in_use = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use, limits[1]))
    try:
        while True:
            eaten.append([eaten])
    except MemoryError:
        pass
    for _ in range(200):
        eaten.pop()
    heap._heap.fill_holes()
    resource.setrlimit(resource.RLIMIT_AS, limits)
    assert heap.seal().filled > 0

fill_without_memory()
"""


@can_seal
def test_holes_are_left_where_there_is_no_memory_for_a_new_pool() -> None:
    """CPython's allocator passes on to malloc then, whose blocks have no pool to be looked at."""
    done = subprocess.run(
        [sys.executable, "-c", NO_MEMORY], env={**os.environ, "PYTHONPATH": SOURCES}, capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")


@can_seal
def test_memory_in_large_free_areas_is_neither_filled_nor_kept() -> None:
    """Filling holes does not give up whole pages: those go back to the kernel and stay usable."""

    def job(areas: int) -> tuple[int, int]:
        fence = [bytes(700)]
        large = []
        for _ in range(areas):
            large.append(bytes(100_000))
            fence.append(bytes(700))
        del large
        return heap.seal().filled, private_dirty() if fence else 0

    filled, dirty = in_child(lambda: job(64))
    filled_without, dirty_without = in_child(lambda: job(0))
    assert filled < filled_without + 64 * 100_000 / 4
    assert dirty < dirty_without + 2000


@can_seal
def test_the_report_tells_what_was_done() -> None:
    """Counts, bytes, time and what was left mortal are known after sealing."""

    def job() -> heap.SealReport:
        closing = [Closing([]) for _ in range(MANY)]
        report = heap.seal()
        assert len(closing) == MANY
        return report

    report = in_child(job)
    assert report.sealed
    assert report.reason == ""
    assert report.objects == report.total_objects > 10_000
    assert report.bytes > 16 * report.objects
    assert report.seconds > 0
    assert report.mortal[f"{__name__}.Closing (finalizer)"] == MANY


@can_seal
def test_what_is_sealed_is_counted_once() -> None:
    """A second call, and one in a descendant, count only what is new."""

    def job() -> tuple[heap.SealReport, heap.SealReport, heap.SealReport]:
        first = heap.seal()
        second = heap.seal()
        return first, second, in_child(heap.seal)

    first, second, third = in_child(job)
    assert second.objects < 0.01 * first.objects
    assert third.objects < 0.01 * first.objects
    assert third.total_objects == first.objects + second.objects + third.objects


@can_seal
def test_sealing_again_writes_to_next_to_nothing() -> None:
    """A descendant that seals again goes on sharing what its ancestors sealed."""

    def job() -> tuple[int, int]:
        cache = build_cache()
        heap.seal()

        def descendant() -> int:
            assert len(cache) == CACHE_SIZE
            heap.seal()
            return private_dirty()

        return in_child(descendant), private_dirty()

    again, everything = in_child(job)
    assert again <= 0.1 * everything


@can_seal
def test_the_next_generation_seals_what_was_put_into_sealed_containers() -> None:
    """New objects that hang on sealed dicts, lists, sets and instances are found, tracked by the collector or not."""
    untracked = {"key": 1}
    table: dict[str, Any] = {"nested": untracked}
    rows: list[Any] = []
    names: set[str] = set()
    owner = SimpleNamespace()

    def job() -> list[bool]:
        heap.seal()
        untracked[text("a")] = text("b")  # type: ignore[assignment]
        table[text("c")] = [text("d")]
        rows.append(text("e"))
        names.add(text("f"))
        owner.attribute = text("g")
        heap.seal()
        found = [*untracked, *untracked.values(), *table, table[text("c")][0], *rows, *names, owner.attribute]
        return [heap.is_sealed(value) for value in found]

    assert all(in_child(job))


def text(stem: str) -> str:
    """Return a string that is no constant and was not interned."""
    return f"{stem} made at run time"


def function_with_parts(argument: int = 123_456) -> tuple[int, float]:
    """A function whose code object has parts that no collector knows."""
    return argument, 1234.5678


TABLE = {text("key"): 1}
NESTED = (((987_654_321.5, 1), 2), 3)


@can_seal
@pytest.mark.parametrize(
    ("what", "find"),
    [
        ("the keys of a dict", lambda: next(iter(TABLE))),
        ("the constants of code", lambda: function_with_parts.__code__.co_consts),
        ("the names of code", lambda: function_with_parts.__code__.co_names),
        ("the line table of code", lambda: function_with_parts.__code__.co_linetable),
        ("the defaults of a function", lambda: function_with_parts.__defaults__[0]),  # type: ignore[index]
        ("a number within nested tuples", lambda: NESTED[0][0][0]),
        ("the method resolution order of a static type", lambda: int.__mro__),
        ("the bases of a class", lambda: Item.__bases__),
        ("the qualified name of a class", lambda: Item.__qualname__),
        ("a class", lambda: Item),
        ("a module", lambda: sys.modules[__name__]),
    ],
)
def test_what_the_collector_does_not_see_is_sealed_too(what: str, find: Callable[[], object]) -> None:
    """Leaves and untracked objects are reached from the tracked ones."""

    def job() -> bool:
        heap.seal()
        return heap.is_sealed(find())

    assert in_child(job), what


@can_seal
def test_finalizers_still_run() -> None:
    """An object with __del__ stays mortal, and is finalised when it goes."""

    def job() -> tuple[list[str], bool]:
        heard: list[str] = []
        table = {"it": Closing(heard)}
        heap.seal()
        mortal = not heap.is_sealed(table["it"])
        del table["it"]
        return heard, mortal

    heard, mortal = in_child(job)
    assert heard == ["closed"]
    assert mortal


@can_seal
def test_a_suspended_generator_goes_on_and_is_closed_when_dropped() -> None:
    """Generators stay mortal: their `finally` runs when they are dropped."""

    def job() -> list[object]:
        heard: list[object] = []

        def steps() -> Any:
            try:
                yield 1
                yield 2
            finally:
                heard.append("finally")

        holder = [steps()]
        heard.append(next(holder[0]))
        heap.seal()
        heard.append(next(holder[0]))
        holder.clear()
        return heard

    assert in_child(job) == [1, 2, "finally"]


@can_seal
def test_a_dropped_file_is_flushed_and_closed(tmp_path: Path) -> None:
    """Files stay mortal: dropping the last reference writes what is buffered."""
    path = tmp_path / "log"

    def job() -> str:
        holder = {"file": path.open("w")}
        holder["file"].write("line")
        heap.seal()
        del holder["file"]
        return path.read_text()

    assert in_child(job) == "line"


@can_seal
def test_a_dropped_memoryview_unlocks_its_buffer() -> None:
    """Views stay mortal, or what they lock could never be resized again."""

    def job() -> int:
        data = bytearray(b"1234")
        buffer = io.BytesIO(b"1234")
        holder = [memoryview(data)[1:], buffer.getbuffer()]
        heap.seal()
        holder.clear()
        data.extend(b"5678")
        buffer.write(b"12345678")
        return len(data)

    assert in_child(job) == 8


def is_open(path: Path) -> bool:
    """Whether this process has a file open."""
    return any(Path(f"/proc/self/fd/{fd}").resolve() == path for fd in os.listdir("/proc/self/fd"))


@can_seal
def test_an_sqlite_connection_that_is_closed_closes_its_database(tmp_path: Path) -> None:
    """SQLite keeps the file open while one statement is left, so those stay mortal, and what a connection keeps."""
    path = tmp_path / "shop.db"

    class Subclass(sqlite3.Connection):
        pass

    def job() -> list[bool]:
        connections = [sqlite3.connect(path, factory=kind) for kind in (sqlite3.Connection, Subclass)]
        for number, connection in enumerate(connections):
            connection.execute(f"create table t{number} (data blob)")
            connection.execute(f"insert into t{number} values (zeroblob(9))")
            connection.commit()
        blob = connections[0].blobopen("t0", "data", 1)
        opened = [is_open(path)]
        for _ in range(2):
            heap.seal()
            for connection in connections:
                connection.execute("select * from t0").fetchall()
        del blob
        for connection in connections:
            connection.close()
        return [*opened, is_open(path)]

    assert in_child(job) == [True, False]


@can_seal
@pytest.mark.parametrize("at", range(24))
def test_a_tuple_under_construction_can_be_finished(at: int) -> None:
    """C code builds tuples in place; sealing in the middle must not make them look shared."""

    def job() -> int:
        def steps() -> Any:
            for number in range(24):
                if number == at:
                    heap.seal()
                yield number

        return len(tuple(steps())) + len(frozenset(steps()))

    assert in_child(job) == 48


@can_seal
def test_weak_references_work() -> None:
    """References to sealed objects stay alive, those to mortal ones die and call back."""

    def job() -> tuple[bool, bool, list[str], int]:
        heard: list[str] = []
        item, closing = Item(1), Closing([])
        to_item = weakref.ref(item)
        to_closing = weakref.ref(closing, lambda _: heard.append("gone"))
        values = weakref.WeakValueDictionary({"closing": closing})
        heap.seal()
        same = to_item() is item and weakref.ref(item) is to_item
        del closing
        return same, to_closing() is None, heard, len(values)

    assert in_child(job) == (True, True, ["gone"], 0)


@can_seal
def test_a_sealed_string_is_not_changed_by_appending_to_it() -> None:
    """`+=` builds strings in place when nobody else holds them; a sealed string is always held."""

    def job() -> tuple[str, str]:
        word = text("a")
        holder = [word]
        heap.seal()
        word += "!"
        return word, holder[0]

    assert in_child(job) == (text("a") + "!", text("a"))


@can_seal
def test_a_sealed_string_can_be_interned() -> None:
    """Interning takes two references away, but not from an immortal string."""

    def job() -> bool:
        word = text("to be interned")
        holder = [word]
        heap.seal()
        return sys.intern(holder[0]) is word and sys.intern(text("to be interned")) is word and heap.is_sealed(word)

    assert in_child(job)


@can_seal
@pytest.mark.skipif(sys.version_info >= (3, 14), reason="the count is no 64-bit number any more")
@pytest.mark.parametrize("drift", [-5, 5])
def test_the_arithmetic_of_old_stable_abi_extensions_is_survived_and_repaired(drift: int) -> None:
    """Extensions built for 3.11 and earlier count in 64 bits and know no immortality."""
    import ctypes  # noqa: PLC0415  Only here.

    def job() -> tuple[bool, bool]:
        holder = [Item(1)]
        heap.seal()
        count = ctypes.c_ssize_t.from_address(id(holder[0]))
        mark = count.value
        count.value += drift
        for _ in range(100):
            holder.append(holder[0])
            holder.pop()
        survived = holder[0].name == "item 1"
        heap.seal()
        return survived, count.value == mark

    assert in_child(job) == (True, True)


@can_seal
def test_threads_may_run_while_the_heap_is_sealed() -> None:
    """The walk holds the GIL, so threads find their objects as they left them."""

    def job() -> list[int]:
        stop = threading.Event()
        results: list[int] = []

        def work() -> None:
            total = 0
            while not stop.is_set():
                rows = [{"n": n, "t": tuple(str(i) for i in range(n % 15))} for n in range(300)]
                total = sum(row["n"] + len(row["t"]) for row in rows)  # type: ignore[operator,arg-type,misc]
            results.append(total)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(5):
            heap.seal()
        stop.set()
        for thread in threads:
            thread.join()
        return results

    assert in_child(job) == [sum(n + n % 15 for n in range(300))] * 4


@can_seal
@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_is_left_as_it_was(enabled: bool) -> None:  # noqa: FBT001
    """It is switched off during the walk only, and goes on to collect what is made later."""

    def job() -> tuple[bool, int]:
        (gc.enable if enabled else gc.disable)()
        heap.seal()
        state = gc.isenabled()
        for _ in range(10):
            ring: list[object] = []
            ring.append(ring)
        del ring
        return state, gc.collect()

    state, collected = in_child(job)
    assert state is enabled
    assert collected >= 10


@can_seal
def test_garbage_is_freed_before_it_is_sealed() -> None:
    """Cycles that nobody holds are collected, also those that finalizers drop."""

    class Ring:
        def __init__(self, *, depth: int) -> None:
            self.me = self
            self.depth = depth

        def __del__(self) -> None:
            if self.depth:
                Ring(depth=self.depth - 1)

    def job() -> tuple[int, dict[str, int]]:
        Ring(depth=2)
        report = heap.seal()
        return report.collected, report.mortal

    collected, mortal = in_child(job)
    assert collected >= 3
    assert not any("Ring" in kind for kind in mortal)


@can_seal
def test_the_report_stays_small() -> None:
    """However many kinds of objects are left mortal, the most frequent are named and the rest is summed."""

    def job() -> heap.SealReport:
        def finalise(_: object) -> None:
            pass

        kinds = [type(f"Kind{n}", (), {"__del__": finalise}) for n in range(100)]
        things = [kind() for kind in kinds]
        report = heap.seal()
        assert len(things) == 100
        return report

    report = in_child(job)
    assert len(report.mortal) == heap.MOST_MORTAL_KINDS + 1
    assert sum(report.mortal.values()) >= 100
    assert len(pickle.dumps(report)) < 4096


def test_without_the_extension_it_freezes_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fallback is what the standard library offers, and a reason to print."""
    monkeypatch.setattr(heap, "_heap", None)
    monkeypatch.setattr(heap, "_missing", "not built", raising=False)

    def job() -> tuple[heap.SealReport, int]:
        return heap.seal(), gc.get_freeze_count()

    report, frozen = in_child(job)
    assert not report.sealed
    assert report.reason == "not built"
    assert report.objects == report.total_objects == 0
    assert frozen > 0


def test_a_walk_that_fails_is_reported_and_not_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that cannot be sealed must still be able to fork."""

    def fail() -> None:
        raise MemoryError

    stub = SimpleNamespace(obstacle=lambda: "", walk=fail)
    monkeypatch.setattr(heap, "_heap", stub)
    report = in_child(heap.seal)
    assert not report.sealed
    assert report.reason.startswith("MemoryError")


@can_seal
def test_sub_interpreters_keep_the_heap_from_being_sealed() -> None:
    """Their threads could run while ours walks over what both share."""
    interpreters = pytest.importorskip("_interpreters" if sys.version_info >= (3, 13) else "_xxsubinterpreters")

    def job() -> tuple[heap.SealReport, str]:
        other = interpreters.create()
        report = heap.seal()
        interpreters.destroy(other)
        return report, heap.capability()

    report, afterwards = in_child(job)
    assert not report.sealed
    assert "sub-interpreters" in report.reason
    assert afterwards == ""


SHUTDOWN = """
import collections, decimal, json, logging, re, threading, weakref
from refork import heap
class Owner:
    def __del__(self): pass
things = [Owner(), re.compile("a(b)"), json.loads('{"a": [1.5, "b"]}'),
          decimal.Decimal(1), collections.OrderedDict(a=1)]
report = heap.seal()
assert report.sealed, report
things.append([object() for _ in range(1000)])
names = {f"name {n}": str(n) for n in range(10000)}
heap.seal()
"""


@can_seal
@pytest.mark.parametrize(
    ("options", "environment"),
    [
        ([], {}),
        (["-X", "dev"], {}),
        (["-X", "tracemalloc"], {}),
        ([], {"PYTHONMALLOC": "debug"}),
        ([], {"PYTHONMALLOC": "malloc"}),
    ],
    ids=["plain", "dev", "tracemalloc", "debug", "malloc"],
)
def test_an_interpreter_with_a_sealed_heap_shuts_down_in_silence(
    options: list[str], environment: dict[str, str]
) -> None:
    """Exit status 0 and nothing on stderr, whatever the allocator."""
    done = subprocess.run(
        [sys.executable, *options, "-c", SHUTDOWN],
        env={**os.environ, "PYTHONPATH": SOURCES, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "")


leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(),
    st.binary(),
    st.complex_numbers(allow_nan=False),
)
keys = st.one_of(st.integers(), st.text(), st.tuples(st.integers(), st.text()))
graphs = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner),
        st.dictionaries(keys, inner),
        st.tuples(inner, inner),
        st.frozensets(keys),
        st.sets(keys),
        st.builds(SimpleNamespace, value=inner),
        st.builds(slice, st.integers(), st.integers()),
    ),
    max_leaves=30,
)


@can_seal
@given(graph=graphs)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_sealed_data_is_the_same_data(graph: object) -> None:
    """What compares, prints and pickles in some way before does so afterwards."""
    before = repr(graph), pickle.dumps(graph)

    def job() -> tuple[bool, str, bytes]:
        copy = pickle.loads(before[1])
        heap.seal()
        return graph == copy, repr(graph), pickle.dumps(pickle.loads(pickle.dumps(graph)))

    equal, printed, _ = in_child(job)
    assert equal
    assert printed == before[0]


operations = st.lists(
    st.tuples(
        st.sampled_from(["append", "delete", "insert", "set", "drop", "add", "discard", "seal"]), st.integers(0, 9)
    ),
    max_size=40,
)


def apply(step: str, number: int, rows: list[str], table: dict[str, list[int]], names: set[str]) -> None:
    """Change three containers in one of several ways."""
    if step == "append":
        rows.append(f"row {number}")
    elif step == "delete" and len(rows) > number:
        del rows[number]
    elif step == "insert":
        rows.insert(number, f"inserted {number}")
    elif step == "set":
        table.setdefault(f"key {number}", []).append(number)
    elif step == "drop":
        table.pop(f"key {number}", None)
    elif step == "add":
        names.add(f"name {number}")
    elif step == "discard":
        names.discard(f"name {number}")


@can_seal
@given(steps=operations)
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
def test_sealed_containers_change_like_any_others(steps: list[tuple[str, int]]) -> None:
    """A container that was sealed, even time and again, does what one that never was does."""

    def job(*, sealing: bool) -> tuple[list[str], dict[str, list[int]], set[str]]:
        rows, table, names = ["first"], {"key 1": [1]}, {"name 1"}
        for step, number in [("seal", 0), *steps]:
            if step == "seal" and sealing:
                heap.seal()
            apply(step, number, rows, table, names)
        return rows, table, names

    assert in_child(lambda: job(sealing=True)) == job(sealing=False)
