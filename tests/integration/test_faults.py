"""What may go wrong goes wrong here, in a real server: service goes on, the full number of workers is back.

The first part holds the ten situations that a server that reforks must survive. Then every process is killed or
stopped at every step, and at last the server is given what it cannot boot from.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from refork import api
from tests.integration.server import (
    ASGI,
    GATES,
    SOURCES,
    WSGI,
    Server,
    assert_no_failure,
    children,
    is_alive,
    parent_of,
    until,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.integration.conftest import Serve

IMPATIENT = ("--spawn-timeout", "8", "--graceful-timeout", "1", "--promote-timeout", "3")
"""Deadlines that a test can wait for, and that a busy machine keeps."""


@contextlib.contextmanager
def under_load(server: Server) -> Iterator[None]:
    """Have requests come all the time; none may fail."""
    with server.load(connections=8) as load:
        yield
        report = load.stop()
    assert_no_failure(report)


def assert_still_serving(server: Server, *, before: api.Status, reason: str) -> None:
    """A refork has failed for this reason, and the old generation serves with its full number."""
    after = server.wait_steady(generation=before.generation, workers=before.wanted)
    assert after.last_rollout is not None
    assert after.last_rollout.outcome is api.Outcome.FAILED
    assert reason in after.last_rollout.reason
    assert f"failed after {after.last_rollout.seconds:.3f} s: {after.last_rollout.reason}" in server.log()
    assert [mold.generation for mold in after.molds] == [before.generation]


# --- the ten situations -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hook", "reason"),
    [
        ("before_promote(worker)", "the hook before_promote failed: ZeroDivisionError"),
        ("after_mold_fork(mold)", "the hook after_mold_fork failed: ZeroDivisionError"),
    ],
)
def test_a_hook_that_raises_at_promotion_leaves_the_old_generation_serving(
    serve: Serve, hook: str, reason: str
) -> None:
    """1: the worker is not promoted, or its mold is dropped, and its slot is filled from the old mold."""
    server = serve(config=f"def {hook}:\n    1 / 0\n", traces=True)
    before = server.status()
    with under_load(server):
        server.fail(server.refork())
    assert_still_serving(server, before=before, reason=reason)
    assert "ZeroDivisionError" in server.log()


def test_a_hook_that_raises_when_nothing_can_go_wrong_any_more_is_only_logged(serve: Serve) -> None:
    """1: the heap is sealed by then, and the mold ready."""
    server = serve(config="def after_promote(mold):\n    1 / 0\n", traces=True)
    with under_load(server):
        server.succeed(server.refork())
    assert "the hook after_promote failed" in server.log()


def test_a_mold_that_crashes_at_its_start_leaves_the_old_generation_serving(serve: Serve) -> None:
    """2: the promoted process dies while it seals."""
    server = serve(config="import os, signal\ndef after_mold_fork(mold):\n    os.kill(os.getpid(), signal.SIGKILL)\n")
    before = server.status()
    with under_load(server):
        server.fail(server.refork())
    assert_still_serving(server, before=before, reason="killed by SIGKILL")


def test_a_mold_that_exits_after_it_was_ready_is_dropped(serve: Serve) -> None:
    """3: at the end of its promotion, before it has forked anything."""
    server = serve(config="import os\ndef after_promote(mold):\n    os._exit(0)\n")
    before = server.status()
    with under_load(server):
        server.fail(server.refork())
    assert_still_serving(server, before=before, reason="")
    assert re.search(r"mold gen=1 pid=\d+ ended: exited with status 0", server.log())


def test_a_mold_that_dies_in_steady_state_is_replaced_by_a_cold_one(serve: Serve) -> None:
    """3: its workers serve on, untouched; the next refork succeeds."""
    server = serve()
    before = server.status()
    with under_load(server):
        os.kill(before.molds[0].pid, signal.SIGKILL)
        server.wait_log(r"mold gen=0 pid=\d+ ended: killed by SIGKILL")
        after = server.wait_steady(generation=None)
        assert [worker.pid for worker in after.workers] == [worker.pid for worker in before.workers]
        server.succeed(server.refork())
    server.wait_steady(workers=2)


def test_a_mold_that_hangs_is_killed_and_replaced(serve: Serve) -> None:
    """4: nobody sees it before something is wanted of it; then the deadline ends it, and the slot is filled."""
    server = serve(*IMPATIENT)
    before = server.status()
    with under_load(server):
        os.kill(before.molds[0].pid, signal.SIGSTOP)
        reason = server.fail(server.refork())
        assert "spare" in reason or "surge" in reason
        after = server.wait_status(
            lambda status: status.phase is api.Phase.STEADY and not status.refusal, what="a new mold"
        )
        assert before.molds[0].pid not in [mold.pid for mold in after.molds]
        server.succeed(server.refork())
    server.wait_steady(workers=2)


def test_a_promoted_worker_that_hangs_is_killed(serve: Serve) -> None:
    """4: the deadline of the promotion ends it."""
    server = serve(*IMPATIENT, config=GATES + "def after_mold_fork(mold):\n    gate('never')\n")
    before = server.status()
    with under_load(server):
        operation = server.refork()
        stuck = server.reached("never")
        server.fail(operation)
        until(lambda: not is_alive(stuck), what="the hanging process to be killed")
    assert_still_serving(server, before=before, reason="took longer than")


@pytest.mark.parametrize(
    ("path", "reason"),
    [("/thread", "is not safe to fork from: thread 'meddler'"), ("/connect", "connection to 127.0.0.1:")],
)
@pytest.mark.parametrize(("kind", "app"), [("sync", WSGI), ("gthread", WSGI), ("asgi", ASGI)])
def test_a_worker_that_is_not_safe_to_fork_from_is_refused_by_name(
    serve: Serve, path: str, reason: str, kind: str, app: str
) -> None:
    """5: the reason names the thread or the peer; the worker ends like any other, and is replaced."""
    server = serve("-k", kind, app=app, workers=1)
    before = server.status()
    with socket.create_server(("127.0.0.1", 0)) as peer:
        if path == "/connect":
            port = peer.getsockname()[1]
            server.get(f"/eval/kept.append(socket.create_connection(('127.0.0.1',{port})))")
            reason += str(port)
        else:
            server.get(path)
        refused = server.fail(server.refork())
    assert reason in refused
    assert_still_serving(server, before=before, reason=reason)
    assert server.status().workers[0].pid != before.workers[0].pid
    server.succeed(server.refork())


def test_a_refork_by_signal(serve: Serve) -> None:
    """6: as Puma's."""
    server = serve()
    with under_load(server):
        server.send(signal.SIGURG)
        rollout = server.finish()
    assert (rollout.outcome, rollout.trigger) == (api.Outcome.SUCCEEDED, api.Trigger.SIGNAL)
    server.wait_steady(generation=1)


