"""What the server is for: workers are renewed from a warm one, no request fails, and memory is shared."""

from __future__ import annotations

import contextlib
import importlib.util
import re
import signal
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from refork import api
from refork.ctl_client import RefusedError
from tests.integration.server import (
    ASGI,
    WSGI,
    Server,
    assert_no_failure,
    descendants,
    free_port,
    memory_of,
    open_files,
    threads,
    until,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.conftest import Serve

UVICORN = "uvicorn_worker.UvicornWorker"
KINDS = [("sync", WSGI), ("gthread", WSGI), ("asgi", ASGI), (UVICORN, ASGI)]
ASGI_KINDS = ["asgi", UVICORN]

BRISKER = ("--canary-seconds", "0", "--drain-seconds", "0.05")


LONGER_DRAIN = ("--drain-seconds", "0.6")
"""What the idle connections of the load need: they pause for less, so none can send when its time is over."""


@contextlib.contextmanager
def under_load(server: Server) -> Iterator[None]:
    """Have requests come all the time, on busy connections and on idle ones; none may fail."""
    silent = [server.connect() for _ in range(2)]
    for connection in silent:
        server.get(connection=connection)
    with server.load(connections=12) as busy, server.load(connections=4, pause=0.1) as idle:
        yield
        reports = [busy.stop(), idle.stop()]
    for connection in silent:
        connection.close()
    for report in reports:
        assert_no_failure(report)


# --- no request fails -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "app"), KINDS)
def test_two_reforks_and_a_rebase_under_load_fail_no_request(serve: Serve, kind: str, app: str) -> None:
    """And at no time do fewer workers serve than are wanted."""
    server = serve("-k", kind, *LONGER_DRAIN, app=app, workers=3)
    seen: list[api.Status] = []
    with under_load(server):
        for begin in (server.refork, server.refork, server.rebase):
            rollout = server.finish(begin(), each=seen)
            assert rollout.outcome is api.Outcome.SUCCEEDED, rollout.reason
    assert min(status.ready for status in seen) == 3
    status = server.wait_steady(generation=3, workers=3)
    assert [mold.generation for mold in status.molds] == [3]
    assert (status.last_rollout.kind if status.last_rollout else None) is api.RolloutKind.REBASE


@pytest.mark.parametrize(("kind", "app"), KINDS)
def test_nothing_is_left_open_or_running_after_many_generations(serve: Serve, kind: str, app: str) -> None:
    """Descriptors, threads and processes at generation 12 are those of generation 1."""
    server = serve("-k", kind, *BRISKER, app=app)

    def footprint() -> list[tuple[str, int, int]]:
        status = server.wait_steady()
        named = [("monitor", server.monitor), *(("mold", m.pid) for m in status.molds)]
        named += [(f"worker {w.slot}", w.pid) for w in status.workers]
        assert descendants(server.monitor) == {pid for _, pid in named[1:]}
        return [(name, open_files(pid), threads(pid)) for name, pid in named]

    server.get()
    server.succeed(server.refork())
    # The last connection to the control socket may be on its way out still, which only adds.
    first = min(footprint() for _ in range(10))
    for _ in range(11):
        server.get()
        server.succeed(server.refork())
    assert server.wait_steady(generation=12)
    until(lambda: footprint() == first, what=f"the footprint to be {first}, and not {footprint()}")


# --- memory -----------------------------------------------------------------------------------------------------------

LAZY = (
    WSGI
    + """
cache = {}

def warm():
    if not cache:
        cache.update((number, [f"object {number}"]) for number in range(200_000))
    return sum(len(value[0]) for value in cache.values())
"""
)


def test_after_a_refork_workers_share_what_each_had_built_for_itself(serve: Serve) -> None:
    """A lazily built cache of 200,000 objects: the total falls, and reading it afterwards makes nothing private."""
    server = serve(app=LAZY, workers=4)
    _visit_all(server, "/eval/warm()", times=3)
    before = _measure(server)
    operation = server.refork()
    server.succeed(operation)
    server.wait_steady(generation=1)
    _visit_all(server, "/eval/warm()", times=3)
    after = _measure(server)
    assert sum(memory.pss for memory in after.values()) < 0.6 * sum(memory.pss for memory in before.values())
    for worker in server.status().workers:
        assert after[worker.pid].private_dirty < 0.2 * after[worker.pid].rss, after[worker.pid]
    mold = server.status().molds[0]
    assert mold.seal is not None
    assert mold.seal.objects > 200_000
    assert server.status().sealing == "on"


def test_the_status_tells_the_memory_that_the_kernel_tells(serve: Serve) -> None:
    """For each process and in total, soon after somebody has asked."""
    server = serve(app=LAZY)
    _visit_all(server, "/eval/warm()", times=1)
    total = sum(memory.pss for memory in _measure(server).values())
    status = server.wait_status(
        lambda s: s.totals is not None and abs(s.totals.pss - total) < 0.1 * total, what=f"a total PSS of {total}"
    )
    assert all(worker.memory is not None for worker in status.workers)


def _visit_all(server: Server, path: str, *, times: int) -> None:
    """Have every worker answer so many times."""
    visits = Counter({worker.pid: 0 for worker in server.status().workers})

    def look() -> bool:
        visits[server.get(path).pid] += 1
        return min(visits.values()) >= times

    until(look, what=f"{times} answers by each worker")


def _measure(server: Server) -> dict[int, api.Memory]:
    status = server.status()
    pids = [server.monitor, *(mold.pid for mold in status.molds), *(worker.pid for worker in status.workers)]
    return {pid: memory_of(pid) for pid in pids}


# --- who is promoted, and when ----------------------------------------------------------------------------------------


def test_the_warmest_worker_is_promoted(serve: Serve) -> None:
    """The one that has served most; it keeps its process id as a mold, and its slot gets a new process."""
    server = serve(workers=3)
    status = server.wait_status(
        lambda s: bool(server.get()) and len({w.requests for w in s.workers}) == 3, what="three different counts"
    )
    warmest = max(server.status().workers, key=lambda worker: worker.requests)
    server.succeed(server.refork())
    status = server.wait_steady(generation=1)
    assert [mold.pid for mold in status.molds] == [warmest.pid]
    assert warmest.pid not in {worker.pid for worker in status.workers}


@pytest.mark.parametrize("slot", [0, 1])
def test_the_worker_in_the_named_slot_is_promoted(serve: Serve, slot: int) -> None:
    """However cold it is."""
    server = serve()
    named = server.status().workers[slot].pid
    server.succeed(server.refork(slot=slot))
    assert [mold.pid for mold in server.wait_steady(generation=1).molds] == [named]


def test_a_slot_that_does_not_exist_is_refused(serve: Serve) -> None:
    """With the slots there are."""
    server = serve()
    with pytest.raises(RefusedError, match="there is no slot 7: slots are 0 to 1"):
        server.refork(slot=7)


def test_reforks_come_by_schedule_and_then_no_more(serve: Serve) -> None:
    """At 5 requests in the generation that loaded the application, at 10 in the next one."""
    server = serve("--refork-after", "5,10")
    for generation in (1, 2):
        server.wait_status(lambda s, g=generation: bool(server.get()) and s.generation == g, what=str(generation))
        last = server.wait_steady(generation=generation).last_rollout
        assert last is not None
        assert last.trigger is api.Trigger.REQUESTS
    _visit_all(server, "/", times=25)
    status = server.status()
    assert (status.generation, status.rollout) == (2, None)
    assert server.log().count("refork to gen=2 succeeded") == 1


def test_a_rebase_starts_the_schedule_over(serve: Serve) -> None:
    """The application is cold again."""
    server = serve("--refork-after", "5")
    server.wait_status(lambda s: bool(server.get()) and s.generation == 1, what="generation 1")
    server.wait_steady(generation=1)
    server.succeed(server.rebase())
    server.wait_status(lambda s: bool(server.get()) and s.generation == 3, what="generation 3")
    server.wait_steady(generation=3)


def test_after_so_many_generations_a_refork_is_a_rebase(serve: Serve) -> None:
    """What was sealed in vain is let go."""
    server = serve("--max-generations", "2", *BRISKER)
    kinds = [server.succeed(server.refork()).kind for _ in range(4)]
    refork, rebase = api.RolloutKind.REFORK, api.RolloutKind.REBASE
    assert kinds == [refork, refork, rebase, refork]


def test_reforkctl_shows_each_step_and_the_end(serve: Serve) -> None:
    """And exit status 0 when it has succeeded."""
    server = serve()
    done = server.ctl("refork", "--wait")
    assert (done.returncode, done.stderr) == (0, "")
    for step in ("surge", "draining", "sealing", "canary", "rolling", "refork succeeded: generation 1 serves"):
        assert step in done.stdout
    done = server.ctl("status")
    assert "ready=2/2 generation=1 phase=steady sealing=on" in done.stdout
    done = server.ctl("rebase", "--wait")
    assert "rebase succeeded: generation 2 serves" in done.stdout


def test_reforkctl_tells_why_a_refork_failed(serve: Serve) -> None:
    """With exit status 1."""
    server = serve(workers=1)
    server.get("/thread")
    done = server.ctl("refork", "--wait")
    assert done.returncode == 1
    assert re.search(r"reforkctl: refork failed while draining: .*thread 'meddler'", done.stderr)


def test_a_refork_while_another_is_under_way_is_refused(serve: Serve) -> None:
    """It says how far that is; a signal is refused in the log."""
    server = serve("--canary-seconds", "30")
    server.refork()
    server.wait_phase(api.Phase.CANARY)
    assert "is under way (canary)" in server.refusal()
    server.send(signal.SIGURG)
    server.wait_log(r"\[WARNING\] refork refused: .*is under way \(canary\)")


# --- HUP --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "app"), KINDS)
def test_hup_loads_new_code_without_downtime(serve: Serve, kind: str, app: str) -> None:
    """And new configuration: the number of workers is another one afterwards."""
    server = serve("-k", kind, app=app)
    with under_load(server):
        server.write("app.py", app.replace("hello", "bonjour"))
        server.send(signal.SIGHUP)
        server.wait_log(r"rebase to gen=1 succeeded")
    server.wait_steady(generation=1)
    assert server.get().body == b"bonjour"


def test_hup_takes_up_a_new_configuration(serve: Serve) -> None:
    """As far as the command line does not say otherwise."""
    server = serve(config="threads = 2\n")
    server.write("gunicorn.conf.py", "threads = 3\nbacklog = 100\nraw_env = ['NEW=value']\n")
    server.send(signal.SIGHUP)
    server.wait_log(r"rebase to gen=1 succeeded")
    server.wait_steady(generation=1)
    assert server.get("/eval/os.environ['NEW']").body == b"value"


def test_hup_with_a_broken_application_keeps_the_old_one(serve: Serve) -> None:
    """The log says what is broken; the next HUP, with a mended one, succeeds."""
    server = serve()
    with under_load(server):
        server.write("app.py", "1 / 0\n")
        server.send(signal.SIGHUP)
        server.wait_log(r"rebase to gen=1 failed after .*ZeroDivisionError: division by zero \(app.py:1\)")
        assert server.wait_steady(generation=0).refusal == ""
        server.write("app.py", WSGI.replace("hello", "bonjour"))
        server.send(signal.SIGHUP)
        server.wait_log(r"rebase to gen=2 succeeded")
    assert server.get().body == b"bonjour"


def test_hup_with_a_broken_configuration_keeps_the_old_one(serve: Serve) -> None:
    """Nothing is even begun."""
    server = serve()
    server.write("gunicorn.conf.py", "workers = nonsense\n")
    server.send(signal.SIGHUP)
    server.wait_log(r"the new configuration is broken, the old one stays: .*NameError")
    assert (server.status().generation, server.status().rollout) == (0, None)
    assert server.get().status == 200
    server.write("gunicorn.conf.py", "")
    server.send(signal.SIGHUP)
    server.wait_log(r"rebase to gen=1 succeeded")


def test_hup_with_another_address_moves_the_server_there(serve: Serve) -> None:
    """The old address is served until the new generation serves the new one."""
    server = serve(bind=False, config="import os\nbind = os.environ['BIND']\n", environment={"BIND": "127.0.0.1:0"})
    old = server.listening()
    assert server.get(port=old).status == 200
    server.write("gunicorn.conf.py", f"bind = '127.0.0.1:{server.port}'\n")
    server.send(signal.SIGHUP)
    server.wait_log(r"rebase to gen=1 succeeded")
    assert server.get().status == 200
    with pytest.raises(ConnectionRefusedError):
        server.get(port=old)


def test_hup_with_an_address_in_use_keeps_everything(serve: Serve) -> None:
    """It is a broken configuration."""
    other = serve()
    server = serve(bind=False, config=f"bind = '127.0.0.1:{(port := free_port())}'\n")
    server.write("gunicorn.conf.py", f"bind = '127.0.0.1:{other.port}'\n")
    server.send(signal.SIGHUP)
    server.wait_log(r"the new configuration is broken, the old one stays: .*Address already in use")
    assert server.get(port=port).status == 200
    assert server.status().generation == 0


# --- the number of workers --------------------------------------------------------------------------------------------


def test_ttin_and_ttou_change_the_number_of_workers(serve: Serve) -> None:
    """By one; the last one stays."""
    server = serve()
    server.send(signal.SIGTTIN)
    server.wait_steady(workers=3)
    for workers in (2, 1):
        server.send(signal.SIGTTOU)
        server.wait_steady(workers=workers)
    server.send(signal.SIGTTOU)
    server.wait_log("Handling signal: ttou", times=3)
    server.wait_steady(workers=1)


def test_reforkctl_changes_the_number_of_workers_without_failing_a_request(serve: Serve) -> None:
    """Up and down; new ones are forked from the warm mold."""
    server = serve("-k", "gthread")
    with under_load(server):
        server.succeed(server.refork())
        for workers in (5, 1, 2):
            assert server.ctl("workers", str(workers)).returncode == 0
            assert server.wait_steady(generation=1, workers=workers)


# --- lifespan ---------------------------------------------------------------------------------------------------------


def _lifespan(server: Server) -> dict[str, list[int]]:
    """Return which processes have gone through lifespan's startup and shutdown."""
    found: dict[str, list[int]] = {"startup": [], "shutdown": []}
    for line in (server.directory / "lifespan").read_text().splitlines():
        step, pid = line.split()
        found[step].append(int(pid))
    return found


@pytest.mark.parametrize("kind", ASGI_KINDS)
def test_lifespan_ends_at_promotion_and_starts_in_each_worker(serve: Serve, kind: str) -> None:
    """Each process that serves has its own."""
    server = serve("-k", kind, app=ASGI)
    before = [worker.pid for worker in server.status().workers]
    server.succeed(server.refork())
    server.wait_steady(generation=1)
    after = [worker.pid for worker in server.status().workers]
    seen = _lifespan(server)
    assert len(seen["startup"]) == len(set(seen["startup"]))
    assert {*before, *after} <= {*seen["startup"]}
    assert set(before) <= set(seen["shutdown"])
    assert not {*after} & {*seen["shutdown"]}
    answer = server.get("/state")
    assert int(answer.body) == answer.pid
    server.stop()
    seen = _lifespan(server)
    assert sorted(seen["startup"]) == sorted(seen["shutdown"])


@pytest.mark.parametrize("kind", ASGI_KINDS)
def test_a_kept_lifespan_starts_once_and_its_state_is_inherited(serve: Serve, kind: str) -> None:
    """Over two generations: every worker serves with what the promoted one has loaded."""
    server = serve("-k", kind, "--lifespan-keep", app=ASGI, workers=1)
    first = server.status().workers[0].pid
    for generation in (1, 2):
        with under_load(server):
            server.succeed(server.refork())
        server.wait_steady(generation=generation)
        answer = server.get("/state")
        assert int(answer.body) == first != answer.pid
    seen = _lifespan(server)
    spare = [pid for pid in seen["startup"] if pid != first]  # what filled the slot at the first promotion
    assert len(spare) == 1
    assert seen["shutdown"] == spare


# --- worker classes ---------------------------------------------------------------------------------------------------

CUSTOM = """
from gunicorn.workers.sync import SyncWorker

class Clean(SyncWorker):
    pass

class Messy(SyncWorker):
    def run(self):
        import threading
        threading.Thread(target=threading.Event().wait, name="left-behind", daemon=True).start()
        super().run()
"""


def test_a_custom_worker_class_that_comes_back_clean_is_reforked(serve: Serve) -> None:
    """Nobody has to know it."""
    server = serve("-k", "app.Clean", app=WSGI + CUSTOM)
    with under_load(server):
        server.succeed(server.refork())
    server.wait_steady(generation=1)


def test_a_custom_worker_class_that_does_not_come_back_clean_is_named_and_not_tried_again(serve: Serve) -> None:
    """In the log and in the status; HUP gives it, or another one, a new chance."""
    server = serve("-k", "app.Messy", app=WSGI + CUSTOM, workers=1)
    assert "thread 'left-behind'" in server.fail(server.refork())
    sentence = "worker class app.Messy is served but not reforked: it did not come back clean from a graceful stop"
    assert sentence in server.status().refusal
    assert sentence in server.refusal()
    assert f"[WARNING] {sentence}" in server.log()
    assert server.wait_steady(generation=0)
    server.send(signal.SIGHUP)
    server.wait_log(r"rebase to gen=\d+ succeeded")
    assert server.wait_steady().refusal == ""


@pytest.mark.skipif(importlib.util.find_spec("gevent") is None, reason="gevent is not installed")
def test_gevent_is_served_and_a_refork_of_it_fails_no_request(serve: Serve) -> None:
    """Whether it comes back clean or not, the answer is clear and the service is not interrupted."""
    server = serve("-k", "gevent")
    with under_load(server):
        rollout = server.finish(server.refork())
    if rollout.outcome is api.Outcome.FAILED:
        assert "worker class gevent is served but not reforked" in server.status().refusal
        server.wait_steady(generation=0)
    else:
        server.wait_steady(generation=1)


# --- threads ----------------------------------------------------------------------------------------------------------

THREADED = (
    WSGI
    + """
thread = threading.Thread(target=threading.Event().wait, name="importer", daemon=True)
thread.start()
"""
)


def test_a_thread_started_at_import_stays_in_the_first_mold_and_is_named_in_the_log(serve: Serve) -> None:
    """No fork carries it, as with gunicorn's preload; a promoted worker never had it, so reforks succeed."""
    server = serve(app=THREADED, threaded=True)
    server.wait_log(r"\[WARNING\] mold gen=0 is forked from although thread 'importer'")
    for _ in range(2):
        assert server.get("/eval/thread.is_alive()").body == b"False"
        server.succeed(server.refork())
    assert "gen=1 is forked from although" not in server.log()
