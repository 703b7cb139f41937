"""The pure parts of the exporter: what it watches, which slot a worker has, why it may not look, what it tells."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import kubernetes_validate
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from refork import api, exporter_settings
from refork.address import TcpAddress, UnixAddress
from refork.estimate import Role, estimate
from refork.exporter_access import Credentials, explain, parse_status
from refork.exporter_families import families
from refork.exporter_report import Estimated, Outcome, Report, Seen, Trouble
from refork.exporter_search import Found, State, search
from refork.exporter_settings import ENV_PREFIX, Settings, parse
from refork.exporter_slots import assign
from refork.exposition import write
from tests.unit.test_estimate import samples, tree
from tests.unit.test_metrics import PROCESS, memory
from tests.unit.test_prefork import POD, entry, server, table

if TYPE_CHECKING:
    from refork.prefork import Entry

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "EXPORTER.md").read_text()
MIB = 1024 * 1024


# --- what is watched --------------------------------------------------------------------------------------------------


def find(*processes: Entry, pid: int | None = None, hiding: bool = False) -> Found:
    """Search among processes."""
    return search(table(*processes), pid=pid, watched=None, hiding=hiding)


def test_the_server_of_a_pod_is_watched() -> None:
    """Without a word about it, and with nothing to say besides."""
    found = find(*POD)
    assert (found.state, found.servers, found.reason) == (State.WATCHING, 1, "")
    assert found.tree is not None
    assert found.tree.master.pid == 8


def test_of_several_servers_the_others_are_named() -> None:
    """Whoever meant another one is told how to say so."""
    found = find(*server(20, workers=3), *server(50, workers=2))
    assert found.tree is not None
    assert (found.tree.master.pid, found.servers) == (20, 2)
    assert found.reason == "the largest; --pid chooses another: python3.13 pid=50 workers=2"


def test_the_server_that_was_named_is_watched_whatever_there_is() -> None:
    """Also one with a single worker, which nobody would look for."""
    found = find(*server(20, workers=3), *server(50, workers=1), pid=50)
    assert found.tree is not None
    assert (found.state, found.tree.master.pid) == (State.WATCHING, 50)


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (find(), "set shareProcessNamespace: true in the spec of the pod"),
        (find(entry(1, 0)), "the server may not be up yet, or has one worker (then name its master with --pid)"),
        (find(entry(1, 0), hiding=True), "(hidepid): run the exporter as the server's user"),
        (find(entry(1, 0), pid=9), "there is no process 9"),
        (find(entry(1, 0), pid=1), "process 1 has no children: --pid names a server's master"),
    ],
)
def test_who_finds_nothing_says_what_to_change(found: Found, says: str) -> None:
    """One sentence for the log, the probe, and whoever wrote the pod."""
    assert (found.state, found.tree) == (State.SEARCHING, None)
    assert says in found.reason


def test_refork_itself_is_left_alone() -> None:
    """It tells all this itself; two who tell the same would be added up."""
    monitor = replace(server(8, workers=3)[0], command="refork:monitor shop:app")
    found = find(monitor, *server(8, workers=3)[1:])
    assert (found.state, found.tree, found.servers) == (State.REFORK, None, 1)


# --- slots ------------------------------------------------------------------------------------------------------------


def workers(*identities: tuple[int, int]) -> list[Entry]:
    """Make up workers, by pid and start."""
    return [entry(pid, 1, started=started) for pid, started in identities]


def test_a_worker_that_is_replaced_leaves_its_slot_to_the_next() -> None:
    """The others keep theirs, so the series go on."""
    before = assign(workers((5, 10), (6, 10), (7, 11)), before={})
    assert before == {(5, 10): 0, (6, 10): 1, (7, 11): 2}
    assert assign(workers((5, 10), (7, 11), (9, 20)), before=before) == {(5, 10): 0, (9, 20): 1, (7, 11): 2}


def test_a_pid_that_is_used_anew_is_another_worker() -> None:
    """It gets a slot that is free, which may be the same one."""
    before = assign(workers((5, 10), (6, 10)), before={})
    assert assign(workers((6, 10), (5, 99)), before=before) == {(6, 10): 1, (5, 99): 0}


identities = st.sets(st.tuples(st.integers(1, 12), st.integers(1, 3)), max_size=8)


@given(st.lists(identities, max_size=8))
def test_whoever_stays_keeps_the_slot_and_there_are_never_more_than_workers_at_once(
    lives: list[set[tuple[int, int]]],
) -> None:
    """Whatever the order of births and deaths."""
    slots: dict[tuple[int, int], int] = {}
    most = 0
    for alive in lives:
        before, slots = slots, dict(assign(workers(*alive), before=slots))
        most = max(most, len(alive))
        assert set(slots) == alive
        assert len(set(slots.values())) == len(alive)
        assert all(slot < most for slot in slots.values())
        assert all(slots[each] == before[each] for each in alive & set(before))


# --- who may look -----------------------------------------------------------------------------------------------------


def credentials(uid: int = 1000, gid: int = 1000, capabilities: int = 0) -> Credentials:
    """Make up who a process is."""
    return Credentials(uids=(uid,) * 3, gids=(gid,) * 3, permitted=capabilities, effective=capabilities)


PTRACE = 1 << 19


@pytest.mark.parametrize(
    ("own", "other", "says"),
    [
        (credentials(2000), credentials(), "give both containers the same runAsUser (1000)"),
        (credentials(gid=7), credentials(), "give both containers the same runAsGroup (1000)"),
        (credentials(), credentials(capabilities=1), "it has capabilities that the exporter has not"),
        (credentials(), credentials(), "start the server's container as that user (runAsUser: 1000)"),
        (credentials(capabilities=PTRACE), credentials(capabilities=1), "capabilities that the exporter has not"),
        (credentials(capabilities=PTRACE), credentials(), "AppArmor, SELinux"),
        (credentials(), replace(credentials(), uids=(1000, 0, 0)), "the rights of several users at once"),
        (credentials(), None, "run the exporter as the server's user"),
    ],
)
def test_who_may_not_look_is_told_what_would_help(own: Credentials, other: Credentials | None, says: str) -> None:
    """Each part of the kernel's rule has its own answer."""
    assert says in explain(own, other)


