"""The operator as a process, against an API server and pods: what its users see."""

from __future__ import annotations

import base64
import os
from datetime import UTC, datetime

import pytest
import yaml

from tests.helm import harness
from tests.operator.conftest import ROOT, Box, account, until

MIB = 1 << 20


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def watching(box: Box, resource: str) -> None:
    """Wait until the operator watches a resource."""
    until(lambda: box.api.count(verb="watch", resource=resource, status=200), what=f"watching {resource}")


def test_memory_that_workers_gained_is_won_back(box: Box) -> None:
    """A policy with a passed trigger reforks its pods, and says what that won."""
    pods = box.deployment("web", replicas=3, gained=[100 * MIB] * 4)
    box.policy()
    operator = box.operator()
    until(lambda: all(pod.generation == 1 for pod in pods), what="every pod reforked")
    until(lambda: box.status().get("reforks", {}).get("succeeded") == 3 and not box.status()["pods"]["reforking"])
    assert [pod.reforks for pod in pods] == [1, 1, 1]
    assert box.pods.most_reforking <= 2
    status = box.status()
    assert status["pods"] == {"matched": 3, "ready": 3, "sampled": 3, "reforking": 0, "degraded": 0}
    assert status["reforks"]["realisedGain"] == "900Mi"
    assert status["lastReforkTime"]
    assert box.condition("Ready")["reason"] == "Enforcing"
    assert box.outcome("pods", "web-7d9f-0") == "Succeeded: generation 1, won 300Mi of 300Mi predicted"
    until(lambda: box.status()["recommendations"])
    assert box.status()["recommendations"][0]["currentRequest"] == "2048Mi"
    assert operator.metric("refork_operator_reforks_total", outcome="Succeeded") == 3
    assert operator.stop() == 0


def test_a_pod_is_reforked_on_request(box: Box) -> None:
    """Annotating a pod is enough, with no policy anywhere, and events tell the story."""
    (pod, other) = box.deployment("web", replicas=2)
    box.operator()
    watching(box, "pods")
    value = now()
    box.kubectl("annotate", "pod", "web-7d9f-0", f"refork.dev/requestedAt={value}", "--overwrite")
    until(lambda: box.annotations("pods", "web-7d9f-0").get("refork.dev/handledAt") == value)
    assert (pod.reforks, other.reforks) == (1, 0)
    assert box.outcome("pods", "web-7d9f-0").startswith("Succeeded")
    until(lambda: box.events("ReforkSucceeded"))
    described = box.kubectl("describe", "pod", "web-7d9f-0")
    assert "ReforkStarted" in described
    assert "ReforkSucceeded" in described


def test_its_user_needs_no_name(box: Box) -> None:
    """In an image it is a number that stands in no passwd file and in no environment."""
    (box.directory / "sitecustomize.py").write_text("import pwd\npwd.getpwuid = {}.__getitem__\n")
    nameless = dict.fromkeys(("LOGNAME", "USER", "LNAME", "USERNAME"), "")
    paths = os.pathsep.join(map(str, (box.directory, ROOT / "server", ROOT / "operator")))
    operator = box.operator(env={**nameless, "PYTHONPATH": paths})
    watching(box, "pods")
    assert operator.stop() == 0


def test_every_changed_value_is_one_request(box: Box) -> None:
    """A second value asks again, the same value does not."""
    (pod,) = box.deployment("web", replicas=1)
    operator = box.operator("--no-leader-elect")
    watching(box, "pods")
    for number, value in enumerate(["first", "second"], start=1):
        box.api.annotate("pods", "web-7d9f-0", value)
        until(lambda value=value: box.annotations("pods", "web-7d9f-0").get("refork.dev/handledAt") == value)
        assert pod.reforks == number
    box.api.annotate("pods", "web-7d9f-0", "second")
    operator.kill()
    box.operator("--no-leader-elect")
    watches = box.api.count(verb="watch", resource="pods", status=200)
    until(lambda: box.api.count(verb="watch", resource="pods", status=200) > watches)
    box.api.annotate("pods", "web-7d9f-0", "third")
    until(lambda: pod.reforks == 3)


def test_a_deployment_is_reforked_one_pod_after_the_other(box: Box) -> None:
    """Annotating a workload reforks each of its pods once, never two at a time."""
    pods = box.deployment("web", replicas=4)
    box.operator()
    watching(box, "deployments")
    box.kubectl("annotate", "deployment", "web", f"refork.dev/requestedAt={now()}")
    until(lambda: box.outcome("deployments", "web"))
    assert box.outcome("deployments", "web") == "Succeeded: 4 of 4 pods"
    assert [pod.reforks for pod in pods] == [1, 1, 1, 1]
    assert box.pods.most_reforking == 1


@pytest.mark.parametrize("kind", ["StatefulSet", "DaemonSet"])
def test_other_workloads_hear_requests_too(box: Box, kind: str) -> None:
    """StatefulSets and DaemonSets are asked like Deployments."""
    pods = box.deployment("web", replicas=2, kind=kind)
    box.operator()
    plural = f"{kind.lower()}s"
    watching(box, plural)
    box.api.annotate(plural, "web", now())
    until(lambda: box.outcome(plural, "web").startswith("Succeeded: 2 of 2"))
    assert [pod.reforks for pod in pods] == [1, 1]


