"""What a real server says about memory is what the kernel says, and it reforks by itself when that pays."""

from __future__ import annotations

import http.client
import os
import signal
from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families

from refork import api, memory
from tests.integration.server import PATIENCE, Server, free_port, until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.integration.conftest import Serve

MIB = 1024 * 1024
FILL = "/eval/bool(kept)or(kept.append(b'x'*{})or(True))"
"""Take so many bytes, once in each worker."""

COUNTING = """
import os
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

requests = Counter("demo_requests", "Requests.")
took = Histogram("demo_took", "Took.", buckets=(1, 2))

def app(environ, start_response):
    if environ["PATH_INFO"] == "/metrics":
        registry = CollectorRegistry()
        MultiProcessCollector(registry)
        body = generate_latest(registry)
    else:
        requests.inc()
        took.observe(1.5)
        body = b"counted"
    headers = [("Content-Length", str(len(body))), ("X-Worker-Pid", str(os.getpid()))]
    start_response("200 OK", headers)
    return [body]
"""


def fill(server: Server, *, mib: int) -> None:
    """Have every worker take so much memory."""
    path = FILL.format(mib * MIB)
    for worker in server.wait_steady().workers:
        server.get_from(worker.pid, path)


def scrape(port: int) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Read the metrics: name and labels to value."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request("GET", "/metrics")
        body = connection.getresponse().read().decode()
    finally:
        connection.close()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(body)
        for sample in family.samples
    }


def is_measured(status: api.Status) -> bool:
    """Whether every process has a sample, and every worker a baseline."""
    processes = (*status.molds, *status.workers)
    known = all(process.memory is not None and process.process is not None for process in processes)
    return known and all(worker.gained is not None for worker in status.workers) and status.monitor_memory is not None


def is_as_measured(process: api.MoldStatus | api.WorkerStatus) -> bool:
    """Whether a process at rest is described as the kernel describes it now."""
    seen, kernel = process.memory, memory.read(process.pid)
    more, kernels = process.process, memory.process(process.pid)
    assert seen is not None
    assert kernel is not None
    assert more is not None
    assert kernels is not None
    assert (more.threads, more.started_at) == (kernels.threads, kernels.started_at)
    return abs(seen.rss - kernel.rss) < MIB and abs(seen.uss - kernel.uss) < MIB


# --- the truth --------------------------------------------------------------------------------------------------------


def test_the_status_is_what_the_kernel_says(serve: Serve) -> None:
    """Every process of a server at rest: its sizes, threads, descriptors and start."""
    server = serve(workers=2)

    def is_true(status: api.Status) -> bool:
        return is_measured(status) and all(map(is_as_measured, (*status.molds, *status.workers)))

    status = server.wait_status(is_true, what="the kernel's own figures")
    assert status.totals is not None
    assert 0 < status.totals.shared_ratio < 1
    assert status.sampling.seconds > 0


def test_a_worker_that_takes_memory_has_gained_it(serve: Serve) -> None:
    """Erosion is what the worker has written to since it was ready; what a refork would win leaves out the largest."""
    server = serve(workers=3)
    server.wait_status(is_measured, what="a sample of every process")
    fill(server, mib=20)

    def gained(status: api.Status) -> bool:
        return all((worker.gained or 0) >= 20 * MIB for worker in status.workers)

    status = server.wait_status(gained, what="20 MiB of erosion in each worker")
    largest = max(worker.gained or 0 for worker in status.workers)
    assert status.gain.predicted == sum(worker.gained or 0 for worker in status.workers) - largest
    assert status.gain.realised is None


def test_after_a_refork_the_status_is_that_of_after(serve: Serve) -> None:
    """`reforkctl refork --wait; reforkctl status` shows what was won, and what was promised for it."""
    server = serve(workers=3)
    server.wait_status(is_measured, what="a baseline of every worker")
    fill(server, mib=20)
    assert server.ctl("refork", "--wait").returncode == 0
    status = server.wait_status(
        lambda status: is_measured(status) and status.gain.realised is not None, what="what the refork has won"
    )
    assert all((worker.gained or 0) < 5 * MIB for worker in status.workers)
    assert all(worker.memory is not None and worker.memory.shared > 20 * MIB for worker in status.workers)
    assert status.gain.promised == pytest.approx(40 * MIB, abs=8 * MIB)
    assert status.gain.realised == pytest.approx(40 * MIB, abs=8 * MIB)
    server.wait_log(r"refork won \d+ of \d+ bytes that it promised")


