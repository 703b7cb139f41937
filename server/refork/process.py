"""What the server asks of the Linux kernel about processes, beyond the standard library.

``prctl(2)`` through ctypes: four calls do not deserve a dependency.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import os
import signal
import sys
import time

import setproctitle

try:
    from refork._fork import CUT_SHORT as CUT_SHORT  # noqa: PLC0414 - the monitor wants to know it
    from refork._fork import fork_away as _fork_away
except ImportError:  # no compiler where this was installed
    CUT_SHORT = None  # type: ignore[assignment]
    _fork_away = None  # type: ignore[assignment]

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_M_ARENA_MAX = -8

_libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, argument: int) -> None:
    if _libc.prctl(option, ctypes.c_ulong(argument), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")


def become_subreaper() -> None:
    """Have orphaned descendants re-parented to this process, so that it can reap them (prctl(2))."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(parent: int) -> None:
    """Be killed when ``parent`` ends; exit at once if it already has.

    The setting is cleared by a change of credentials and by a fork (prctl(2)), so it comes last and in every process.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def fork_away() -> bool:
    """Fork a process that is re-parented to the monitor; False in the new process, True in this one.

    The native module does it with one copy of the page tables, and this with two. There the process in between borrows
    this one's memory, and should it be killed, this one ends too, with the status ``CUT_SHORT``.

    Raises:
        OSError: the kernel cannot fork, or the process in between was killed: the new one may then live all the same.
    """
    if _fork_away is not None:
        return _fork_away()
    parent = os.getpid()
    intermediate = os.fork()
    if intermediate == 0:
        try:
            die_with_parent(parent)
            if os.fork() == 0:
                return False
        except OSError as error:
            os._exit(error.errno or 1)
        os._exit(0)
    _, status = os.waitpid(intermediate, 0)
    if status != 0:
        number = os.WEXITSTATUS(status) if os.WIFEXITED(status) else errno.EINTR
        raise OSError(number, os.strerror(number))
    return True


def wait_for_parent(parent: int, *, seconds: float = 5.0) -> None:
    """Return once the kernel has re-parented this process to ``parent``.

    A worker is forked by an intermediate process that exits at once. Until that has happened ``getppid()`` names the
    intermediate, and a gunicorn worker that compares it with the arbiter's pid would take itself for an orphan.
    """
    deadline = time.monotonic() + seconds
    while os.getppid() != parent:
        if time.monotonic() > deadline:
            os._exit(0)
        time.sleep(0.0005)


def flush_output() -> None:
    """Write out what was printed, by native code too (fflush(3)).

    After a fork two processes have it in their buffer, and both would write it; after ``_exit(2)`` nobody does.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # there is none, or nobody reads it any more
            stream.flush()
    _libc.fflush(None)


def set_title(title: str) -> None:
    """Name the process for ps(1) and top(1).

    The first 15 characters become the ``comm`` of /proc/self/stat, which CPython 3.13.0 parses by spaces to count
    threads before a fork: none of our titles has a space there.
    """
    setproctitle.setproctitle(title)


def keep_one_arena() -> None:
    """Have all threads allocate from one heap, where malloc has more (mallopt(3)): few allocate here, and seldom."""
    mallopt = getattr(_libc, "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)


def give_memory_back() -> None:
    """Return to the kernel what importing has left behind: garbage, and free pages of the heap (malloc_trim(3))."""
    gc.collect()
    trim = getattr(_libc, "malloc_trim", None)
    if trim is not None:
        trim(0)


def describe_status(status: int) -> str:
    """Say in words how a process ended, from what ``waitpid`` returned."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        try:
            name = signal.Signals(number).name
        except ValueError:
            name = f"signal {number}"
        hint = " (out of memory?)" if number == signal.SIGKILL else ""
        return f"killed by {name}{hint}"
    return f"exited with status {os.waitstatus_to_exitcode(status)}"
