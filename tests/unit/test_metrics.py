"""refork.metrics_app says of a status what docs/METRICS.md promises, in the words of Prometheus."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest
from prometheus_client import REGISTRY
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from refork import api, metrics_app

DOCUMENT = Path(__file__).parents[2] / "docs" / "METRICS.md"
MIB = 1024 * 1024


def memory(mib: int) -> api.Memory:
    """Make up a memory whose five sizes differ."""
    sizes = [mib, mib + 1, mib + 2, mib + 3, mib + 4]
    rss, pss, uss, shared, private_dirty = (size * MIB for size in sizes)
    return api.Memory(rss=rss, pss=pss, uss=uss, shared=shared, private_dirty=private_dirty)


PROCESS = api.Process(minor_faults=500, cpu_seconds=1.5, threads=3, fds=20, started_at=1000.0)


def worker(slot: int, **changes: Any) -> api.WorkerStatus:
    """Make up a ready worker."""
    facts: dict[str, Any] = {
        "slot": slot,
        "generation": 2,
        "pid": 4000 + slot,
        "state": api.WorkerState.READY,
        "age": 1.0,
    }
    return api.WorkerStatus(**(facts | changes))


def mold(generation: int, **changes: Any) -> api.MoldStatus:
    """Make up a sealed mold."""
    seal = api.SealStatus(sealed=True, reason="", objects=5, total_objects=1000 * generation, seconds=0.1)
    facts: dict[str, Any] = {
        "generation": generation,
        "pid": 4100,
        "state": api.MoldState.READY,
        "age": 1.0,
        "seal": seal,
    }
    return api.MoldStatus(**(facts | changes))


STATUS = api.Status(
    api=api.VERSION,
    version="1.2.3",
    python="3.13.0",
    gunicorn="27.0.1",
    app='demo:app("x\\y\n")',
    worker_class="sync",
    pid=4099,
    started_at=0.0,
    age=10.0,
    phase=api.Phase.STEADY,
    generation=2,
    wanted=3,
    ready=2,
    sealing="on",
    refusal="",
    monitor_memory=memory(30),
    molds=(mold(2, memory=memory(200)),),
    workers=(
        worker(0, memory=memory(100), gained=5 * MIB, erosion_rate=-2.5, in_flight=1, process=PROCESS),
        worker(1, memory=memory(110), state=api.WorkerState.DRAINING),
    ),
    totals=api.Totals(rss=9, pss=5, uss=3, saved=4, shared_ratio=0.75),
    rollouts=(
        api.RolloutCount(kind=api.RolloutKind.REFORK, trigger=api.Trigger.COMMAND, outcome=api.Outcome.FAILED, count=7),
    ),
    served=(
        api.SlotCount(slot=0, requests=1000, errors=1, cpu_seconds=2.5, minor_faults=700),
        api.SlotCount(slot=1, requests=2000, errors=0),
    ),
    steps=(api.StepDurations(api.Phase.SURGE, (0, 0, 2, *[0] * 10, 1), 200.08),),
    monitor_process=PROCESS,
    gain=api.Gain(predicted=11, realised=-12, promised=13),
    cgroup=api.Cgroup(
        version=2, usage=30, working_set=20, limit=40, oom_kills=2, psi_some_avg10=12.5, psi_full_avg10=0.0
    ),
    sampling=api.Sampling(interval=2.5, seconds=0.75, cpu_share=0.003, age=2.0),
    automatic=api.Automatic(reason="DoesNotPay", message="no more", unpaid=3, stopped=True),
)


def samples(status: api.Status) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Render a status, and read it as Prometheus does: name and labels to value."""
    body, _ = metrics_app.render(status)
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in parse_text(body.decode())
        for sample in family.samples
    }


def value(status: api.Status, name: str, **labels: str) -> float:
    """Find one sample."""
    return samples(status)[name, frozenset(labels.items())]


