"""refork.multiproc keeps the directory of prometheus_client small, and what an application exports as it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector

from refork import multiproc
from refork.multiproc import KEPT, SECONDS_TO_READ, Directory

if TYPE_CHECKING:
    from pathlib import Path

# An application: every process that runs it counts, and sets one gauge of each mode to the number it is given.
COUNTING = """
import sys
from prometheus_client import Counter, Gauge, Histogram, Summary
number = float(sys.argv[1])
counter = Counter("jobs", "Jobs.", ["queue"])
counter.labels("a").inc(number)
counter.labels('"odd" label\\u00fc').inc()
Summary("wait", "Waited.").observe(number)
histogram = Histogram("took", "Took.", buckets=(1, 5, 10))
for value in (0.5, number, 7):
    histogram.observe(value)
for mode in ("all", "liveall", "min", "livemin", "max", "livemax", "sum", "livesum", "mostrecent", "livemostrecent"):
    Gauge(f"level_{mode}", "Level.", multiprocess_mode=mode).set(number)
"""


def count(path: Path, number: int) -> int:
    """Run a process of the application to its end, and return its pid."""
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(path)}
    with subprocess.Popen([sys.executable, "-c", COUNTING, str(number)], env=environment) as process:
        assert process.wait(30) == 0
    return process.pid


def exported(path: Path) -> dict[Any, float]:
    """Read what the application exports, with the library's own collector."""
    collector: Any = MultiProcessCollector(CollectorRegistry(), str(path))  # type: ignore[no-untyped-call]
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in collector.collect()
        for sample in family.samples
    }


def names(path: Path) -> list[str]:
    return sorted(file.name for file in path.iterdir())


@pytest.fixture
def buried(tmp_path: Path) -> Directory:
    return Directory(str(tmp_path))


def test_sums_are_what_they_were_and_files_are_few(tmp_path: Path, buried: Directory) -> None:
    """Counters, summaries, histograms and gauges that can be added up, over processes that come and go."""
    pids = [count(tmp_path, number) for number in (2, 3, 9)]
    before = exported(tmp_path)
    buried.bury(pids[:2], now=0.0)
    buried.bury(pids[2:], now=1.0)
    after = exported(tmp_path)
    live = {key for key in before if key[0].startswith("level_live")}
    assert live
    assert after == {key: value for key, value in before.items() if key not in live}
    assert after["jobs_total", ("queue", "a")] == 14
    assert after["took_bucket", ("le", "5.0")] == 5
    assert after["took_count",] == 9
    buried.sweep(now=1.0 + SECONDS_TO_READ)
    merged = ["counter", "gauge_max", "gauge_min", "gauge_mostrecent", "gauge_sum", "histogram", "summary"]
    assert names(tmp_path) == sorted([f"{kind}_refork.db" for kind in merged] + [f"gauge_all_{pid}.db" for pid in pids])
    assert exported(tmp_path) == after


def test_the_living_are_left_alone(tmp_path: Path, buried: Directory) -> None:
    """Only who has ended is taken in."""
    dead, living = count(tmp_path, 1), count(tmp_path, 2)
    mine = [name for name in names(tmp_path) if name.endswith(f"_{living}.db")]
    buried.bury([dead], now=0.0)
    buried.sweep(now=SECONDS_TO_READ)
    assert [name for name in names(tmp_path) if name.endswith(f"_{living}.db")] == mine
    assert exported(tmp_path)["jobs_total", ("queue", "a")] == 3


def test_a_reader_that_has_listed_the_directory_can_read_it(tmp_path: Path, buried: Directory) -> None:
    """The library fails when a counter's file is gone: it is there, and empty, for a while."""
    pid = count(tmp_path, 4)
    listed = [str(tmp_path / name) for name in names(tmp_path) if not name.startswith("gauge_live")]
    buried.bury([pid], now=0.0)
    buried.sweep(now=SECONDS_TO_READ - 0.1)
    merge: Any = MultiProcessCollector.merge
    assert {sample.value for family in merge(listed) if family.type != "gauge" for sample in family.samples} <= {0.0}
    buried.sweep(now=SECONDS_TO_READ)
    assert not [name for name in listed if "gauge_all" not in name and os.path.exists(name)]


