"""The small pure modules: amounts, selectors, schedules, requests, state, the Lease, back-off, recommendations."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refork_operator import (
    backoff,
    lease,
    names,
    pods,
    policy,
    quantity,
    recommend,
    requests,
    samples,
    selector,
    settings,
    state,
)
from refork_operator.pods import Workload
from refork_operator.schedule import Schedule, Window, minutes
from tests.fakes.pods import FakePod

MIB = 1 << 20
TIMING = lease.Timing()


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


# --- amounts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1024", 1024), (7, 7), ("1Ki", 1024), ("1.5Gi", 3 << 29), ("1k", 1000), ("2M", 2 * 10**6), ("1500m", 2),
        ("1e9", 10**9), ("1.5E3", 1500), ("12e-1", 2), ("1E", 10**18), ("1Ei", 1 << 60), ("+5", 5), (".5Ki", 512),
        ("5.", 5), ("1500000u", 2), ("100n", 1),
    ],
)  # fmt: skip
def test_quantities_are_read_as_kubernetes_reads_them(text: str | int, size: int) -> None:
    """Binary and decimal suffixes and exponents, fractions rounded up."""
    assert quantity.parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "Mi", "-1", "1 Gi", "1gi", "1e3e", "\u0661Mi", True, None, -5])
def test_what_is_no_quantity_is_an_error(text: Any) -> None:
    """Nothing is guessed."""
    with pytest.raises(quantity.QuantityError):
        quantity.parse_bytes(text)


@given(st.text(max_size=12))
def test_no_text_breaks_the_readers(text: str) -> None:
    """Each is read, or is a QuantityError."""
    for read in (quantity.parse_bytes, quantity.parse_percent, quantity.parse_seconds, quantity.parse_retry_after):
        with suppress(quantity.QuantityError):
            assert read(text) >= 0
    quantity.parse_instant(text)


@pytest.mark.parametrize(("text", "seconds"), [("5", 5.0), ("", 0.0), ("²", 0.0), ("9" * 400, 0.0), ("soon", 0.0)])
def test_only_a_sensible_time_to_wait_is_believed(text: str, seconds: float) -> None:
    """It comes from strangers: one that is no number, or has no end, is none."""
    assert quantity.parse_retry_after(text) == seconds


@pytest.mark.parametrize("percent", range(1, 101))
def test_a_share_of_a_hundred_pods_is_so_many(percent: int) -> None:
    """0.29 times 100 is not 28."""
    assert policy.Budget(share=quantity.parse_percent(f"{percent}%")).places(100) == percent


def test_durations_and_instants_are_read() -> None:
    """As the CRD lets them in and ``date -Is`` writes them."""
    assert quantity.parse_seconds("1h30m5s") == 5405.0
    assert quantity.parse_instant("2026-01-02T03:04:05+01:00") == at("2026-01-02T02:04:05")
    assert quantity.parse_instant("2026-01-02T03:04:05Z") == quantity.parse_instant("2026-01-02T03:04:05")
    assert quantity.show_instant(at("2026-01-02T03:04:05")) == "2026-01-02T03:04:05Z"
    assert quantity.show_bytes(-300 * MIB) == "-300Mi"


# --- selectors and schedules ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "labels", "matches"),
    [
        ({"matchLabels": {"a": "1"}}, {"a": "1", "b": "2"}, True),
        ({"matchLabels": {"a": "1"}}, {"a": "2"}, False),
        ({"matchExpressions": [{"key": "a", "operator": "In", "values": ["1", "2"]}]}, {"a": "2"}, True),
        ({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["1"]}]}, {}, True),
        ({"matchExpressions": [{"key": "a", "operator": "Exists"}]}, {}, False),
        ({"matchExpressions": [{"key": "a", "operator": "DoesNotExist"}]}, {}, True),
        ({}, {"a": "1"}, False),
        (None, {"a": "1"}, False),
    ],
)
def test_selectors_match_as_kubernetes_does(raw: Any, labels: dict[str, str], *, matches: bool) -> None:
    """Except that an empty one matches nothing."""
    assert selector.parse(raw).matches(labels) is matches


@pytest.mark.parametrize(
    ("when", "is_open"),
    [
        ("2026-11-23T01:59:00", False),  # a Monday
        ("2026-11-23T02:00:00", True),
        ("2026-11-23T05:00:00", False),
        ("2026-11-24T03:00:00", False),
        ("2026-11-27T23:30:00", True),
        ("2026-11-28T00:30:00", True),
        ("2026-11-28T01:00:00", False),
        ("2026-11-27T00:30:00", False),
    ],
)
def test_windows_open_and_close(when: str, *, is_open: bool) -> None:
    """Over midnight, the day is the one on which the window opened."""
    night = Window(minutes("23:00"), minutes("01:00"), frozenset([4]))
    morning = Window(minutes("02:00"), minutes("05:00"), frozenset([0]))
    assert Schedule((morning, night)).is_open(at(when)) is is_open
    assert Schedule().is_open(at(when))


# --- requests ---------------------------------------------------------------------------------------------------------

CREATED = at("2026-01-01T00:00:00")


@pytest.mark.parametrize(
    ("annotations", "template", "asked"),
    [
        ({}, None, None),
        ({"refork.dev/requestedAt": ""}, None, None),
        ({"refork.dev/requestedAt": "2026-01-01T00:00:01Z"}, None, "2026-01-01T00:00:01Z"),
        ({"refork.dev/requestedAt": "2026-01-01T00:00:00Z"}, None, None),
        ({"refork.dev/requestedAt": "please"}, None, "please"),
        ({"refork.dev/requestedAt": "please"}, "please", None),
        ({"refork.dev/requestedAt": "please", "refork.dev/handledAt": "please"}, None, None),
        ({"refork.dev/requestedAt": "again", "refork.dev/handledAt": "please"}, None, "again"),
        ({"refork.dev/requestedAt": "x" * 300}, None, None),
    ],
)
def test_a_changed_value_is_one_request(annotations: dict[str, str], template: str | None, asked: str | None) -> None:
    """Unless it was copied, is older than the pod, or was answered."""
    assert requests.pending(annotations, created=CREATED, template_request=template) == asked


def test_the_same_server_in_the_same_state_has_one_request_id() -> None:
    """And another one as soon as anything about it is another."""
    facts: dict[str, Any] = {"policy": "p", "pod": "u", "server": 1.0, "generation": 2, "last": "op"}
    first = requests.automatic_id(**facts)
    assert first == requests.automatic_id(**facts)
    changed = [{"policy": "q"}, {"pod": "v"}, {"server": 2.0}, {"generation": 3}, {"last": "op2"}]
    assert len({first, *(requests.automatic_id(**facts | change) for change in changed)}) == 6
    assert requests.requested_id(asked_of="a", pod="b", value="c") != requests.requested_id(
        asked_of="a", pod="bc", value=""
    )


# --- state ------------------------------------------------------------------------------------------------------------

texts = st.text(max_size=20)
intents = st.builds(
    state.Intent, id=st.text("ab09._:-", max_size=32),
    at=st.floats(0, 1e10), server=st.floats(0, 1e10), promised=st.integers(0, 1 << 50),
    pss=st.integers(0, 1 << 50), policy=texts, request=texts, workload=texts,
)  # fmt: skip


@given(st.builds(state.PodState, intent=st.none() | intents, unpaid=st.integers(0, 99), outcome=texts))
def test_what_is_written_down_is_read_back(whole: state.PodState) -> None:
    """Nothing is lost on the way through an annotation."""
    assert state.read_pod({"refork.dev/state": state.write(whole)}) == whole


@given(st.text(max_size=60))
def test_what_somebody_else_wrote_is_a_fresh_start(text: str) -> None:
    """Annotations can be edited; none of it may stop the operator."""
    assert isinstance(state.read_pod({"refork.dev/state": text}), state.PodState)
    assert isinstance(state.read_workload({"refork.dev/state": text}), state.WorkloadState)


@pytest.mark.parametrize(
    "forged",
    [
        '{"reforked_at": 1e300}', '{"unpaid": -5}', '{"realised": 1e40}', '{"intent": {"id": "../../x"}}',
        '{"intent": {"id": "a", "at": 1e12, "server": 1, "promised": 1, "pss": 1}}',
        '{"outcome": "' + "x" * 2000 + '"}', '{"deep": ' + "[" * 50_000, '{"outcome": "\udcff"}',
    ],
)  # fmt: skip
def test_a_state_that_cannot_be_ours_is_a_fresh_start(forged: str) -> None:
    """Numbers that no clock shows must not reach the arithmetic behind them, and no depth the stack."""
    assert state.read_pod({"refork.dev/state": forged}) == state.PodState()


# --- the Lease --------------------------------------------------------------------------------------------------------


def test_a_holder_is_dead_when_its_lease_has_not_changed_for_its_duration() -> None:
    """By the observer's own clock: what the holder's clock says does not matter."""
    held = lease.taken({}, identity="a", timing=TIMING, at=0.0)
    view = lease.observe(lease.View(), held, now=100.0)
    assert not lease.may_take(view, identity="b", timing=TIMING, now=109.9)
    assert lease.may_take(view, identity="b", timing=TIMING, now=110.0)
    renewed = lease.observe(view, lease.taken(held, identity="a", timing=TIMING, at=5.0), now=109.0)
    assert not lease.may_take(renewed, identity="b", timing=TIMING, now=112.0)


def test_a_released_lease_is_free_at_once() -> None:
    """Nobody waits for a holder that has said goodbye."""
    free = lease.released(lease.taken({}, identity="a", timing=TIMING, at=0.0), at=1.0)
    assert lease.may_take(lease.observe(lease.View(), free, now=0.0), identity="b", timing=TIMING, now=0.0)


def test_transitions_count_changes_of_hands() -> None:
    """And renewals do not."""
    first = lease.taken({}, identity="a", timing=TIMING, at=0.0)
    again = lease.taken(first, identity="a", timing=TIMING, at=2.0)
    other = lease.taken(again, identity="b", timing=TIMING, at=20.0)
    assert [raw["spec"]["leaseTransitions"] for raw in (first, again, other)] == [1, 1, 2]
    assert again["spec"]["acquireTime"] == first["spec"]["acquireTime"]


@given(
    st.lists(st.tuples(st.floats(0.01, 4.0), st.sampled_from("ab"), st.booleans(), st.floats(0.0, 3.0)), max_size=60)
)
def test_two_never_hold_it_together(steps: list[tuple[float, str, bool, float]]) -> None:
    """Whatever is delayed or lost between two candidates and the API server."""
    now, stored, version = 0.0, lease.taken({}, identity="", timing=TIMING, at=0.0), 0
    views = {"a": lease.View(), "b": lease.View()}
    for seconds, who, lost, delay in steps:
        now += seconds
        read, read_version = stored, version
        views[who] = lease.observe(views[who], read, now=now)
        if not lease.may_take(views[who], identity=who, timing=TIMING, now=now):
            continue
        asked = now
        now += delay
        if not lost and read_version == version:
            stored, version = lease.taken(read, identity=who, timing=TIMING, at=now), version + 1
            views[who] = lease.renewed(lease.observe(views[who], stored, now=now), at=asked)
        assert sum(lease.holds(view, timing=TIMING, now=now) for view in views.values()) <= 1


# --- timetable --------------------------------------------------------------------------------------------------------


@given(st.floats(0, 1e9), st.floats(1, 3600), st.integers(0, 50), st.floats(0, 1e5))
def test_the_next_time_is_always_ahead(due: float, interval: float, failures: int, late: float) -> None:
    """However late it is, however often it failed."""
    now = due + late
    following = backoff.next_due(due, now=now, interval=interval, failures=failures)
    assert following > now - 1e-6
    assert following - now <= max(interval, backoff.LONGEST_SECONDS) * (1 + 1e-6)


def test_pods_are_spread_over_the_interval() -> None:
    """Two thousand pods are not asked in one second."""
    places = sorted(backoff.first_due(f"uid-{n}", now=1000.0, interval=15.0) - 1000.0 for n in range(2000))
    assert places[0] >= 0
    assert places[-1] < 15.0
    assert max(sum(second <= place < second + 1 for place in places) for second in range(15)) < 200


# --- answers ----------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=200))
def test_no_answer_breaks_the_reader(body: bytes) -> None:
    """It is an observation, or nonsense."""
    with suppress(samples.NonsenseError):
        samples.read(body, at=0.0, limit=None)


def test_an_answer_is_read() -> None:
    """Including fields that a later version may have added."""
    fake = FakePod("127.0.0.1", gained=[30 * MIB, 10 * MIB])
    raw = msgspec.json.decode(msgspec.json.encode(fake.status()))
    raw["from_the_future"] = {"a": [1]}
    seen = samples.read(msgspec.json.encode(raw), at=5.0, limit=None)
    assert (seen.sample.gain, seen.sample.at, seen.sample.limit) == (10 * MIB, 5.0, 1024 * MIB)
    assert [worker.gained for worker in seen.sample.workers] == [30 * MIB, 10 * MIB]
    for lie in (
        {"api": "v9"},
        {"generation": 1 << 70},
        {"started_at": 1e300},
        {"totals": {**raw["totals"], "saved": 1 << 90}},
        {"workers": [{**raw["workers"][0], "gained": 10**400}]},
    ):
        with pytest.raises(samples.NonsenseError):
            samples.read(msgspec.json.encode({**raw, **lie}), at=5.0, limit=None)


def test_an_operation_of_no_server_is_nonsense() -> None:
    """Its generation goes into annotations and events."""
    fake = FakePod("127.0.0.1")
    fake.refork({"request_id": "a"})
    (operation,) = fake.operations.values()
    assert samples.read_operation(msgspec.json.encode(operation)) == operation
    with pytest.raises(samples.NonsenseError):
        samples.read_operation(msgspec.json.encode(msgspec.structs.replace(operation, generation=10**900)))


def test_a_sentence_of_a_stranger_is_one_short_line() -> None:
    """No terminal is driven by what a pod says."""
    assert names.sentence("a\x1b[2Jb\n\nc" + "d" * 999).startswith("a?[2Jb cd")
    assert len(names.sentence("d" * 999)) == names.LONGEST_SENTENCE


# --- pods and recommendations -----------------------------------------------------------------------------------------


def test_a_pod_names_its_deployment() -> None:
    """Through the template's hash, without asking for the ReplicaSet."""
    owner = {"kind": "ReplicaSet", "name": "web-abc-5c4f", "controller": True}
    meta = {"namespace": "shop", "name": "p", "uid": "u", "labels": {"pod-template-hash": "5c4f"}}
    assert pods.parse({"metadata": {**meta, "ownerReferences": [owner]}}).workload == Workload(
        "Deployment", "shop", "web-abc"
    )
    assert pods.parse({"metadata": meta}).workload == Workload("Pod", "shop", "p")