def test_a_refork_by_signal_with_an_unsafe_worker(serve: Serve) -> None:
    """7: nobody waits for an answer, so the log says it."""
    server = serve(workers=1)
    before = server.status()
    server.get("/thread")
    server.send(signal.SIGURG)
    server.wait_log(r"\[ERROR\] refork to gen=1 failed after .* thread 'meddler'")
    assert_still_serving(server, before=before, reason="thread 'meddler'")


@pytest.mark.parametrize("kind", ["sync", "gthread"])
def test_a_slow_request_during_the_rollout_is_answered(serve: Serve, kind: str) -> None:
    """8: its worker is replaced, and ends when it has answered."""
    server = serve("-k", kind, "--graceful-timeout", "20", "--promote-timeout", "40")
    answers = []
    slow = threading.Thread(target=lambda: answers.append(server.get("/gate/slow")))
    slow.start()
    pid = server.reached("slow")
    slot = next(worker.slot for worker in server.status().workers if worker.pid != pid)
    with under_load(server):
        operation = server.refork(slot=slot)
        server.wait_status(lambda status: status.phase is api.Phase.RETIRING, what="all slots to be rolled over")
        assert is_alive(pid)
        server.open("slow")
        slow.join()
        server.succeed(operation)
    assert [(answer.status, answer.pid) for answer in answers] == [(200, pid)]


def test_a_worker_that_is_slow_to_boot_holds_the_rollout_and_nothing_else(serve: Serve) -> None:
    """8: the old worker of its slot serves until it is there."""
    config = (
        GATES
        + """
generation = 0
def before_worker_fork(mold):
    global generation
    generation = mold.generation
def post_worker_init(worker):
    if generation == 1 and worker.age == 5:
        gate("slow")
"""
    )
    server = serve(config=config)  # workers 1 and 2 at the boot, 3 the spare one, 4 the canary, 5 the first to follow
    seen: list[api.Status] = []
    with under_load(server):
        operation = server.refork()
        server.reached("slow")
        server.wait_status(lambda status: status.phase is api.Phase.ROLLING, what="phase rolling", each=seen)
        server.open("slow")
        server.finish(operation, each=seen)
    assert min(status.ready for status in seen) == 2
    server.wait_steady(generation=1)