def test_credentials_are_read_from_what_the_kernel_shows_to_everybody() -> None:
    """The ids that count are the real, the effective and the saved one."""
    status = (
        b"Name:\tUid:\t7\t7\nUmask:\t0022\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nCapInh:\t0000000000000000\n"
        b"CapPrm:\t00000000a80425fb\nCapEff:\t0000000000000001\n"
    )
    assert parse_status(status) == Credentials(uids=(1, 2, 3), gids=(5, 6, 7), permitted=0xA80425FB, effective=1)
    assert parse_status(b"") is None


@given(st.binary())
def test_a_garbled_status_is_no_error(text: bytes) -> None:
    """It is nobody's."""
    parse_status(text)


# --- what is told -----------------------------------------------------------------------------------------------------

FOUND = find(*POD)
REPORT = Report(
    version="1.2.3",
    found=FOUND,
    seen=(
        Seen(role=Role.MASTER, slot=None, memory=memory(50), process=PROCESS),
        Seen(role=Role.WORKER, slot=0, memory=memory(100), process=PROCESS),
        Seen(role=Role.WORKER, slot=1, memory=memory(110), process=PROCESS),
        Seen(role=Role.OTHER, slot=None, memory=memory(5), process=PROCESS),
        Seen(role=Role.OTHER, slot=None, memory=memory(6), process=PROCESS),
    ),
    cgroup=api.Cgroup(version=2, usage=30, working_set=20, limit=40, oom_kills=2, psi_some_avg10=1, psi_full_avg10=0),
    sampling=api.Sampling(interval=5.0, seconds=0.5, cpu_share=0.001, age=2.0),
    estimated=Estimated(
        latest=estimate(tree(*[100 * MIB] * 4), samples(equal=3, changed=False), sampled=400 * MIB),
        age=12.0,
        outcomes={Outcome.COMPLETE: 3},
        seconds=2.5,
    ),
    troubles={Trouble.GONE: 2},
    own_memory=memory(20),
    own_process=PROCESS,
)