def test_the_container_with_the_port_is_the_one_that_counts() -> None:
    """Not a sidecar that happens to be first."""
    containers = [
        {"name": "proxy", "resources": {"limits": {"memory": "1Gi"}}},
        {
            "name": "app",
            "ports": [{"name": "refork-control", "containerPort": 9}],
            "resources": {"limits": {"memory": "2Gi"}},
        },
    ]
    found = pods.parse({"metadata": {"namespace": "n", "name": "p", "uid": "u"}, "spec": {"containers": containers}})
    assert (found.memory_limit, found.port("refork-control"), found.port(7)) == (2 << 30, 9, 7)
    assert (found.port("7"), found.port("none"), found.port("²")) == (7, None, None)


@given(st.lists(st.tuples(st.integers(1, 1 << 34), st.integers(0, 1 << 34)), min_size=1, max_size=20), st.floats(0, 1))
def test_a_recommendation_covers_every_peak(peaks: list[tuple[int, int]], margin: float) -> None:
    """The request every settled peak, the limit every peak at all."""
    web = Workload("Deployment", "shop", "web")
    seen = [recommend.Peak(web, settled, settled + more, request=1 << 35) for settled, more in peaks]
    (found,) = recommend.recommend(seen, margin=margin)
    assert found.request >= max(peak.settled for peak in seen)
    assert found.limit >= max(peak.ever for peak in seen)
    assert found.limit >= found.request


