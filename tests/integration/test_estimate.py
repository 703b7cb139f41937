"""reforkctl estimate, against processes whose memory is known, and against a real gunicorn."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from refork import estimate_proc, memory
from tests.integration.server import free_port, until
from tests.integration.steered import PATIENCE, environment
from tests.integration.test_ctl import AS_NOBODY, CTL, as_root, assert_one_line, run

if TYPE_CHECKING:
    from collections.abc import Iterator

WORKERS = 4
PAGES = 2000

# A master with pages that it has written, and workers that write to so many of them again: the same in each (as
# reference counts do that return to what they were), or something else in each.
PREFORKED = f"""
import mmap, os, signal, sys
same, different = map(int, sys.argv[1:])
area = mmap.mmap(-1, {PAGES} * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
area.madvise(mmap.MADV_NOHUGEPAGE)
for page in range({PAGES}):
    area[page * mmap.PAGESIZE] = 1 + page % 100
for number in range({WORKERS}):
    ready, done = os.pipe()
    if os.fork() == 0:
        for page in range(same):
            area[page * mmap.PAGESIZE] = 1 + page % 100
        for page in range(same, same + different):
            area[page * mmap.PAGESIZE] = 101 + number
        os.write(done, b"x")
        os.close(1)
        signal.pause()
    os.read(ready, 1)
    os.close(ready)
    os.close(done)
print("forked", flush=True)
sys.stdin.read()
os.killpg(0, signal.SIGTERM)
"""


@dataclass
class Prefork:
    """A prefork server that runs."""

    pid: int
    process: subprocess.Popen[str]


@pytest.fixture
def prefork(request: pytest.FixtureRequest) -> Iterator[Prefork]:
    """Fork workers that write to pages as the test says: so many the same in each, so many different in each."""
    command = [sys.executable, "-c", PREFORKED, *map(str, request.param)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, process_group=0
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "forked\n"
        yield Prefork(process.pid, process)
        process.stdin.close()
        process.wait(PATIENCE)


def estimate(pid: int, *arguments: str) -> dict[str, Any]:
    """Run it to its end, and read what it says."""
    result = run("estimate", "--pid", str(pid), "--json", *arguments)
    assert (result.returncode, result.stderr) == (0, "")
    found = json.loads(result.stdout)
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("prefork", [(PAGES, 0), (PAGES // 2, PAGES // 2), (0, PAGES)], indirect=True)
def test_it_finds_the_pages_that_are_equal_in_all_workers(prefork: Prefork, request: pytest.FixtureRequest) -> None:
    """Three of four equal pages are duplicates, no different one is; the interpreter's own few pages aside."""
    same = request.node.callspec.params["prefork"][0]
    found = estimate(prefork.pid, "--seconds", "0")
    written = PAGES * os.sysconf("SC_PAGE_SIZE")
    assert [process["role"] for process in found["processes"]] == ["master", *["worker"] * WORKERS]
    assert found["private"] >= WORKERS * written
    expected = same / PAGES * (1 - 1 / WORKERS)
    assert found["duplicate"]["value"] == pytest.approx(expected, abs=0.06)
    assert found["at_least"]["won"] <= found["at_most"]["won"] <= found["private"] + found["processes"][0]["private"]


@pytest.mark.parametrize("prefork", [(PAGES, 0)], indirect=True)
def test_looking_leaves_no_trace(prefork: Prefork) -> None:
    """No page of the looked-at processes changes hands, no process is stopped."""
    before = run("estimate", "--pid", str(prefork.pid), "--json").stdout
    pids = [process["pid"] for process in json.loads(before)["processes"]]
    had = [_own(pid) for pid in pids]
    after = estimate(prefork.pid)
    assert [_own(pid) for pid in pids] == had
    assert [process["pid"] for process in after["processes"]] == pids
    assert after["changing"]["value"] == 0
    assert prefork.process.poll() is None


def _own(pid: int) -> tuple[int, int, int]:
    """Measure what does not depend on who else has mapped Python at the moment."""
    found = memory.read(pid)
    assert found is not None
    return found.rss, found.private_dirty, found.shared_dirty


@pytest.mark.parametrize("prefork", [(PAGES, 0)], indirect=True)
def test_it_is_told_in_lines_for_people(prefork: Prefork) -> None:
    """A table of processes, what is used, what is equal, the range with its assumptions."""
    result = run("estimate", "--pid", str(prefork.pid), "--pages", "1000", "--seconds", "0.01")
    assert (result.returncode, result.stderr) == (0, "")
    table = [line.split() for line in result.stdout.splitlines()]
    assert table[0] == ["ROLE", "PID", "RSS", "PSS", "PRIVATE", "COMMAND"]
    assert [row[0] for row in table[1 : 2 + WORKERS]] == ["master", *["worker"] * WORKERS]
    for pattern in (
        r"used now:    [\d.]+ MiB by 5 processes \(PSS; the sum of RSS is [\d.]+ MiB\)",
        r"duplicate:   [\d.]+% \(± [\d.]+\) of that need not exist: another worker has the same \(200 pages compared\)",
        r"changing:    0\.0% \(± 0\.0\) of it changed within 0\.01 s",
        r"with refork: [\d.]+ MiB to [\d.]+ MiB",
        r"  at least   [\d.]+ MiB won \(\d+%\), counting only what is equal now",
        r"  at most    [\d.]+ MiB won \(\d+%\), if the workers do the same work",
    ):
        assert re.search(f"^{pattern}", result.stdout, re.MULTILINE), result.stdout


@pytest.mark.parametrize("prefork", [(PAGES, 0)], indirect=True)
def test_a_person_sees_how_far_it_is(prefork: Prefork) -> None:
    """Progress goes to the terminal of standard error, and is gone when the result comes."""
    master, slave = pty.openpty()
    with subprocess.Popen(
        [*CTL, "estimate", "--pid", str(prefork.pid)], stdout=subprocess.PIPE, stderr=slave, env=environment()
    ) as process:
        os.close(slave)
        shown = b""
        while chunk := _read(master):
            shown += chunk
        assert process.stdout is not None
        assert b"with refork:" in process.stdout.read()
    os.close(master)
    assert process.returncode == 0
    assert b"%" in shown
    assert shown.endswith(b"\x1b[2K"), "the line of the progress is erased"


def _read(master: int) -> bytes:
    try:
        return os.read(master, 4096)
    except OSError:  # EIO: nobody has the other end any more
        return b""


def test_a_process_that_is_gone_is_said_to_be() -> None:
    """One line, and the code for nobody there."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    assert_one_line(run("estimate", "--pid", str(process.pid)), code=3, says=f"there is no process {process.pid}")


def test_a_process_without_children_is_no_server() -> None:
    """It says what to name instead."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        result = run("estimate", "--pid", str(process.pid))
    assert_one_line(result, code=1, says="has no child processes: name the master of a server that forks its workers")


@pytest.mark.parametrize("prefork", [(PAGES, 0)], indirect=True)
def test_who_names_a_worker_is_told_its_master(prefork: Prefork) -> None:
    """`pgrep` lists them all."""
    children = Path(f"/proc/{prefork.pid}/task/{prefork.pid}/children").read_text(encoding="ascii").split()
    result = run("estimate", "--pid", children[0])
    assert_one_line(result, code=1, says=f"name the master of a server that forks its workers, perhaps {prefork.pid}")


@as_root
@pytest.mark.parametrize("prefork", [(PAGES, 0)], indirect=True)
def test_who_may_not_look_is_told_so(prefork: Prefork) -> None:
    """The kernel decides; the sentence says what would help."""
    command = (sys.executable, "-c", f"import refork.ctl_estimate\n{AS_NOBODY}")
    result = run("estimate", "--pid", str(prefork.pid), command=command)
    assert_one_line(result, code=1, says=f"you may not look at process {prefork.pid}: run as root")


@pytest.mark.parametrize("prefork", [(PAGES, 0)], indirect=True)
def test_where_contents_may_not_be_read_the_figures_still_tell_something(
    prefork: Prefork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under Yama: an upper end, no lower one, and a note."""

    def forbidden(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(estimate_proc, "_compare", forbidden)
    found = estimate_proc.look(prefork.pid, estimate_proc.Effort())
    assert (found.duplicate, found.changing, found.samples) == (None, None, 0)
    assert found.used > 0
    assert any("page contents may not be read here" in note for note in found.notes)


STARTED = """
import subprocess, sys
code = "import sys; kept = [str(n) for n in range(50_000)]; print('up', flush=True); sys.stdin.read()"
command = [sys.executable, "-c", code]
children = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(3)]
for child in children:
    child.stdout.readline()
print("up", flush=True)
sys.stdin.read()
for child in children:
    child.communicate()
"""


def test_workers_that_were_started_one_by_one_are_told_from_forks() -> None:
    """As uvicorn's are: what they have in common lies at other addresses, so the lower end is no use."""
    command = ["sh", "-c", f'{sys.executable} -c "$CODE"; true']
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(CODE=STARTED)
    ) as shell:
        assert shell.stdout is not None
        assert shell.stdout.readline() == b"up\n"
        found = estimate(shell.pid, "--seconds", "0")
        shell.communicate()
    assert [process["role"] for process in found["processes"]] == ["master", "worker", "worker", "worker"]
    assert found["processes"][0]["pid"] != shell.pid  # the shell has only started it
    assert any("started one by one" in note for note in found["notes"])


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (("--pid", "0"), "argument --pid: not a number from 1 to 4194304: '0'"),
        (("--pid", "x"), "argument --pid: not a number from 1 to 4194304: 'x'"),
        ((), "the following arguments are required: --pid"),
        (("--pid", "1", "--pages", "0"), "argument --pages: not a number from 1 to 1000000: '0'"),
        (("--pid", "1", "--seconds", "-1"), "argument --seconds: not a duration in seconds: '-1'"),
    ],
)
def test_nonsense_is_wrong_usage(wrong: tuple[str, ...], told: str) -> None:
    """Before anything is looked at; the sentence says what would do."""
    result = run("estimate", *wrong)
    assert (result.returncode, result.stderr) == (2, f"reforkctl: {told} (try: reforkctl --help)\n")


