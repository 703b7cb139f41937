"""What the project promises, on a real cluster, in the order in which a person comes to see it."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from tests.e2e.cluster import Cluster, until

if TYPE_CHECKING:
    from benchmarks._load import Report
    from tests.e2e.conftest import Releases

pytestmark = [pytest.mark.timeout(600), pytest.mark.xdist_group("e2e")]
FULL = 400 << 20
"""What a pod uses at least when each of its four workers has read the catalogue."""


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def fill(cluster: Cluster, release: str) -> dict[str, int]:
    """Wait until the pods of a release use what they can use, and tell how much."""
    pods = cluster.pods(release)
    until(lambda: all(cluster.memory(pod) > FULL for pod in pods), what="workers that have read the catalogue")
    return {pod: cluster.memory(pod) for pod in pods}


def expect_less_than_half(cluster: Cluster, pod: str, before: int) -> None:
    """Demand that the kernel charges a pod with less than half of what it did."""
    until(lambda: cluster.memory(pod) < before / 2, what=f"less than half of {before} bytes")
    after = cluster.memory(pod)
    print(f"{pod}: {before >> 20} MiB before, {after >> 20} MiB after: {after / before - 1:+.0%}")


def expect_no_failure(report: Report) -> None:
    """Demand that requests were made, and that each was answered."""
    print(f"{report.requests} requests, {report.failed_requests} failed; latency in ms: {report.latency_ms}")
    assert report.requests > 100
    assert report.failed_requests == 0, (report.failures, report.notes)


def test_both_charts_are_ready_within_a_minute_and_test_themselves(releases: Releases, cluster: Cluster) -> None:
    """helm install from a clean checkout into a restricted namespace, with the defaults of security."""
    for name in ("refork", releases.with_a_policy()):
        releases.test(name)
    assert "Enforce" in cluster.kubectl("get", "rfp")


def test_a_pod_that_crosses_its_threshold_under_load_is_reforked(releases: Releases, cluster: Cluster) -> None:
    """The policy sees memory grow, reforks one pod after the other, and no request fails for it."""
    shop = releases.with_a_policy()
    with releases.load(shop) as load:
        before = fill(cluster, shop)
        until(lambda: cluster.status(shop)["reforks"]["succeeded"] >= len(before), what="all pods reforked")
        for pod in before:
            expect_less_than_half(cluster, pod, before[pod])
        expect_no_failure(load.stop())
    assert cluster.status(shop)["reforks"]["unpaid"] == 0
    assert "ReforkSucceeded" in cluster.kubectl("describe", "pod", min(before))
    assert cluster.pods(shop) == sorted(before)


def test_an_annotated_pod_is_reforked_under_load(releases: Releases, cluster: Cluster) -> None:
    """kubectl annotate is all it takes, with no policy."""
    plain = releases.without_a_policy()
    with releases.load(plain) as load:
        before, value = fill(cluster, plain), now()
        pod = min(before)
        cluster.annotate("pod", pod, value)
        outcome = until(lambda: cluster.answer("pod", pod, value), what="an answer")
        assert outcome.startswith("Succeeded: generation 1, won ")
        expect_less_than_half(cluster, pod, before[pod])
        expect_no_failure(load.stop())


def test_an_annotated_deployment_is_reforked_pod_by_pod(releases: Releases, cluster: Cluster) -> None:
    """Every pod is reforked, and none is replaced."""
    plain = releases.without_a_policy()
    before, value = cluster.pods(plain), now()
    with releases.load(plain) as load:
        cluster.annotate("deployment", plain, value)
        assert until(lambda: cluster.answer("deployment", plain, value), what="an answer") == "Succeeded: 2 of 2 pods"
        expect_no_failure(load.stop())
    assert cluster.pods(plain) == before


def test_the_other_operator_takes_over(releases: Releases, cluster: Cluster) -> None:
    """The active one is deleted without grace: within twenty seconds another is, and a request is answered."""
    plain, operator = releases.without_a_policy(), releases.operator()
    holder = cluster.get("lease", operator)["spec"]["holderIdentity"]
    active = next(pod for pod in cluster.pods("refork") if holder.startswith(pod))
    pod, value = cluster.pods(plain)[-1], now()
    cluster.kubectl("delete", "pod", active, "--grace-period=0", "--force")
    killed = time.monotonic()
    cluster.annotate("pod", pod, value)
    until(
        lambda: cluster.get("lease", operator)["spec"]["holderIdentity"] not in ("", holder),
        what="another holder",
        seconds=20 - (time.monotonic() - killed),
    )
    assert until(lambda: cluster.answer("pod", pod, value), what="an answer").startswith("Succeeded")


def test_upgrades_fail_no_request(releases: Releases, cluster: Cluster) -> None:
    """helm upgrade replaces all pods of both charts under load, and a request by annotation is answered afterwards."""
    plain = releases.without_a_policy()
    before = {name: cluster.pods(name) for name in ("refork", plain)}
    with releases.load(plain) as load:
        releases.upgrade("refork", log={"level": "DEBUG"})
        releases.upgrade(plain, env=[{"name": "COLOUR", "value": "green"}])
        assert not any(set(cluster.pods(name)) & set(pods) for name, pods in before.items())
        pod, value = cluster.pods(plain)[0], now()
        cluster.annotate("pod", pod, value)
        assert until(lambda: cluster.answer("pod", pod, value), what="an answer").startswith("Succeeded")
        expect_no_failure(load.stop())


def test_uninstalled_nothing_is_left(releases: Releases, cluster: Cluster) -> None:
    """helm uninstall leaves the namespace as it was, but for the Lease, and nothing of the operator beyond it."""
    releases.without_a_policy()
    releases.uninstall()
    lease = "lease.coordination.k8s.io/refork-operator"
    until(lambda: cluster.names() <= releases.before | {lease}, what="the namespace as it was")
    roles = cluster.kubectl("get", "clusterroles,clusterrolebindings", "--output=name").split()
    assert not [name for name in roles if cluster.namespace in name]