def test_promtool_finds_nothing_to_say() -> None:
    """The names, help texts and types follow the conventions of Prometheus."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed: apt-get install prometheus")
    body, _ = metrics_app.render(STATUS)
    checked = subprocess.run([promtool, "check", "metrics"], input=body, capture_output=True, check=False)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


def test_every_metric_is_documented_and_every_documented_metric_exists() -> None:
    """docs/METRICS.md has one row a metric, with its type and labels."""
    rows = re.findall(r"^\| `(refork_(?!operator_)\w+)` \| (\w+) \|([^|]*)\|", DOCUMENT.read_text(), re.MULTILINE)
    documented = {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    body, _ = metrics_app.render(STATUS)
    exported = {}
    for family in parse_text(body.decode()):
        name, labels = family.samples[0].name, set(family.samples[0].labels) - {"le"}
        exported[name.removesuffix("_bucket")] = (family.type, labels)
    assert documented == exported


def test_no_series_is_named_by_pid() -> None:
    """A pid lives as long as a generation; a series that is named by one dies with it."""
    assert not any(label == "pid" for _, labels in samples(STATUS) for label, _ in labels)
    body, _ = metrics_app.render(STATUS)
    assert b"4000" not in body


def test_a_counter_does_not_fall_by_the_order_of_a_sum() -> None:
    """A slot's newest process may end before an older one: the same seconds are added up in another order then."""
    one, other = 0.3 + 0.2 + 0.1, 0.1 + 0.2 + 0.3
    assert one < other
    told = [
        value(msgspec.structs.replace(STATUS, served=(api.SlotCount(0, 1, 0, seconds),)), "refork_cpu_seconds_total",
              role="worker", slot="0")
        for seconds in (other, one)
    ]  # fmt: skip
    assert told == [0.6, 0.6]


def test_memory_is_told_by_role_and_slot() -> None:
    """Each size has a name of its own, and each process a place."""
    assert value(STATUS, "refork_memory_rss_bytes", role="monitor", slot="") == 30 * MIB
    assert value(STATUS, "refork_memory_pss_bytes", role="mold", slot="") == 201 * MIB
    assert value(STATUS, "refork_memory_uss_bytes", role="worker", slot="0") == 102 * MIB
    assert value(STATUS, "refork_memory_private_dirty_bytes", role="worker", slot="1") == 114 * MIB
    assert value(STATUS, "refork_memory_saved_bytes") == 4


def test_two_processes_in_one_slot_are_one_series() -> None:
    """While a worker is replaced there are two in its slot, and Prometheus refuses duplicates."""
    both = (worker(0, memory=memory(100)), worker(0, memory=memory(1), state=api.WorkerState.BOOTING))
    rolling = msgspec.structs.replace(
        STATUS, workers=both, molds=(mold(1, memory=memory(5)), mold(2, memory=memory(7)))
    )
    assert value(rolling, "refork_memory_rss_bytes", role="worker", slot="0") == 101 * MIB
    assert value(rolling, "refork_memory_rss_bytes", role="mold", slot="") == 12 * MIB
    assert value(rolling, "refork_sealed_objects") == 2000


def test_what_could_not_be_measured_has_no_sample() -> None:
    """Unknown is not zero: a process that is gone has no memory series, and one that is not sealed no objects."""
    unknown = msgspec.structs.replace(
        STATUS,
        monitor_memory=None,
        monitor_process=None,
        molds=(mold(0, seal=None),),
        workers=(worker(0),),
        totals=None,
        gain=api.Gain(predicted=0),
        cgroup=None,
    )
    absent = ("refork_memory", "refork_gain_realised", "refork_gain_promised", "refork_cgroup", "refork_threads")
    assert not [name for name, _ in samples(unknown) if name.startswith(absent)]
    assert value(unknown, "refork_sealed_objects") == 0


def test_every_state_and_every_outcome_has_a_series_from_the_start() -> None:
    """The first failure must be an increase from zero, or no alert sees it."""
    assert value(STATUS, "refork_workers", state="ready") == 1
    assert value(STATUS, "refork_workers", state="draining") == 1
    assert value(STATUS, "refork_workers", state="booting") == 0
    assert value(STATUS, "refork_molds", state="ready") == 1
    assert value(msgspec.structs.replace(STATUS, molds=()), "refork_molds", state="ready") == 0
    assert value(STATUS, "refork_reforks_total", trigger="command", outcome="failed", kind="refork") == 7
    series = [labels for name, labels in samples(STATUS) if name == "refork_reforks_total"]
    assert len(series) == len(api.Trigger) * len(api.Outcome) * len(api.RolloutKind)


def test_requests_are_counted_by_slot() -> None:
    """The counters are those of the slot, which outlives its workers."""
    assert value(STATUS, "refork_requests_total", slot="1") == 2000
    assert value(STATUS, "refork_request_errors_total", slot="0") == 1