HOLD = {
    "surge": "def post_fork(server, worker):\n    if worker.age == 3: gate('held')\n",
    "draining": "def before_promote(worker):\n    gate('held')\n",
    "sealing": "def after_mold_fork(mold):\n    gate('held')\n",
    "canary": "def post_fork(server, worker):\n    if worker.age == 4: gate('held')\n",
    "rolling": "def post_fork(server, worker):\n    if worker.age == 5: gate('held')\n",
}
"""What holds a refork of two workers in each of its steps: worker 3 is the spare one, 4 the canary, 5 the last."""

LOADING = WSGI + "\nif os.path.exists('hold'):\n    gate('held')\n"


@pytest.mark.parametrize("step", HOLD)
def test_term_in_the_middle_of_a_refork_ends_everything(serve: Serve, step: str) -> None:
    """9: gracefully, with exit status 0, whatever the step."""
    server = serve(config=GATES + HOLD[step])
    server.refork()
    server.reached("held")
    server.wait_phase(api.Phase(step))
    server.send(signal.SIGTERM)
    server.wait_log("Handling signal: term")
    server.open("held")
    assert server.wait() == 0


def test_quit_in_the_middle_of_a_refork_ends_everything(serve: Serve) -> None:
    """9: without waiting for anybody."""
    server = serve(config=GATES + HOLD["rolling"])
    server.refork()
    server.reached("held")
    assert server.stop(signal.SIGQUIT) == 0


BABBLING = """
import signal

def post_worker_init(worker):
    signal.signal(signal.SIGUSR2, lambda *_: os.write(worker.tmp._channel.fileno(), b"nonsense"))
"""


def test_a_worker_that_sends_nonsense_is_said_to_be_killed_for_that_and_is_replaced(serve: Serve) -> None:
    """Nobody is sent to look for what ran out of memory."""
    server = serve(config=GATES + BABBLING)
    os.kill(server.status().workers[0].pid, signal.SIGUSR2)
    server.wait_log(r"worker\[0\] gen=0 pid=\d+ ended: killed, because it sent what is no message")
    server.wait_steady(workers=2)
    assert "out of memory" not in server.log()


UNBORN = """
def before_worker_fork(mold):
    if os.path.exists("hold"):
        gate("unborn")
"""


def test_a_worker_that_is_not_wanted_any_more_when_it_is_born_is_said_to_be_killed_for_that(serve: Serve) -> None:
    """9: nobody is sent to look for what ran out of memory."""
    server = serve(config=GATES + UNBORN, workers=1)
    server.write("hold", "")
    server.send(signal.SIGTTIN)
    server.reached("unborn")
    server.send(signal.SIGTERM)
    server.wait_log("Handling signal: term")
    server.open("unborn")
    assert server.wait() == 0
    assert "out of memory" not in server.log()
    server.wait_log(r"\[INFO\] worker\[1\] gen=0 pid=\d+ ended: killed, because nobody wants it any more")


def test_term_while_the_application_is_loaded_afresh_ends_everything(serve: Serve) -> None:
    """9: a rebase is a rollout too."""
    server = serve(app=LOADING)
    server.write("hold", "")
    server.rebase()
    server.reached("held")
    assert server.stop() == 0


@pytest.mark.parametrize("step", HOLD)
def test_hup_in_the_middle_of_a_refork_comes_after_it(serve: Serve, step: str) -> None:
    """10: the refork goes on to its end, then the new code and configuration are rolled out."""
    server = serve(config=GATES + HOLD[step])
    with under_load(server):
        server.refork()
        server.reached("held")
        server.write("app.py", WSGI.replace("hello", "bonjour"))
        server.write("gunicorn.conf.py", "workers = 2\n")
        server.send(signal.SIGHUP)
        server.wait_log("Handling signal: hup")
        server.open("held")
        server.wait_log(r"rebase to gen=2 succeeded")
    assert server.log().index("refork to gen=1 ") < server.log().index("rebase to gen=2: loading")
    server.wait_steady(generation=2)
    assert server.get().body == b"bonjour"