CACHE = """
cache = [{"id": n, "name": f"product {n}", "price": n / 100} for n in range(100_000)]

def app(environ, start_response):
    total = sum(each["price"] for each in cache)
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""


def test_a_real_gunicorn_is_estimated_as_what_its_workers_copied(tmp_path: Path) -> None:
    """Preloading shared the cache, reading it unshared it: most of it is equal, and most of it can be won."""
    (tmp_path / "shop.py").write_text(CACHE)
    port = free_port()
    words = ("--preload", "-w", str(WORKERS), "-b", f"127.0.0.1:{port}", "--no-control-socket", "shop:app")
    log = tmp_path / "log"
    with (
        log.open("wb") as file,
        subprocess.Popen(
            [sys.executable, "-m", "gunicorn", *words], cwd=tmp_path, stdout=file, stderr=file, env=environment()
        ) as master,
    ):
        try:
            until(lambda: log.read_text().count("Booting worker") == WORKERS, what="gunicorn to boot its workers")
            until(lambda: _all_have_copied(master.pid, port), what="each worker to have read the cache")
            found = estimate(master.pid, "--seconds", "0.1")
        finally:
            master.terminate()
            master.wait(PATIENCE)
    assert [process["role"] for process in found["processes"]] == ["master", *["worker"] * WORKERS]
    assert found["duplicate"]["value"] > 0.3
    assert 0.2 * found["used"] < found["at_least"]["won"] <= found["at_most"]["won"] < found["used"]
    assert not [note for note in found["notes"] if "forked" in note]


def _all_have_copied(master: int, port: int) -> bool:
    """Ask once more, and tell whether each worker has its own copy of the cache by now."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=PATIENCE) as answer:
        assert answer.read() == b"ok"
    children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(master)], capture_output=True, text=True, check=True)
    read = [memory.read(int(pid)) for pid in children.stdout.split()]
    return sum(each is not None and each.private_dirty > 15 * 1024 * 1024 for each in read) == WORKERS
