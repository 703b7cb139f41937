"""What the kernel is asked: processes that belong to the monitor, and end with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap

import pytest

from refork import process

WAYS = pytest.mark.parametrize("way", ["native", "plain"])


def run(way: str, script: str) -> str:
    """Run a script in a process of its own, forking in this way; what it printed."""
    head = """
        import os, signal, sys, threading
        from refork import process
        if sys.argv[1] == "plain":
            process._fork_away = None
        assert (process._fork_away is None) == (sys.argv[1] == "plain")
        process.become_subreaper()
    """
    source = textwrap.dedent(head) + textwrap.dedent(script)
    done = subprocess.run(
        [sys.executable, "-c", source, way], capture_output=True, text=True, timeout=30, check=False, env=os.environ
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@WAYS
def test_a_process_that_was_forked_away_belongs_to_the_subreaper(way: str) -> None:
    """Not to the one that forked it, which may end first."""
    printed = run(
        way,
        """
        monitor = os.getpid()
        if os.fork() == 0:  # the mold
            if not process.fork_away():
                process.wait_for_parent(monitor)
                process.die_with_parent(monitor)
                os._exit(7)
            os._exit(0)
        statuses = sorted(os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(2))
        try:
            os.wait()
        except ChildProcessError:
            print(statuses)
        """,
    )
    assert printed == "[0, 7]\n"


@WAYS
def test_a_process_that_was_forked_away_is_whole(way: str) -> None:
    """Its own memory, its own thread id, hooks of the interpreter run, and threads and forks work in it."""
    printed = run(
        way,
        """
        hooks = []
        os.register_at_fork(before=lambda: hooks.append("before"), after_in_child=lambda: hooks.append("child"))
        reading, writing = os.pipe()
        if process.fork_away():
            os.wait()
            answer = os.read(reading, 1000).decode()
            print(answer, hooks.count("child"), answer.split()[0] != str(os.getpid()))
        else:
            thread = threading.Thread(target=hooks.append, args=("thread",))
            thread.start(); thread.join()
            forked = os.fork()
            if forked == 0:
                os._exit(3)
            code = os.waitstatus_to_exitcode(os.waitpid(forked, 0)[1])
            signal.signal(signal.SIGUSR1, lambda *_: hooks.append("signal"))
            signal.raise_signal(signal.SIGUSR1)
            mine = threading.get_native_id() == os.getpid()
            ran = [hook for hook in ("before", "child", "thread", "signal") if hook in hooks]
            os.write(writing, f"{os.getpid()} {mine} {code} {'+'.join(ran)}".encode())
            os._exit(0)
        """,
    )
    _, *rest = printed.split()
    assert rest == ["True", "3", "before+child+thread+signal", "0", "True"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user with no other process")
@WAYS
def test_a_fork_that_the_kernel_refuses_is_an_error_that_says_so(way: str) -> None:
    """And leaves no process behind."""
    printed = run(
        way,
        """
        import resource
        os.setgid(65534)
        os.setuid(64217)  # a user with no other process
        resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
        try:
            process.fork_away()
        except BlockingIOError as error:
            print(error.strerror)
        """,
    )
    assert printed == "Resource temporarily unavailable\n"


def test_who_lent_its_memory_to_a_process_that_was_killed_ends_with_it() -> None:
    """The dead may have held a lock of the C library, for which it would wait for ever."""
    printed = run(
        "native",
        """
        import ctypes
        libc = ctypes.CDLL(None)
        mold = os.fork()
        if mold == 0:
            getattr(libc, "__register_atfork")(libc.pause, None, None, None)  # the C library's pthread_atfork(3)
            process.fork_away()
            os._exit(0)
        while not (between := open(f"/proc/{mold}/task/{mold}/children").read().split()):
            pass
        os.kill(int(between[0]), signal.SIGKILL)
        print(os.waitstatus_to_exitcode(os.waitpid(mold, 0)[1]) == process.CUT_SHORT)
        """,
    )
    assert printed == "True\n"


def test_a_process_that_ignores_the_end_of_its_children_can_be_forked_from() -> None:
    """The kernel then reaps them, and keeps to itself how they ended (wait(2))."""
    printed = run(
        "native",
        """
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        reading, writing = os.pipe()
        if process.fork_away():
            print(os.read(reading, 5).decode())
        else:
            os.write(writing, b"alive")
            os._exit(0)
        """,
    )
    assert printed == "alive\n"


def test_a_process_dies_with_its_parent() -> None:
    """Whatever the parent died of."""
    reading, writing = os.pipe()
    parent = os.fork()
    if parent == 0:
        parent = os.getpid()
        if os.fork() == 0:
            process.die_with_parent(parent)
            os.write(writing, b"x")
            signal.pause()
        os.read(reading, 1)
        os.kill(parent, 9)
    os.close(writing)
    os.waitpid(parent, 0)
    assert os.read(reading, 1) == b"", "the last writer has ended"
    os.close(reading)


@pytest.mark.parametrize(
    ("status", "words"),
    [(0, "exited with status 0"), (3 << 8, "exited with status 3"), (9, "killed by SIGKILL (out of memory?)")],
)
def test_the_end_of_a_process_is_told_in_words(status: int, words: str) -> None:
    """For the log."""
    assert process.describe_status(status) == words