# --- a process is killed or stopped -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sync", "gthread"])
def test_a_killed_worker_is_replaced(serve: Serve, kind: str) -> None:
    """Its slot comes back from the warm mold, the others serve."""
    server = serve("-k", kind, workers=3)
    before = server.status()
    os.kill(before.workers[1].pid, signal.SIGKILL)
    server.wait_log(r"worker\[1\] gen=0 pid=\d+ ended: killed by SIGKILL \(out of memory\?\)")
    after = server.wait_steady(generation=0, workers=3)
    assert after.molds[0].pid == before.molds[0].pid
    assert [after.workers[slot].pid for slot in (0, 2)] == [before.workers[slot].pid for slot in (0, 2)]


def test_a_worker_that_crashes_is_replaced(serve: Serve) -> None:
    """The request that it died of is lost, and no other."""
    server = serve(workers=1)
    with contextlib.suppress(OSError):
        server.get("/crash")
    server.wait_log(r"worker\[0\] gen=0 pid=\d+ ended: exited with status 7")
    server.wait_steady(workers=1)
    assert server.get().status == 200


def test_all_processes_but_the_monitor_may_die_at_once(serve: Serve) -> None:
    """The monitor executes a cold mold, and starts over."""
    server = serve(workers=3)
    before = server.status()
    for process in (*before.molds, *before.workers):
        os.kill(process.pid, signal.SIGKILL)
    server.wait_log(r"mold gen=\d+ pid=\d+ loading", times=2)
    server.wait_steady(workers=3)
    assert server.get().status == 200
    assert server.status().refusal == ""


def test_a_stopped_worker_is_killed_by_its_timeout(serve: Serve) -> None:
    """A process that does not even die of ABRT is killed for good."""
    server = serve("--timeout", "1")
    victim = server.status().workers[0]
    os.kill(victim.pid, signal.SIGSTOP)
    server.wait_log(rf"\[CRITICAL\] worker\[0\] gen=0 pid={victim.pid} timed out")
    until(lambda: not is_alive(victim.pid), what="the stopped worker to be killed")
    server.wait_steady(workers=2)