def told(report: Report) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Tell, and read it as Prometheus does: name and labels to value."""
    body, _ = write(families(report), openmetrics=False)
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }


def value(report: Report, name: str, **labels: str) -> float:
    """Find one sample."""
    return told(report)[name, frozenset(labels.items())]


def names(report: Report) -> set[str]:
    """Name the metrics that have samples."""
    return {name for name, _ in told(report)}


def test_promtool_finds_nothing_to_say() -> None:
    """The names, help texts and types follow the conventions of Prometheus."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed: apt-get install prometheus")
    body, _ = write(families(REPORT), openmetrics=False)
    checked = subprocess.run([promtool, "check", "metrics"], input=body, capture_output=True, check=False)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


def test_every_metric_is_documented_and_every_documented_metric_exists() -> None:
    """docs/EXPORTER.md has one row a metric, with its type and labels."""
    rows = re.findall(r"^\| `(refork_\w+)` \| (\w+) \|([^|]*)\|", DOCUMENT, re.MULTILINE)
    documented = {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    body, _ = write(families(REPORT), openmetrics=False)
    exported = {
        family.samples[0].name: (family.type, set(family.samples[0].labels))
        for family in text_string_to_metric_families(body.decode())
    }
    assert documented == exported


def test_processes_are_told_by_role_and_slot() -> None:
    """As refork tells its own; what is neither master nor worker is one place."""
    assert value(REPORT, "refork_memory_rss_bytes", role="master", slot="") == 50 * MIB
    assert value(REPORT, "refork_memory_pss_bytes", role="worker", slot="1") == 111 * MIB
    assert value(REPORT, "refork_memory_rss_bytes", role="other", slot="") == 11 * MIB
    assert value(REPORT, "refork_memory_saved_bytes") == -5 * MIB  # made up: PSS is more than RSS here
    assert value(REPORT, "refork_start_time_seconds") == PROCESS.started_at


def test_what_comes_and_goes_has_no_counters() -> None:
    """A sum falls when one of them ends, and Prometheus would take that for a restart."""
    counted = [dict(labels)["role"] for name, labels in told(REPORT) if name == "refork_cpu_seconds_total"]
    assert counted == ["master", "worker", "worker"]


def test_as_long_as_a_worker_is_not_measured_there_are_no_sums_and_no_readiness() -> None:
    """A sum in which one is missing is wrong; unknown is not zero."""
    fresh = replace(REPORT, seen=(*REPORT.seen, Seen(role=Role.WORKER, slot=2, memory=None, process=None)))
    assert REPORT.ready
    assert not fresh.ready
    assert fresh.readiness == "watching: processes=6 measured=5"
    assert "refork_memory_saved_bytes" not in names(fresh)
    assert "refork_memory_rss_bytes" in names(fresh)


def test_who_may_not_look_tells_that_and_nothing_of_the_server() -> None:
    """Half of a server would be taken for all of it."""
    forbidden = replace(REPORT, found=replace(FOUND, state=State.FORBIDDEN, reason="why"), estimated=Estimated())
    assert not forbidden.ready
    assert forbidden.readiness == "forbidden: why"
    assert value(forbidden, "refork_exporter_state", state="forbidden") == 1
    assert value(forbidden, "refork_exporter_state", state="watching") == 0
    assert not [name for name in names(forbidden) if name.startswith(("refork_memory", "refork_cgroup"))]
    assert value(forbidden, "refork_estimates_total", outcome="failed") == 0


def test_the_range_is_told_as_two_bounds() -> None:
    """What is saved and what is used then add up to what is used now."""
    used = value(REPORT, "refork_estimate_used_bytes")
    for bound in ("at_least", "at_most"):
        saved = value(REPORT, "refork_estimate_saved_bytes", bound=bound)
        assert 0 < saved < used
        assert value(REPORT, "refork_estimate_expected_bytes", bound=bound) == used - saved
    assert value(REPORT, "refork_estimate_pages") == 1000
    assert value(REPORT, "refork_estimate_duplicate_ratio") == pytest.approx(0.75)


def test_where_contents_may_not_be_read_there_is_no_lower_end() -> None:
    """Rather than zero, which would be an answer."""
    figures = estimate(tree(*[100 * MIB] * 4), None, sampled=0)
    report = replace(REPORT, estimated=replace(REPORT.estimated, latest=figures))
    bounds = [dict(labels)["bound"] for name, labels in told(report) if name == "refork_estimate_saved_bytes"]
    assert bounds == ["at_most"]
    assert value(report, "refork_estimate_contents_readable") == 0
    assert value(REPORT, "refork_estimate_contents_readable") == 1
    assert "refork_estimate_duplicate_ratio" not in names(report)


def test_who_is_watched_and_by_whom_are_labels() -> None:
    """For people who look at a fleet; no series is named by a pid."""
    assert value(REPORT, "refork_exporter_info", version="1.2.3", server="python3.13", program="python3.13") == 1
    assert not any(label == "pid" for _, labels in told(REPORT) for label, _ in labels)
    assert value(REPORT, "refork_exporter_errors_total", kind="gone") == 2
    assert value(REPORT, "refork_exporter_errors_total", kind="internal") == 0


def test_the_documented_pod_is_one_that_kubernetes_takes_and_the_exporter_needs() -> None:
    """Valid to the last field, restricted, with what lets the exporter look, and no probe that could take it down."""
    (block,) = re.findall(r"```yaml\n(spec:.*?)```", DOCUMENT, re.DOTALL)
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web"}, **yaml.safe_load(block)}
    kubernetes_validate.validate(pod, "1.36", strict=True)
    spec = pod["spec"]
    assert spec["shareProcessNamespace"] is True
    assert {"runAsUser", "runAsGroup"} <= set(spec["securityContext"])
    for container in spec["containers"]:
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
    exporter = spec["containers"][1]
    assert "readinessProbe" not in exporter
    assert "cpu" not in exporter["resources"]["limits"]
    assert parse(exporter["args"], env={}).bind == TcpAddress("", exporter["ports"][0]["containerPort"])


# --- what it can be told ----------------------------------------------------------------------------------------------


def test_flags_win_over_the_environment_which_wins_over_defaults() -> None:
    """The same words in three places."""
    environment = {f"{ENV_PREFIX}BIND": ":9464", f"{ENV_PREFIX}CPU_SHARE": "0.01", f"{ENV_PREFIX}PID": ""}
    assert parse([], env={}) == Settings()
    assert parse(["--bind", "unix:/run/m", "--pid=7"], env=environment) == Settings(
        bind=UnixAddress("/run/m"), pid=7, cpu_share=0.01
    )
    assert parse([], env=environment).bind == TcpAddress("", 9464)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--bind", "9090"], "argument --bind: no address: '9090'; write HOST:PORT, :PORT or unix:/ABSOLUTE/PATH"),
        (["--pid", "0"], "argument --pid: not a number from 1 to 4194304: '0'"),
        (["--interval", "0"], "argument --interval: not a duration of 0.1 s or more: '0'"),
        (["--cpu-share", "5"], "argument --cpu-share: not a share of a core, more than 0 and up to 1: '5'"),
        (["--cpu-share", "nan"], "argument --cpu-share: not a share of a core"),
        (["--estimate-interval", "-1"], "argument --estimate-interval: not a duration in seconds: '-1'"),
        (["gunicorn"], "unrecognized arguments: gunicorn"),
    ],
)
def test_nonsense_is_refused_in_one_line(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    """With the words that would be right."""
    with pytest.raises(SystemExit) as ended:
        parse(words, env={})
    assert ended.value.code == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert says in line


def test_every_flag_is_documented_with_its_variable_and_default() -> None:
    """docs/EXPORTER.md has one row a flag."""
    rows = re.findall(r"^\| `(--[\w-]+)` \| `(\w+)` \|([^|]*)\|", DOCUMENT, re.MULTILINE)
    defaults = {
        flag: (exporter_settings._variable(flag), getattr(Settings(), exporter_settings._name(flag)))
        for flag in exporter_settings._flags()
    }
    assert {flag: (variable, default.strip("` ")) for flag, variable, default in rows} == {
        flag: (variable, "" if default is None else str(default)) for flag, (variable, default) in defaults.items()
    }
