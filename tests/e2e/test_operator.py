"""On a real cluster: what a person does first, and what happens at night."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from tests.e2e.conftest import GROW, Cluster, policy, until


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def grow(cluster: Cluster) -> None:
    """Have every worker of every pod fill its cache."""
    for pod in cluster.pods("web"):
        cluster.kubectl("exec", pod["metadata"]["name"], "--", "python", "-c", GROW)


def names(cluster: Cluster) -> list[str]:
    return sorted(pod["metadata"]["name"] for pod in cluster.pods("web"))


def test_a_policy_sees_its_pods_and_recommends(cluster: Cluster) -> None:
    """Observing, it samples every pod, and says what a refork would win."""
    cluster.apply(policy())
    until(lambda: cluster.get("rfp", "web").get("status", {}).get("pods", {}).get("sampled") == 3, what="all sampled")
    grow(cluster)
    until(lambda: "ReforkRecommended" in cluster.kubectl("get", "events"), what="a recommendation")
    assert "Observe" in cluster.kubectl("get", "rfp")


def test_an_annotated_pod_is_reforked(cluster: Cluster) -> None:
    """As the documentation says, and kubectl describe tells the story."""
    cluster.apply(policy())
    pod, value = names(cluster)[0], now()
    cluster.kubectl("annotate", "pod", pod, f"refork.dev/requestedAt={value}", "--overwrite")
    until(lambda: cluster.annotation("pod", pod, "handledAt") == value, what="an answer")
    assert cluster.annotation("pod", pod, "outcome").startswith("Succeeded")
    until(lambda: "ReforkSucceeded" in cluster.kubectl("describe", "pod", pod), what="the story")


def test_an_annotated_deployment_is_reforked_pod_by_pod(cluster: Cluster) -> None:
    """Every pod is reforked, and none is replaced."""
    before, value = names(cluster), now()
    cluster.kubectl("annotate", "deployment", "web", f"refork.dev/requestedAt={value}", "--overwrite")
    until(lambda: cluster.annotation("deployment", "web", "handledAt") == value, what="an answer", seconds=300)
    assert cluster.annotation("deployment", "web", "outcome") == "Succeeded: 3 of 3 pods"
    assert names(cluster) == before


def test_memory_is_won_back_by_itself(cluster: Cluster) -> None:
    """New pods fill their caches; the policy reforks them and counts what it won."""
    cluster.kubectl("rollout", "restart", "deployment/web")
    cluster.rolled_out("web")
    until(lambda: len(names(cluster)) == 3, what="the old pods gone")
    cluster.apply(policy(mode="Enforce"))
    done = cluster.get("rfp", "web").get("status", {}).get("reforks", {}).get("succeeded", 0)
    grow(cluster)
    until(
        lambda: cluster.get("rfp", "web")["status"]["reforks"]["succeeded"] >= done + 3,
        what="three reforks",
        seconds=300,
    )
    status = cluster.get("rfp", "web")["status"]
    assert status["reforks"]["unpaid"] == 0
    until(lambda: cluster.get("rfp", "web")["status"]["recommendations"], what="a recommendation of memory")


def test_the_other_operator_takes_over(cluster: Cluster) -> None:
    """The active one is deleted without grace; a request is answered within twenty seconds and its own time."""
    cluster.apply(policy())
    holder = cluster.get("lease", "refork-operator")["spec"]["holderIdentity"]
    active = next(pod for pod in cluster.pods("operator") if holder.startswith(pod["metadata"]["name"]))
    pod, value = names(cluster)[-1], now()
    cluster.kubectl("delete", "pod", active["metadata"]["name"], "--grace-period=0", "--force", "--wait=false")
    killed = time.monotonic()
    cluster.kubectl("annotate", "pod", pod, f"refork.dev/requestedAt={value}", "--overwrite")
    until(
        lambda: cluster.get("lease", "refork-operator")["spec"]["holderIdentity"] != holder,
        what="another holder",
        seconds=25,
    )
    assert time.monotonic() - killed < 25
    until(lambda: cluster.annotation("pod", pod, "handledAt") == value, what="an answer")
