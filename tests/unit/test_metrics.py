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
    workers=(worker(0, memory=memory(100)), worker(1, memory=memory(110), state=api.WorkerState.DRAINING)),
    totals=api.Totals(rss=9, pss=5, uss=3, saved=4),
    rollouts=(
        api.RolloutCount(kind=api.RolloutKind.REFORK, trigger=api.Trigger.COMMAND, outcome=api.Outcome.FAILED, count=7),
    ),
    served=(api.SlotCount(slot=0, requests=1000, errors=1), api.SlotCount(slot=1, requests=2000, errors=0)),
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
    rows = re.findall(r"^\| `(refork_\w+)` \| (\w+) \|([^|]*)\|", DOCUMENT.read_text(), re.MULTILINE)
    documented = {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    body, _ = metrics_app.render(STATUS)
    exported = {
        family.samples[0].name: (family.type, set(family.samples[0].labels)) for family in parse_text(body.decode())
    }
    assert documented == exported


def test_no_series_is_named_by_pid() -> None:
    """A pid lives as long as a generation; a series that is named by one dies with it."""
    assert not any(label == "pid" for _, labels in samples(STATUS) for label, _ in labels)
    body, _ = metrics_app.render(STATUS)
    assert b"4000" not in body


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
        STATUS, monitor_memory=None, molds=(mold(0, seal=None),), workers=(worker(0),), totals=None
    )
    assert not [name for name, _ in samples(unknown) if name.startswith("refork_memory")]
    assert value(unknown, "refork_sealed_objects") == 0


def test_every_state_and_every_outcome_has_a_series_from_the_start() -> None:
    """The first failure must be an increase from zero, or no alert sees it."""
    assert value(STATUS, "refork_workers", state="ready") == 1
    assert value(STATUS, "refork_workers", state="draining") == 1
    assert value(STATUS, "refork_workers", state="booting") == 0
    assert value(STATUS, "refork_reforks_total", trigger="command", outcome="failed", kind="refork") == 7
    series = [labels for name, labels in samples(STATUS) if name == "refork_reforks_total"]
    assert len(series) == len(api.Trigger) * len(api.Outcome) * len(api.RolloutKind)


def test_requests_are_counted_by_slot() -> None:
    """The counters are those of the slot, which outlives its workers."""
    assert value(STATUS, "refork_requests_total", slot="1") == 2000
    assert value(STATUS, "refork_request_errors_total", slot="0") == 1


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