def test_a_reader_never_fails(tmp_path: Path, buried: Directory) -> None:
    """An application that is scraped all the time while processes end, one after the other."""
    pids = [count(tmp_path, 1) for _ in range(6)]
    stop, failures, seen = threading.Event(), list[BaseException](), list[float]()

    def read() -> None:
        try:
            while not stop.is_set():
                seen.append(exported(tmp_path)["jobs_total", ("queue", "a")])
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for now, pid in enumerate(pids):
            buried.bury([pid], now=float(now))
    finally:
        stop.set()
        reader.join()
    assert not failures
    assert exported(tmp_path)["jobs_total", ("queue", "a")] == 6


def test_gauges_that_name_the_process_are_kept_for_the_last_ones(tmp_path: Path, buried: Directory) -> None:
    """There is no end to pids, so there has to be one to their files."""
    dead = range(5_000_000, 5_000_000 + KEPT + 5)  # beyond the highest pid that there can be
    for pid in dead:
        (tmp_path / f"gauge_all_{pid}.db").write_bytes(b"")
        buried.bury([pid], now=0.0)
    assert names(tmp_path) == [f"gauge_all_{pid}.db" for pid in dead[5:]]


def test_a_number_that_was_given_again_keeps_its_new_file(tmp_path: Path, buried: Directory) -> None:
    """A process that has got the pid of a dead one writes to the emptied file: it must not be removed."""
    pid = count(tmp_path, 4)
    buried.bury([pid], now=0.0)
    create: Any = MmapedDict
    file = create(str(tmp_path / f"counter_{pid}.db"))
    file.write_value(json.dumps(["jobs", "jobs_total", {"queue": "a"}, "Jobs."]), 10.0, 0.0)
    file.close()
    buried.sweep(now=SECONDS_TO_READ)
    assert exported(tmp_path)["jobs_total", ("queue", "a")] == 14


def test_a_number_that_is_in_use_again_is_left_to_its_new_owner(tmp_path: Path, buried: Directory) -> None:
    """Who is alive has its file mapped, and would go on writing to what was emptied under it."""
    (tmp_path / f"counter_{count(tmp_path, 4)}.db").rename(tmp_path / f"counter_{os.getpid()}.db")
    before = names(tmp_path)
    buried.bury([os.getpid()], now=0.0)
    assert names(tmp_path) == before
    assert exported(tmp_path)["jobs_total", ("queue", "a")] == 4


def test_a_damaged_file_is_left_where_it_is(tmp_path: Path, buried: Directory) -> None:
    """It may be looked into; the others are taken in."""
    pid, other = count(tmp_path, 4), 5_000_000
    (tmp_path / f"counter_{other}.db").write_bytes(b"\xff\xff\xff\x7f" + b"\x01" * 100)
    (tmp_path / f"summary_{other}.db").write_bytes(b"")
    buried.bury([pid, other], now=0.0)
    assert f"counter_{other}.db" in names(tmp_path)
    (tmp_path / f"counter_{other}.db").unlink()
    (tmp_path / f"summary_{other}.db").unlink()
    assert exported(tmp_path)["jobs_total", ("queue", "a")] == 4


def test_links_and_pipes_are_not_followed(tmp_path: Path, buried: Directory) -> None:
    """The directory may belong to a user with fewer rights than the monitor's."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"untouched")
    directory = tmp_path / "multiproc"
    directory.mkdir()
    kept = Directory(str(directory))
    (directory / "counter_5000000.db").symlink_to(secret)
    os.mkfifo(directory / "summary_5000000.db")
    (directory / "counter_refork.db").symlink_to(secret)
    (directory / multiproc._TEMPORARY).symlink_to(secret)
    pid = count(directory, 4)
    kept.bury([5_000_000, pid], now=0.0)
    kept.sweep(now=SECONDS_TO_READ)
    assert secret.read_bytes() == b"untouched"
    assert not (directory / "counter_refork.db").is_symlink()
    (directory / "counter_5000000.db").unlink()
    (directory / "summary_5000000.db").unlink()
    assert exported(directory)["jobs_total", ("queue", "a")] == 4


def test_a_directory_that_is_not_there_is_no_error(tmp_path: Path) -> None:
    """The application makes it when it likes, or never."""
    missing = Directory(str(tmp_path / "missing"))
    missing.bury([1], now=0.0)
    missing.sweep(now=100.0)
