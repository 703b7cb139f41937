"""refork.prefork finds prefork servers among processes, and refork.process_table reads these from /proc."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refork import process_table
from refork.prefork import LARGER, LEAST_RSS, Entry, Tree, choose, find_trees, pick_workers, server_name, tree_of

MIB = 1024 * 1024
PYTHON = "/usr/bin/python3.13"


def entry(pid: int, parent: int, *, mib: int = 50, program: str = PYTHON, command: str = "", started: int = 0) -> Entry:
    """Make up a process; without a word about it, it started in the order of pids."""
    return Entry(
        pid=pid, parent=parent, started=started or pid, rss=mib * MIB, program=program, command=command or program
    )


def table(*entries: Entry) -> dict[int, Entry]:
    """Put processes into a table."""
    return {each.pid: each for each in entries}


def server(master: int, *, workers: int, mib: int = 50, parent: int = 0, program: str = PYTHON) -> list[Entry]:
    """Make up a master and its workers."""
    below = [entry(master + 1 + number, master, mib=mib, program=program) for number in range(workers)]
    return [entry(master, parent, program=program), *below]


def masters(trees: list[Tree]) -> list[int]:
    """Name the masters."""
    return [tree.master.pid for tree in trees]


POD = [
    entry(1, 0, mib=1, program="", command="/pause"),
    entry(7, 0, mib=2, program="/usr/bin/dash", command="sh -c gunicorn shop"),
    *server(8, workers=3, parent=7),
    entry(30, 9, mib=60, program="/usr/bin/ffmpeg"),
    entry(40, 0, mib=20, program="/usr/bin/shipper"),
]


def test_the_server_of_a_pod_is_found() -> None:
    """Neither the pause process, nor the shell that started it, nor a helper is taken for it."""
    (tree,) = find_trees(table(*POD))
    assert tree.master.pid == 8
    assert [worker.pid for worker in tree.workers] == [9, 10, 11]
    assert [other.pid for other in tree.others] == [30]
    assert [process.pid for process in tree.processes] == [8, 9, 10, 11, 30]


@pytest.mark.parametrize("named", [7, 8])
def test_a_server_is_known_by_its_master_and_by_the_shell_that_started_it(named: int) -> None:
    """Who names a pid names what it stands for."""
    tree = tree_of(named, table(*POD))
    assert tree is not None
    assert (tree.master.pid, len(tree.workers)) == (8, 3)


def test_a_process_that_is_not_there_has_no_tree() -> None:
    """And one without children has no workers."""
    assert tree_of(99, table(*POD)) is None
    tree = tree_of(40, table(*POD))
    assert tree is not None
    assert tree.workers == ()


@pytest.mark.parametrize(
    "processes",
    [
        pytest.param(server(8, workers=1), id="one worker"),
        pytest.param(server(8, workers=4, mib=LEAST_RSS // MIB - 1, program="/usr/bin/bash"), id="shells"),
        pytest.param([entry(1, 0, program="/sbin/tini"), entry(2, 1), entry(3, 1)], id="an init with two programs"),
        pytest.param([entry(2, 0), entry(3, 0)], id="two containers, whose parent is outside"),
        pytest.param([], id="nothing"),
    ],
)
def test_what_is_no_prefork_server_is_not_taken_for_one(processes: list[Entry]) -> None:
    """Nobody is told figures of something that he did not mean."""
    assert find_trees(table(*processes)) == []


def test_where_programs_are_not_shown_sizes_have_to_do() -> None:
    """A process of another user does not say what it runs, but it is to be found, so that somebody is told so."""
    assert masters(find_trees(table(*server(8, workers=2, program="")))) == [8]


def test_the_largest_server_comes_first() -> None:
    """By what its workers have; a web server in front of the application is smaller."""
    both = [*server(20, workers=8, mib=9, program="/usr/sbin/nginx"), *server(50, workers=2, mib=100)]
    assert masters(find_trees(table(*both))) == [50, 20]


def test_workers_that_have_children_of_their_own_are_workers() -> None:
    """The tree whose workers hold more is meant, not a pool in one of them."""
    pool = [entry(100 + number, 9, mib=20) for number in range(3)]
    assert masters(find_trees(table(*server(8, workers=4, mib=100), *pool)))[0] == 8


def test_the_server_that_is_watched_stays_so_until_another_is_much_larger() -> None:
    """Sizes change all the time; what is watched should not."""
    watched = server(20, workers=2, mib=50)
    rival = server(50, workers=2, mib=50 * LARGER - 1)
    found = choose(find_trees(table(*watched, *rival)), watched=watched[0])
    assert found is not None
    assert found.master.pid == 20
    giant = server(50, workers=2, mib=50 * LARGER + 1)
    found = choose(find_trees(table(*watched, *giant)), watched=watched[0])
    assert found is not None
    assert found.master.pid == 50
    assert choose([], watched=watched[0]) is None


def test_another_process_with_the_same_pid_is_not_what_was_watched() -> None:
    """Numbers are used anew; together with the start they are not."""
    before = entry(20, 0, started=5)
    trees = find_trees(table(*server(20, workers=2, mib=50), *server(50, workers=2, mib=51)))
    found = choose(trees, watched=before)
    assert found is not None
    assert found.master.pid == 50


def test_workers_are_told_from_helpers() -> None:
    """A tracker of the standard library runs the same program, but is small; a log shipper runs another one."""
    workers = [entry(2, 1, mib=100), entry(3, 1, mib=90), entry(4, 1, mib=80)]
    helpers = [entry(70, 1, mib=10), entry(80, 1, mib=120, program="/usr/bin/shipper")]
    assert [worker.pid for worker in pick_workers([*workers, *helpers])] == [2, 3, 4]
    assert pick_workers([]) == ()


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("/usr/bin/python3 /srv/uvicorn-demo/bin/gunicorn -k uvicorn.workers.UvicornWorker app", "gunicorn"),
        ("gunicorn: master [shop.wsgi]", "gunicorn"),
        ("/venv/bin/python -m uvicorn app:app --workers 4", "uvicorn"),
        ("/usr/bin/uwsgi-core --plugin python3 --master", "uwsgi"),
        ("uWSGI master", "uwsgi"),
        ("puma 6.4.2 (tcp://0.0.0.0:3000) [shop]", "puma"),
        ("/usr/bin/python3 -m celery worker", "celery"),
        ("refork:monitor app:app", "refork"),
        ("/usr/bin/python3 serve.py", "python3.13"),
    ],
)
def test_a_server_is_called_what_its_command_line_says(command: str, name: str) -> None:
    """Or its title; a folder that is named like a server is none."""
    assert server_name(entry(1, 0, command=command)) == name


pids = st.integers(1, 30)
anything = st.dictionaries(
    pids,
    st.builds(
        Entry,
        pid=st.just(0),
        parent=st.integers(0, 30),
        started=st.integers(0, 3),
        rss=st.integers(0, 60).map(lambda mib: mib * MIB),
        program=st.sampled_from(["", PYTHON, "/usr/bin/dash"]),
        command=st.text(max_size=20),
    ),
).map(
    lambda found: {
        pid: Entry(pid=pid, parent=it.parent, started=it.started, rss=it.rss, program=it.program, command=it.command)
        for pid, it in found.items()
    }
)


@given(anything, pids)
def test_any_table_has_trees_of_processes_that_are_in_it_once(processes: dict[int, Entry], pid: int) -> None:
    """Also one with circles, which a table can have that was read while processes came and went."""
    trees = find_trees(processes)
    assert [tree.rss for tree in trees] == sorted((tree.rss for tree in trees), reverse=True)
    named = tree_of(pid, processes)
    for tree in [*trees, *([] if named is None else [named])]:
        found = [process.pid for process in tree.processes]
        assert len(set(found)) == len(found)
        assert set(found) <= set(processes)
        assert all(worker.parent == tree.master.pid for worker in tree.workers)
        assert tree.server
    for tree in trees:
        assert len(tree.workers) >= 2
        assert {worker.program for worker in tree.workers} == {tree.master.program}


# --- reading ----------------------------------------------------------------------------------------------------------


def test_the_table_says_of_a_process_what_is_true() -> None:
    """Of a real one: who started it, what it runs, how large it is about; a zombie is not in it."""
    code = "import sys; print('up', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        found = process_table.read()[process.pid]
        assert found.parent == os.getpid()
        assert found.program == os.readlink(f"/proc/{process.pid}/exe")
        assert found.command == " ".join(command)
        assert 4 * MIB < found.rss < 100 * MIB
        assert found.started >= process_table.read()[os.getpid()].started
        assert process.stdin is not None
        process.stdin.close()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert process.pid not in process_table.read()


@pytest.mark.parametrize(
    ("options", "hiding"),
    [("rw", False), ("rw,hidepid=invisible", True), ("rw,hidepid=2,gid=4", True), ("rw,hidepid=off", False)],
)
def test_a_proc_that_hides_processes_is_known(options: str, hiding: bool) -> None:  # noqa: FBT001 - a table of cases
    """So that whoever finds nothing is told why."""
    mounts = f"22 1 8:1 / / rw - ext4 /dev/root rw\n24 22 0:22 / /proc rw,nosuid shared:5 - proc proc {options}\n"
    assert process_table.parse_hiding(mounts.encode()) is hiding
    assert not process_table.parse_hiding(b"")


@given(st.binary(), st.binary())
def test_garbled_facts_are_no_error(stat: bytes, command: bytes) -> None:
    """A process calls itself what it likes."""
    process_table.parse(1, stat, program="", command=command)
    process_table.parse_hiding(stat)