@pytest.mark.parametrize("step", ["draining", "sealing"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_promoted_worker_that_is_killed_or_stopped_fails_the_refork_only(
    serve: Serve, step: str, number: signal.Signals
) -> None:
    """Its slot has been filled before."""
    server = serve(*IMPATIENT, config=GATES + HOLD[step])
    before = server.status()
    with under_load(server):
        operation = server.refork()
        promoted = server.reached("held")
        server.wait_phase(api.Phase(step))
        os.kill(promoted, number)
        server.fail(operation)
        until(lambda: not is_alive(promoted), what="the promoted worker to be gone")
    reason = "killed by SIGKILL" if number is signal.SIGKILL else "took longer than"
    assert_still_serving(server, before=before, reason=reason)


@pytest.mark.parametrize(
    ("number", "reason"), [(signal.SIGKILL, "killed by SIGKILL"), (signal.SIGSTOP, "took longer than")]
)
def test_a_canary_that_does_not_boot_fails_the_refork_only(serve: Serve, number: signal.Signals, reason: str) -> None:
    """The old generation has not been touched yet."""
    server = serve(*IMPATIENT, config=GATES + HOLD["canary"])
    before = server.status()
    with under_load(server):
        operation = server.refork()
        canary = server.reached("held")
        os.kill(canary, number)
        server.fail(operation)
        until(lambda: not is_alive(canary), what="the canary to be gone")
    after = server.wait_steady(generation=0)
    assert after.last_rollout is not None
    assert reason in after.last_rollout.reason or "killed" in after.last_rollout.reason
    assert [mold.pid for mold in after.molds] == [mold.pid for mold in before.molds]


def test_a_canary_that_dies_while_it_serves_fails_the_refork_only(serve: Serve) -> None:
    """That is what the time is for in which it serves alone."""
    server = serve("--canary-seconds", "30")
    before = server.status()
    operation = server.refork()
    status = server.wait_status(
        lambda s: (
            s.phase is api.Phase.CANARY
            and any(w.generation == 1 and w.state is api.WorkerState.READY for w in s.workers)
        ),
        what="a canary that serves",
    )
    canary = next(worker.pid for worker in status.workers if worker.generation == 1)
    os.kill(canary, signal.SIGKILL)
    server.fail(operation)
    assert_still_serving(server, before=before, reason="of the new generation failed: killed by SIGKILL")


@pytest.mark.parametrize("phase", ["canary", "rolling"])
def test_a_new_mold_that_is_killed_fails_the_refork_only(serve: Serve, phase: str) -> None:
    """Slots that had gone over to it come back to the old generation."""
    server = serve(config=GATES + HOLD[phase])
    with under_load(server):
        operation = server.refork()
        server.reached("held")
        status = server.wait_phase(api.Phase(phase))
        new = next(mold.pid for mold in status.molds if mold.generation == 1)
        os.kill(new, signal.SIGKILL)
        server.wait_log(rf"mold gen=1 pid={new} ended: killed by SIGKILL")
        server.open("held")
        server.fail(operation)
        server.wait_steady(generation=0)


def test_the_old_mold_may_die_in_the_middle_of_a_refork(serve: Serve) -> None:
    """The new one is ready by then, and takes over."""
    server = serve(config=GATES + HOLD["rolling"])
    with under_load(server):
        operation = server.refork()
        server.reached("held")
        status = server.wait_phase(api.Phase.ROLLING)
        old = next(mold.pid for mold in status.molds if mold.generation == 0)
        os.kill(old, signal.SIGKILL)
        server.open("held")
        server.succeed(operation)
        server.wait_steady(generation=1)


@pytest.mark.parametrize("when", ["steady", *HOLD])
def test_when_the_monitor_is_killed_everything_ends_at_once(serve: Serve, when: str) -> None:
    """No process serves on without one who watches it, and the port is free for the next server."""
    server = serve(config=GATES + HOLD.get(when, ""))
    if when != "steady":
        server.refork()
        server.reached("held")
    server.status()
    os.kill(server.monitor, signal.SIGKILL)
    assert server.wait() == -signal.SIGKILL
    until(lambda: not server.left(), what=f"all processes to end: {server.left()}", seconds=5)
    assert server.port_is_free()


def without_native_modules(directory: Path) -> dict[str, str]:
    """Return an environment in which there are none, as where there was no compiler."""
    blocker = directory / "blocker"
    blocker.mkdir()
    blocked = "sys.modules['refork._heap'] = sys.modules['refork._fork'] = None"
    (blocker / "sitecustomize.py").write_text(f"import sys\n{blocked}\n")
    return {"PYTHONPATH": os.pathsep.join([str(blocker), SOURCES])}


# --- the fork itself --------------------------------------------------------------------------------------------------

# Done in Python: what is native cannot be made to fail from outside.
FAILING_FORK = """
import os, signal

fork = os.fork
mold = 0

def failing():
    "Fork, unless a test wants it to fail: in the mold, or in the process between mold and worker."
    where = "mold" if os.getpid() == mold else "intermediate"
    if os.path.exists(f"refuse.{where}"):
        raise OSError(11, "Resource temporarily unavailable")
    if where == "intermediate" and os.path.exists("kill.intermediate"):
        os.kill(os.getpid(), signal.SIGKILL)
    return fork()

def before_worker_fork(the_mold):
    global mold
    mold = the_mold.pid
    os.fork = failing
"""


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("refuse.mold", "Resource temporarily unavailable"),
        ("refuse.intermediate", "Resource temporarily unavailable"),
        ("kill.intermediate", "Interrupted system call"),
    ],
)
def test_a_fork_that_fails_is_tried_again(serve: Serve, tmp_path: Path, fault: str, reason: str) -> None:
    """A refork fails with the reason, the slot is filled once it can be; a mold that fails too often is replaced."""
    server = serve(config=FAILING_FORK, environment=without_native_modules(tmp_path), traces=True)
    before = server.status()
    server.write(fault, "")
    assert reason in server.fail(server.refork())
    os.kill(before.workers[0].pid, signal.SIGKILL)
    server.wait_log(rf"worker\[0\] gen=0 could not be forked: .*{reason}", times=2)
    assert server.get().pid == before.workers[1].pid
    (server.directory / fault).unlink()
    after = server.wait_steady(workers=2)
    assert before.workers[1].pid in {worker.pid for worker in after.workers}


HELD_FORK = """
import ctypes, os

def before_worker_fork(mold):
    if os.path.exists("hold"):
        libc = ctypes.CDLL(None)
        getattr(libc, "__register_atfork")(libc.pause, None, None, None)
"""


