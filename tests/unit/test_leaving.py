"""What a worker does at its end, and what it spares itself."""

from __future__ import annotations

import os
import subprocess
import sys

CACHE = "cache = [{'id': n, 'name': f'record {n}'} for n in range(50_000)]"


def run(script: str) -> tuple[int, str]:
    """Run a script in a process of its own: its exit status and what it printed."""
    head = "import atexit, ctypes, os, resource, sys, threading, time\nfrom refork import heap, leaving\n"
    done = subprocess.run(
        [sys.executable, "-c", head + script], capture_output=True, text=True, timeout=30, check=False, env=os.environ
    )
    assert done.stderr == ""
    return done.returncode, done.stdout


def test_what_programs_rely_on_at_their_end_happens() -> None:
    """In the interpreter's order: threads that are no daemons end, registered functions run, all output is written."""
    status, printed = run(
        """
gate = threading.Event()
def work():
    gate.wait()
    print("thread")
threading.Thread(target=work).start()
atexit.register(print, "first registered")
atexit.register(print, "last registered")
threading._register_atexit(gate.set)
ctypes.CDLL(None).puts(b"native")
leaving.leave(7)
"""
    )
    assert status == 7
    assert sorted(printed.split("\n")) == ["", "first registered", "last registered", "native", "thread"]
    assert printed.index("thread") < printed.index("last registered") < printed.index("first registered")


def test_the_end_copies_next_to_none_of_the_pages_that_a_worker_shares() -> None:
    """They would be copied only to be thrown away."""
    _, printed = run(
        f"""
{CACHE}
heap.seal()
reading, writing = os.pipe()
pid = os.fork()
if pid == 0:
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    os.write(writing, str(faults).encode())
    leaving.leave(0)
_, status, usage = os.wait4(pid, 0)
print(status, usage.ru_minflt - int(os.read(reading, 20)))
"""
    )
    status, faults = printed.split()
    assert status == "0"
    assert int(faults) < 300
