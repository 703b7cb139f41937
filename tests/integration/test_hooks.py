"""Every hook is called, in the process that docs/HOOKS.md says, and in the order of a server's life."""

from __future__ import annotations

import contextlib
import os
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.integration.server import ASGI, WSGI, until

if TYPE_CHECKING:
    from tests.integration.conftest import Serve
    from tests.integration.server import Server

CONFIG = """
import os

here = os.getcwd()

def note(name, *facts):
    with open(os.path.join(here, "hooks"), "a") as file:
        file.write(" ".join([name, str(os.getpid()), *map(str, facts)]) + "\\n")

def on_starting(server): note("on_starting", server.pid, len(server.LISTENERS))
def when_ready(server): note("when_ready", server.pid, len(server.LISTENERS))
def on_reload(server): note("on_reload", server.pid)
def nworkers_changed(server, new_value, old_value): note("nworkers_changed", new_value, old_value)
def pre_exec(server): note("pre_exec", server.pid)
def child_exit(server, worker): note("child_exit", worker.pid)
def after_refork(server, outcome): note("after_refork", outcome)
def on_exit(server): note("on_exit", server.pid)

def before_worker_fork(mold): note("before_worker_fork", mold.pid, mold.generation, mold.promoted)
def pre_fork(server, worker): note("pre_fork", server.pid, worker.age)
def after_mold_fork(mold): note("after_mold_fork", mold.pid, mold.generation, mold.promoted)
def after_promote(mold): note("after_promote", mold.pid, mold.generation, mold.promoted)

def post_fork(server, worker): note("post_fork", server.pid, worker.age)
def after_worker_fork(worker): note("after_worker_fork", worker.age)
def post_worker_init(worker): note("post_worker_init", worker.age)
def pre_request(worker, req): note("pre_request", req.path)
def post_request(worker, req, environ, resp): note("post_request", req.path)
def worker_int(worker): note("worker_int", worker.age)
def worker_abort(worker): note("worker_abort", worker.age)
def before_promote(worker): note("before_promote", worker.age)
def worker_exit(server, worker): note("worker_exit", server.pid, worker.age)
"""

OF_THE_MONITOR = {
    *(
        "on_starting",
        "when_ready",
        "on_reload",
        "nworkers_changed",
        "pre_exec",
        "child_exit",
        "after_refork",
        "on_exit",
    ),
}
OF_MOLDS = {"before_worker_fork", "pre_fork", "after_mold_fork", "after_promote"}
FORK = ["before_worker_fork", "pre_fork"]
BIRTH = ["post_fork", "after_worker_fork", "post_worker_init"]
REQUEST = ["pre_request", "post_request"]


@dataclass(frozen=True, slots=True)
class Call:
    """A hook was called: which, in which process, and with what."""

    name: str
    pid: int
    facts: tuple[str, ...]


def calls(server: Server) -> list[Call]:
    """Return all calls there were, in their order."""
    lines = [line.split() for line in (server.directory / "hooks").read_text().splitlines()]
    return [Call(name, int(pid), tuple(facts)) for name, pid, *facts in lines]


def names(server: Server, pid: int) -> list[str]:
    """Return the hooks that were called in one process."""
    return [call.name for call in calls(server) if call.pid == pid]


def facts(server: Server, name: str) -> list[tuple[str, ...]]:
    """Return what a hook was called with."""
    return [call.facts for call in calls(server) if call.name == name]


def wait_call(server: Server, name: str, *, times: int = 1) -> None:
    """Wait until a hook was called so many times."""
    until(lambda: len(facts(server, name)) >= times, what=f"{name} to be called {times} times")


def test_hooks_are_called_in_their_process_and_order_across_a_refork_and_a_reload(serve: Serve) -> None:
    """From on_starting to on_exit."""
    server = serve(config=CONFIG, workers=1)
    monitor = server.monitor
    cold, first = server.status().molds[0].pid, server.status().workers[0].pid
    server.get("/one")
    server.succeed(server.refork())
    status = server.wait_steady(generation=1)
    second = status.workers[0].pid
    server.get("/two")
    wait_call(server, "child_exit")
    server.send(signal.SIGHUP)
    server.wait_log("rebase to gen=2 succeeded")
    status = server.wait_steady(generation=2)
    fresh, third = status.molds[0].pid, status.workers[0].pid
    server.stop()

    spare = next(c.pid for c in calls(server) if c.name == "post_fork" and c.pid not in {first, second, third})
    assert names(server, cold) == FORK * 2
    assert names(server, first) == [*BIRTH, *REQUEST, "before_promote", "after_mold_fork", "after_promote", *FORK]
    assert names(server, second) == [*BIRTH, *REQUEST, "worker_exit"]
    assert names(server, fresh) == FORK
    assert names(server, spare) == names(server, third) == [*BIRTH, "worker_exit"]

    begin = ["on_starting", "nworkers_changed", "when_ready", "pre_exec"]
    mine = names(server, monitor)
    assert mine[:4] == begin
    assert [name for name in mine[4:] if name != "child_exit"] == [
        *("after_refork", "on_reload", "pre_exec", "after_refork", "on_exit"),
    ]
    assert mine[-1] == "on_exit"
    assert {int(gone) for (gone,) in facts(server, "child_exit")} == {spare, first, second, third}
    # The two reforks, as the hooks were told of them.
    assert facts(server, "after_refork") == [("succeeded",), ("succeeded",)]
    assert facts(server, "on_starting") == [(str(monitor), "0")]
    assert facts(server, "when_ready") == [(str(monitor), "1")]
    assert facts(server, "nworkers_changed") == [("1", "None")]
    assert facts(server, "after_mold_fork") == facts(server, "after_promote") == [(str(first), "1", "True")]
    assert facts(server, "before_worker_fork") == [
        *[(str(cold), "0", "False")] * 2,
        (str(first), "1", "True"),
        (str(fresh), "2", "False"),
    ]
    assert facts(server, "pre_fork") == facts(server, "post_fork") == [(str(monitor), str(n)) for n in (1, 2, 3, 4)]
    for call in calls(server):
        assert (call.pid == monitor) == (call.name in OF_THE_MONITOR), call
        assert call.name not in OF_MOLDS or call.pid in {cold, first, fresh}, call