def test_a_mold_ends_with_the_process_that_it_forks_by_and_is_replaced_at_once(serve: Serve) -> None:
    """They share their memory, which the dead may have left locked: a mold that went on would hang for ever."""
    server = serve(config=HELD_FORK)
    before = server.status()
    (mold,) = before.molds
    server.write("hold", "")
    os.kill(before.workers[0].pid, signal.SIGKILL)
    (between,) = until(lambda: children(mold.pid), what="the process between mold and worker")
    (server.directory / "hold").unlink()
    os.kill(between, signal.SIGKILL)
    server.wait_log(r"mold gen=0 .* ended: it shared the fate of the process that it forked by, which was killed")
    after = server.wait_steady(workers=2)
    assert after.molds[0].pid != mold.pid
    assert before.workers[1].pid in {worker.pid for worker in after.workers}


# --- what cannot be booted --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("app", "status", "sentence"),
    [
        ("1 / 0\n", 3, "ZeroDivisionError: division by zero (app.py:1)"),
        ("import nonsense_of_that_name\n", 3, "No module named 'nonsense_of_that_name' (app.py:1)"),
        ("import sys\nsys.exit('not today')\n", 3, "SystemExit: it exited with 'not today' (app.py:2)"),
        ("import os\nos._exit(9)\n", 3, "exited with status 9"),
        ("def other(environ, start_response): pass\n", 4, "Failed to find attribute 'app' in 'app'."),
    ],
)
def test_an_application_that_cannot_be_loaded_ends_the_server_with_a_sentence(
    serve: Serve, app: str, status: int, sentence: str
) -> None:
    """No server, no traceback, and the exit status that gunicorn has for it."""
    server = serve(app=app, steady=False)
    assert server.wait() == status
    assert sentence in server.log()
    assert server.port_is_free()


def test_an_application_that_never_gets_loaded_ends_the_server_with_a_sentence(serve: Serve) -> None:
    """It is not tried again for ever."""
    server = serve("--spawn-timeout", "2", app=WSGI + "\ngate('never')\n", steady=False)
    server.reached("never")
    assert server.wait() == 3
    assert "Shutting down: the application was not loaded after 2 s: raise --spawn-timeout" in server.log()


def test_workers_that_cannot_boot_end_the_server_with_a_sentence(serve: Serve) -> None:
    """A hook that raises in every worker: exit status 3, as gunicorn's."""
    server = serve(config="def post_fork(server, worker):\n    raise ValueError('no')\n", steady=False, traces=True)
    assert server.wait() == 3
    assert "ValueError: no" in server.log()


def test_a_port_in_use_ends_the_server_with_a_sentence(serve: Serve) -> None:
    """It says which, and what to do."""
    first = serve()
    second = serve("--bind", f"127.0.0.1:{first.port}", steady=False)
    assert second.wait() == 1
    assert f"cannot bind 127.0.0.1:{first.port}: Address already in use; another process listens there" in second.log()
    assert first.get().status == 200


def test_workers_that_cannot_boot_later_are_tried_again_with_patience(serve: Serve) -> None:
    """The worker that is left serves on; attempts get rarer, and succeed once they can."""
    config = """
import os
def post_fork(server, worker):
    if os.path.exists("broken"):
        raise ValueError("not now")
"""
    server = serve(config=config, traces=True)
    before = server.status()
    server.write("broken", "")
    os.kill(before.workers[0].pid, signal.SIGKILL)
    server.wait_log(r"ended: ValueError: not now", times=3)
    assert server.get().pid == before.workers[1].pid
    (server.directory / "broken").unlink()
    after = server.wait_steady(workers=2)
    assert after.workers[1].pid == before.workers[1].pid


def test_without_the_native_modules_the_heap_is_frozen_and_that_is_said(serve: Serve, tmp_path: Path) -> None:
    """It costs memory, not service: the log and the status say so, and a refork succeeds."""
    server = serve(environment=without_native_modules(tmp_path))
    status = server.status()
    assert status.sealing.startswith("frozen: the C extension refork._heap is not there")
    assert "ready: objects=0 frozen (the C extension refork._heap is not there" in server.log()
    with under_load(server):
        server.succeed(server.refork())


def test_no_process_has_another_parent_than_the_monitor(serve: Serve) -> None:
    """The mold is executed by it, workers are handed over to it, and so is a promoted worker."""
    server = serve()
    server.succeed(server.refork())
    status = server.wait_steady(generation=1)
    parents = {parent_of(process.pid) for process in (*status.molds, *status.workers)}
    assert parents == {server.monitor}