def test_erosion_and_gain_are_told_in_bytes() -> None:
    """What a refork would win, what the last one promised, and what it won, which may be less than nothing."""
    assert value(STATUS, "refork_memory_gained_bytes", slot="0") == 5 * MIB
    assert value(STATUS, "refork_memory_erosion_bytes_per_second", slot="0") == -2.5
    assert ("refork_memory_gained_bytes", frozenset({("slot", "1")})) not in samples(STATUS)
    assert value(STATUS, "refork_gain_predicted_bytes") == 11
    assert value(STATUS, "refork_gain_realised_bytes") == -12
    assert value(STATUS, "refork_gain_promised_bytes") == 13
    assert value(STATUS, "refork_memory_shared_ratio") == 0.75


def test_a_control_group_without_a_limit_has_no_limit() -> None:
    """Not a huge number, which would make a share of it look like nothing."""
    assert value(STATUS, "refork_cgroup_memory_limit_bytes") == 40
    assert value(STATUS, "refork_cgroup_memory_working_set_bytes") == 20
    assert value(STATUS, "refork_cgroup_oom_kills_total") == 2
    assert value(STATUS, "refork_cgroup_memory_pressure_ratio", kind="some") == 0.125
    unlimited = api.Cgroup(version=1, usage=30, working_set=20, limit=None, oom_kills=0)
    without = samples(msgspec.structs.replace(STATUS, cgroup=unlimited))
    assert not [name for name, _ in without if "limit" in name or "pressure" in name]


def test_durations_of_steps_are_a_histogram() -> None:
    """Buckets add up, and the last one has everything."""
    name = "refork_rollout_step_duration_seconds"
    assert value(STATUS, f"{name}_bucket", step="surge", le="0.025") == 0
    assert value(STATUS, f"{name}_bucket", step="surge", le="0.05") == 2
    assert value(STATUS, f"{name}_bucket", step="surge", le="+Inf") == 3
    assert value(STATUS, f"{name}_count", step="surge") == 3
    assert value(STATUS, f"{name}_sum", step="surge") == 200.08


def test_a_rollout_under_way_has_an_age_and_no_rollout_has_none() -> None:
    """An alert on one that does not end needs a number that falls to zero when it does."""
    assert value(STATUS, "refork_rollout_age_seconds") == 0
    rollout = api.RolloutStatus(
        id="1",
        kind=api.RolloutKind.REFORK,
        trigger=api.Trigger.COMMAND,
        generation=3,
        phase=api.Phase.ROLLING,
        started_at=0.0,
        seconds=12.5,
    )
    assert value(msgspec.structs.replace(STATUS, rollout=rollout), "refork_rollout_age_seconds") == 12.5


def test_the_cost_of_looking_is_a_metric_itself() -> None:
    """Who pays for knowing wants to know what."""
    assert value(STATUS, "refork_sampling_cpu_seconds_total") == 0.75
    assert value(STATUS, "refork_sampling_cpu_ratio") == 0.003
    assert value(STATUS, "refork_sampling_interval_seconds") == 2.5
    assert value(STATUS, "refork_sampling_age_seconds") == 2.0


def test_giving_up_is_a_metric_and_not_reforking_by_memory_is_not_giving_up() -> None:
    """An alert on it must be silent where it is switched off."""
    assert value(STATUS, "refork_automatic_stopped") == 1
    assert value(STATUS, "refork_automatic_unpaid") == 3
    off = msgspec.structs.replace(STATUS, automatic=None)
    assert value(off, "refork_automatic_stopped") == 0


def test_processor_time_is_counted_by_slot() -> None:
    """It is a counter like the requests, whatever becomes of the processes."""
    assert value(STATUS, "refork_cpu_seconds_total", role="worker", slot="0") == 2.5
    assert value(STATUS, "refork_minor_faults_total", role="monitor", slot="") == 500
    assert value(STATUS, "refork_open_fds", role="worker", slot="0") == 20


def test_versions_are_labels() -> None:
    """One sample says what runs."""
    labels = {"version": "1.2.3", "python": "3.13.0", "gunicorn": "27.0.1", "worker_class": "sync", "sealing": "on"}
    assert value(STATUS, "refork_info", **labels) == 1


def test_openmetrics_is_written_for_who_asks_for_it() -> None:
    """A scraper chooses the format by its Accept header."""
    body, content_type = metrics_app.render(STATUS, accept="application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    families = parse_openmetrics(body.decode())  # type: ignore[no-untyped-call]
    assert "refork_workers_wanted" in {family.name for family in families}
    _, content_type = metrics_app.render(STATUS, accept="nonsense;;;,")
    assert content_type.startswith("text/plain")


def test_the_global_registry_is_left_to_the_application() -> None:
    """An application that exports metrics by itself does not find ours among them."""
    metrics_app.render(STATUS)
    assert not [family.name for family in REGISTRY.collect() if family.name.startswith("refork")]