@pytest.mark.parametrize(("kind", "app"), [("gthread", WSGI), ("asgi", ASGI)])
def test_the_hooks_of_requests_and_promotion_are_called_by_other_worker_classes_too(
    serve: Serve, kind: str, app: str
) -> None:
    """They are gunicorn's to call."""
    server = serve("-k", kind, app=app, config=CONFIG, workers=1)
    first = server.status().workers[0].pid
    server.get("/one")
    server.succeed(server.refork())
    server.wait_steady(generation=1)
    assert names(server, first) == [*BIRTH, *REQUEST, "before_promote", "after_mold_fork", "after_promote", *FORK]


def test_a_change_of_the_number_of_workers_is_told(serve: Serve) -> None:
    """By TTIN, reforkctl and HUP alike."""
    server = serve(config=CONFIG, workers=None)
    server.send(signal.SIGTTIN)
    server.wait_steady(workers=2)
    server.ctl("workers", "3")
    server.wait_steady(workers=3)
    server.send(signal.SIGHUP)
    server.wait_log("rebase to gen=1 succeeded")
    server.wait_steady(workers=1)
    assert facts(server, "nworkers_changed") == [("1", "None"), ("2", "1"), ("3", "2"), ("1", "3")]


def test_a_failed_refork_is_told_and_the_worker_exits_like_any_other(serve: Serve) -> None:
    """What was refused promotion ends with worker_exit."""
    server = serve(config=CONFIG, workers=1)
    refused = server.get("/thread").pid
    server.fail(server.refork())
    wait_call(server, "child_exit")
    assert facts(server, "after_refork") == [("failed",)]
    assert names(server, refused) == [*BIRTH, *REQUEST, "before_promote", "worker_exit"]


def test_a_worker_that_is_silent_for_too_long_can_say_where_it_was(serve: Serve) -> None:
    """worker_abort runs in it, before it ends."""
    server = serve("--timeout", "1", config=CONFIG, workers=1, traces=True)
    with contextlib.suppress(OSError), server.load(connections=1, path="gate/never"):
        stuck = server.reached("never")
        wait_call(server, "worker_abort")
        assert "worker_abort" in names(server, stuck)
        wait_call(server, "child_exit")
    server.open("never")
    server.wait_steady(workers=1)


def test_a_worker_that_is_quit_is_told(serve: Serve) -> None:
    """By QUIT to the worker itself; it is replaced."""
    server = serve(config=CONFIG, workers=1)
    quit_one = server.status().workers[0].pid
    os.kill(quit_one, signal.SIGQUIT)
    wait_call(server, "child_exit")
    assert names(server, quit_one)[-2:] == ["worker_int", "worker_exit"]
    server.wait_steady(workers=1)


@pytest.mark.parametrize("hook", ["on_reload", "child_exit", "after_refork", "on_exit"])
def test_a_hook_that_raises_in_the_monitor_is_logged_and_nothing_more(serve: Serve, hook: str) -> None:
    """The monitor goes on supervising."""
    lines = [line for line in CONFIG.splitlines() if f"def {hook}(" not in line]
    arguments = "server" if hook.startswith("on_") else "server, other"
    server = serve(config="\n".join([*lines, f"def {hook}({arguments}):\n    raise ValueError('no')\n"]), traces=True)
    server.succeed(server.refork())
    server.send(signal.SIGHUP)
    server.wait_log("rebase to gen=2 succeeded")
    assert server.get().status == 200
    assert server.stop() == 0
    assert f"the hook {hook} failed" in server.log()


@pytest.mark.parametrize("hook", ["on_starting(server)", "when_ready(server)", "nworkers_changed(server, new, old)"])
def test_a_hook_that_raises_before_the_server_serves_keeps_it_from_starting(serve: Serve, hook: str) -> None:
    """With a line that says which, and an exit status that is not 0."""
    server = serve(config=f"def {hook}:\n    raise ValueError('not today')\n", steady=False)
    assert server.wait() == 1
    assert "ValueError: not today (gunicorn.conf.py:2)" in server.log()


def test_a_worker_that_a_hook_keeps_from_being_forked_is_tried_again(serve: Serve) -> None:
    """before_worker_fork and pre_fork may raise: the mold lives on."""
    config = """
import os
def before_worker_fork(mold):
    if os.path.exists("broken"):
        raise ValueError("not now")
"""
    server = serve(config=config, traces=True)
    before = server.status()
    server.write("broken", "")
    os.kill(before.workers[0].pid, signal.SIGKILL)
    server.wait_log(r"worker\[0\] gen=0 could not be forked: ValueError: not now")
    (server.directory / "broken").unlink()
    assert server.wait_steady(workers=2).molds[0].pid == before.molds[0].pid