# --- settings ---------------------------------------------------------------------------------------------------------


def test_flags_win_over_the_environment_and_that_over_defaults() -> None:
    """Every option has a variable."""
    env = {"REFORK_OPERATOR_POLL_TIMEOUT": "2.5", "REFORK_OPERATOR_NAMESPACES": "a, b", "REFORK_OPERATOR_DRY_RUN": "1"}
    chosen = settings.parse(["--poll-timeout", "3"], env=env)
    assert (chosen.poll_timeout, chosen.namespaces, chosen.dry_run, chosen.settle) == (3.0, ("a", "b"), True, 3.0)
    assert not settings.parse(["--no-dry-run"], env=env).dry_run


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--poll-concurrency", "0"], "at least 1"),
        (["--poll-concurrency", "many"], "a whole number is needed"),
        (["--poll-timeout", "soon"], "a number of seconds is needed"),
        (["--settle", "nan"], "a number of seconds is needed"),
        (["--listen", "here"], "write HOST:PORT"),
        (["--listen", "127.0.0.1:99999"], "write HOST:PORT"),
        (["--lease-duration", "1"], "--lease-renew-deadline < --lease-duration"),
        (["--log-format", "xml"], "one of json, text is needed"),
    ],
)
def test_a_wrong_option_ends_with_two_and_a_sentence(
    argv: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """In words of people who have not read the source."""
    with pytest.raises(SystemExit) as end:
        settings.parse(argv, env={})
    assert end.value.code == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(("name", "value"), [("POLL_TIMEOUT", "soon"), ("LISTEN", "here"), ("LOG_LEVEL", "loud")])
def test_a_wrong_variable_is_refused_like_a_wrong_flag(name: str, value: str) -> None:
    """And not found out when it is used."""
    with pytest.raises(SystemExit) as end:
        settings.parse([], env={f"REFORK_OPERATOR_{name}": value})
    assert end.value.code == 2


def test_a_switch_that_is_neither_on_nor_off_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """Two operators are active where a wrong word switches the Lease off."""
    with pytest.raises(SystemExit):
        settings.parse([], env={"REFORK_OPERATOR_LEADER_ELECT": "enabled"})
    assert "'enabled': one of 1, true, yes, on, 0, false, no, off is needed" in capsys.readouterr().err
    assert not settings.parse([], env={"REFORK_OPERATOR_LEADER_ELECT": "Off"}).leader_elect
    assert settings.parse([], env={"REFORK_OPERATOR_DRY_RUN": "on"}).dry_run


def test_an_empty_variable_is_as_good_as_none() -> None:
    """Templates leave some behind."""
    names = ("LEADER_ELECT", "POLL_TIMEOUT", "LISTEN", "LOG_LEVEL", "NAMESPACES")
    chosen = settings.parse(["--identity", "me"], env={f"REFORK_OPERATOR_{name}": "" for name in names})
    assert chosen == settings.parse(["--identity", "me"], env={})
    assert chosen.leader_elect


def test_the_case_of_a_word_does_not_matter() -> None:
    """Nor whether it comes by flag or variable."""
    chosen = settings.parse(["--log-format", "TEXT"], env={"REFORK_OPERATOR_LOG_LEVEL": "debug"})
    assert (chosen.log_level, chosen.log_format) == ("DEBUG", "text")


def test_help_shows_the_defaults_and_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    """--help teaches."""
    with pytest.raises(SystemExit):
        settings.parse(["--help"], env={})
    text = capsys.readouterr().out
    assert "refork-operator --kubeconfig" in text
    assert "(default: 10.0)" in text