def test_values_that_were_copied_ask_for_nothing(box: Box) -> None:
    """What a pod was born with is no request: from its template, or older than itself."""
    (pod,) = box.deployment("web", replicas=1)
    template = {"spec": {"template": {"metadata": {"annotations": {"refork.dev/requestedAt": "from the template"}}}}}
    box.api.patch("deployments", "web", template)
    box.pod("copied", kind="Deployment", annotations={"refork.dev/requestedAt": "from the template"})
    box.pod("old", annotations={"refork.dev/requestedAt": "2025-12-31T00:00:00Z"})
    box.operator()
    watching(box, "deployments")
    box.api.annotate("pods", "web-7d9f-0", now())
    until(lambda: pod.reforks == 1)
    assert sum(fake.reforks for fake in box.pods.pods.values()) == 1


def test_a_paused_pod_is_kept_out(box: Box) -> None:
    """A trigger does nothing to it, and a request is answered with a refusal."""
    quiet, other = box.deployment("web", replicas=2, gained=[100 * MIB] * 4)
    box.api.annotate("pods", "web-7d9f-0", "true", key="refork.dev/paused")
    box.policy()
    box.operator()
    until(lambda: other.reforks == 1)
    box.api.annotate("pods", "web-7d9f-0", now())
    until(lambda: box.outcome("pods", "web-7d9f-0").startswith("Refused"))
    assert quiet.reforks == 0
    until(lambda: any(d.get("reason") == "Paused" for d in box.status()["details"]))


def test_a_policy_that_observes_only_recommends(box: Box) -> None:
    """Mode Observe commands nothing and says what it would do."""
    (pod, _) = box.deployment("web", replicas=2, gained=[100 * MIB] * 4)
    box.policy(mode="Observe")
    box.operator()
    until(lambda: box.events("ReforkRecommended"))
    until(lambda: {item.get("reason") for item in box.status().get("details", [])} == {"Observing"})
    assert box.condition("Ready")["reason"] == "Observing"
    assert not pod.commands


def test_a_dry_run_writes_nothing_but_the_lease(box: Box) -> None:
    """Everything is decided, nothing is done."""
    (pod, _) = box.deployment("web", replicas=2, gained=[100 * MIB] * 4)
    box.policy()
    operator = box.operator("--dry-run")
    operator.says("would refork pod=default/web-7d9f")
    assert not pod.commands
    written = [request for request in box.api.asked(who="operator") if request.verb in ("patch", "create", "update")]
    assert {request.resource for request in written} <= {"leases", "events"}


def test_reforks_that_do_not_pay_are_given_up(box: Box) -> None:
    """After three that won nothing, a pod is left alone, and the policy says so."""
    (pod,) = box.deployment("web", replicas=1, gained=[100 * MIB] * 4, pays=False, refork_seconds=0.1)
    box.policy(
        cooldown={"pod": "1s"}, triggers=[{"metric": "PredictedGain", "threshold": "64Mi", "sustainedFor": "0s"}]
    )
    box.operator()
    until(lambda: box.condition("Paying").get("reason") == "DoesNotPay", seconds=60)
    assert pod.reforks == 3
    assert box.status()["reforks"]["unpaid"] == 3
    until(lambda: box.events("ReforkDoesNotPay"))


def test_one_pod_that_misbehaves_costs_the_others_nothing(box: Box) -> None:
    """Nonsense, floods, silence and absurd sizes show as Degraded; the others go on."""
    ways = ["nonsense", "absurd", "huge", "slow", "dripping", "redirect", "error", "deep"]
    for way in ways:
        box.pod(f"bad-{way}", behaviour=way)
    good = box.deployment("web", replicas=2, gained=[100 * MIB] * 4)
    box.policy()
    operator = box.operator()
    until(lambda: all(pod.reforks for pod in good))
    until(lambda: box.status().get("pods", {}).get("degraded") == len(ways))
    assert box.condition("Degraded")["status"] == "True"
    reasons = {item["name"]: item["reason"] for item in box.status()["details"] if item["name"].startswith("bad")}
    assert reasons["bad-huge"] == "TooLarge"
    assert reasons["bad-slow"] == reasons["bad-dripping"] == "TimedOut"
    assert reasons["bad-error"] == reasons["bad-deep"]
    assert reasons["bad-absurd"] == reasons["bad-nonsense"] == "Nonsense"
    assert operator.metric("refork_operator_polls_total", result="TooLarge") >= 1


def test_a_pod_that_is_not_ready_takes_a_place_in_the_budget(box: Box) -> None:
    """Whoever made it so: nothing is disturbed beyond the budget."""
    pods = box.deployment("web", replicas=3, gained=[100 * MIB] * 4)
    box.pod("sick", ready=False, kind="Deployment")
    box.policy(maxConcurrent=1)
    box.operator()
    until(lambda: any(item.get("reason") == "Budget" for item in box.status().get("details", [])))
    assert not any(pod.reforks for pod in pods)
    box.api.patch("pods", "sick", {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}, status=True)
    until(lambda: all(pod.reforks == 1 for pod in pods))
    assert box.pods.most_reforking == 1