def test_scrapes_look_at_nothing(serve: Serve) -> None:
    """However often somebody scrapes, the looks are those of the plan: a scrape brings none of them forward."""
    port = free_port()
    server = serve("--metrics-bind", f"127.0.0.1:{port}", workers=2)
    server.wait_status(is_measured, what="a sample of every process")

    def spent() -> float:
        return scrape(port)["refork_sampling_cpu_seconds_total", frozenset()]

    before = spent()
    until(lambda: spent() > before, what="a regular look")
    looks = {spent() for _ in range(30)}
    assert len(looks) <= 10


def test_what_was_served_and_rolled_out_is_counted_over_the_life_of_the_server(serve: Serve) -> None:
    """The counts of a slot outlive its workers, and those of reforks their status."""
    server = serve(workers=2, traces=True)
    for _ in range(20):
        server.get()
    server.get("/error")
    server.succeed(server.refork())
    killed = server.wait_steady(generation=1).workers[0].pid
    os.kill(killed, signal.SIGKILL)
    server.wait_status(lambda status: killed not in {w.pid for w in status.workers}, what="the killed worker's end")
    status = server.wait_steady()
    assert sum(slot.requests for slot in status.served) == 21
    assert sum(slot.errors for slot in status.served) == 1
    assert [slot.slot for slot in status.served] == [0, 1]
    succeeded = api.RolloutCount(api.RolloutKind.REFORK, api.Trigger.COMMAND, api.Outcome.SUCCEEDED, 1)
    assert status.rollouts == (succeeded,)
    rolling = next(step for step in status.steps if step.phase is api.Phase.ROLLING)
    assert sum(rolling.counts) == 1
    assert rolling.seconds > 0


# --- reforks by memory ------------------------------------------------------------------------------------------------

BY_MEMORY = ("--refork-gain", "20M", "--refork-sustained", "0", "--refork-cooldown", "3600")


def test_a_server_reforks_by_itself_when_that_would_win_enough(serve: Serve) -> None:
    """It says why, it wins what it promised, and it does so once in a cool-down."""
    server = serve(*BY_MEMORY, workers=3)
    assert server.wait_status(is_measured, what="a baseline of every worker").automatic is not None
    fill(server, mib=20)
    server.wait_log(r"refork by memory: .* a refork would win")
    status = server.wait_status(
        lambda status: status.generation == 1 and status.gain.realised is not None, what="the refork and its gain"
    )
    assert status.last_rollout is not None
    assert status.last_rollout.trigger is api.Trigger.MEMORY
    assert (status.gain.realised or 0) > 20 * MIB
    assert status.automatic is not None
    assert not status.automatic.stopped

    pids = {worker.pid for worker in server.wait_steady(generation=1).workers}
    for pid in pids:
        server.get_from(pid, f"/eval/len(kept)>1or(kept.append(b'y'*{20 * MIB})or(True))")
    server.wait_status(
        lambda status: status.automatic is not None and status.automatic.reason == "CoolingDown", what="a cool-down"
    )
    assert server.status().generation == 1


def test_without_the_setting_nothing_is_reforked_by_memory(serve: Serve) -> None:
    """It is off unless it is asked for."""
    server = serve(workers=2)
    assert server.status().automatic is None


# --- the application's own metrics ------------------------------------------------------------------------------------


def test_the_applications_own_metrics_stay_whole_and_their_files_few(serve: Serve, tmp_path: Path) -> None:
    """Over many reforks no count is lost, and there are files for the living and one for all the dead."""
    directory = tmp_path / "multiproc"
    directory.mkdir()
    server = serve(app=COUNTING, workers=2, environment={"PROMETHEUS_MULTIPROC_DIR": str(directory)})
    sent = 0
    for generation in range(1, 9):
        for _ in range(5):
            server.get()
            sent += 1
        os.kill(server.monitor, signal.SIGURG)
        server.wait_steady(generation=generation)

    def exported() -> dict[str, float]:
        body = server.get("/metrics").body.decode()
        return {
            sample.name: sample.value
            for family in text_string_to_metric_families(body)
            for sample in family.samples
            if sample.labels.get("le", "+Inf") == "+Inf"
        }

    def is_whole() -> bool:
        seen = exported()
        return (seen["demo_requests_total"], seen["demo_took_bucket"]) == (sent, sent)

    def is_small() -> bool:
        living = {str(process.pid) for process in (*server.status().workers, *server.status().molds)} | {"refork"}
        return {name.rpartition("_")[2].removesuffix(".db") for name in os.listdir(directory)} <= living

    until(is_whole, what="all that was counted")
    until(is_small, what="the files of the dead to go")
    assert is_whole()
    assert len(os.listdir(directory)) <= 2 * (2 + 1 + 1)