def test_a_token_from_a_secret_is_shown_and_read_again_when_it_is_refused(box: Box) -> None:
    """A rotated token is picked up with the first answer that refuses the old one."""
    (pod,) = box.deployment("web", replicas=1, token="first")
    encoded = {word: base64.b64encode(word.encode()).decode() for word in ("first", "second")}
    box.api.create("secrets", {"metadata": {"name": "control"}, "data": {"token": encoded["first"]}})
    box.policy(control={"port": "refork-control", "tokenSecretRef": {"name": "control"}})
    box.operator()
    until(lambda: box.status().get("pods", {}).get("sampled") == 1)
    box.api.patch("secrets", "control", {"data": {"token": encoded["second"]}})
    pod.token = "second"
    asked = len(pod.polls)
    box.api.annotate("pods", "web-7d9f-0", now())
    until(lambda: pod.reforks == 1)
    assert len(pod.polls) >= asked


def test_broken_watches_and_expired_versions_lose_nothing(box: Box) -> None:
    """Connections that break, and histories that were compacted, are what a cluster is like."""
    (pod,) = box.deployment("web", replicas=1)
    gone = box.pod("gone")
    box.policy()
    operator = box.operator()
    until(lambda: box.status().get("pods", {}).get("matched") == 2)
    box.api.break_watches()
    box.api.forget("pods", "gone")
    until(lambda: box.status()["pods"]["matched"] == 1, what="the pod that vanished unseen is forgotten")
    box.api.compact()
    box.api.break_watches()
    box.api.annotate("pods", "web-7d9f-0", now())
    until(lambda: pod.reforks == 1)
    assert not gone.reforks
    assert operator.metric("refork_operator_watch_restarts_total", resource="pods") >= 1


def test_an_api_server_that_throttles_is_asked_again(box: Box) -> None:
    """429 on writes delays a refork; nothing is lost, and nothing is done twice."""
    pods = box.deployment("web", replicas=2, gained=[100 * MIB] * 4)
    box.policy()
    box.api.misbehave(status=429, times=3, only=lambda verb, resource: verb == "patch")
    operator = box.operator()
    until(lambda: all(box.outcome("pods", f"web-7d9f-{n}").startswith("Succeeded") for n in (0, 1)))
    assert [pod.reforks for pod in pods] == [1, 1]
    assert operator.metric("refork_operator_api_errors_total", code="429") == 3


def test_one_namespace_needs_only_a_role(box: Box) -> None:
    """With --namespaces, what the chart grants in one namespace suffices: no request is refused."""
    release = harness.render(harness.OPERATOR, {"watch": {"namespaces": ["default"]}})
    box.api.accounts["limited"] = account("limited", release)
    assert not box.api.accounts["limited"].rules
    box.kubeconfig.write_text(yaml.safe_dump(box.api.kubeconfig("limited")))
    pods = box.deployment("web", replicas=2, gained=[100 * MIB] * 4)
    box.policy()
    box.operator("--namespaces", "default")
    until(lambda: all(pod.reforks == 1 for pod in pods))
    assert not box.api.asked(status=403)


def test_it_waits_for_its_crd(box: Box) -> None:
    """Started before the CRD is there, it is not ready, says why, and begins when it comes."""
    crd = box.api.kinds.pop(("refork.dev", "reforkpolicies"))
    (pod, _) = box.deployment("web", replicas=2, gained=[100 * MIB] * 4)
    operator = box.operator()
    operator.says("is the CustomResourceDefinition")
    box.api.kinds["refork.dev", "reforkpolicies"] = crd
    box.policy()
    until(lambda: pod.reforks == 1)


def test_a_policy_of_another_version_says_that_it_is_not_understood(box: Box) -> None:
    """What the CRD let through but cannot be read is the policy's own trouble."""
    box.policy(schedule={"timeZone": "Atlantis/Poseidonis", "windows": [{"start": "01:00", "end": "02:00"}]})
    pods = box.deployment("web", replicas=2, gained=[100 * MIB] * 4)
    box.policy("good")
    box.operator()
    until(lambda: box.condition("Ready").get("reason") == "Invalid")
    assert "Atlantis" in box.condition("Ready")["message"]
    until(lambda: all(pod.reforks == 1 for pod in pods))


def test_what_keeps_it_from_starting_is_one_line(box: Box) -> None:
    """An address that is taken, a kubeconfig that is none: no traceback, and exit status 1."""
    taken = box.operator("--listen", box.api.url.removeprefix("https://"))
    taken.says("not listening address=127.0.0.1:")
    box.kubeconfig.write_text("clusters: [")
    broken = box.operator()
    broken.says("no cluster error=.* is no kubeconfig")
    for operator in (taken, broken):
        assert operator.process.wait(10) == 1
        assert not any("Traceback" in line for line in operator.lines)
