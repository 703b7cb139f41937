"""``kubectl refork``: run by the real kubectl, from the PATH."""

from __future__ import annotations

import os
import stat
import subprocess
import sys

import pytest

from refork_operator import plugin
from tests.operator.conftest import ROOT, Box, until
from tests.operator.test_process import MIB, watching


@pytest.fixture
def plugged(box: Box, monkeypatch: pytest.MonkeyPatch) -> Box:
    """A cluster whose kubectl has the plugin on its PATH."""
    place = box.directory / "bin"
    place.mkdir()
    program = place / "kubectl-refork"
    paths = os.pathsep.join(str(ROOT / name) for name in ("server", "operator"))
    program.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path[:0] = {paths.split(os.pathsep)!r}\n"
        "from refork_operator.plugin import main\nmain()\n"
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{place}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("KUBECONFIG", str(box.admin))
    return box


def refork(box: Box, *words: str, check: bool = True) -> str:
    """Run ``kubectl refork`` (plugins come before kubectl's own flags, so the kubeconfig is in the environment)."""
    done = subprocess.run(["kubectl", "refork", *words], capture_output=True, text=True, timeout=60, check=False)
    assert not check or done.returncode == 0, done.stderr
    return done.stdout + ("" if check else done.stderr)


def test_now_reforks_a_deployment_and_waits(plugged: Box) -> None:
    """The outcome is printed, and every pod is reforked once."""
    pods = plugged.deployment("web", replicas=2)
    plugged.operator()
    watching(plugged, "deployments")
    assert "Succeeded: 2 of 2 pods" in refork(plugged, "now", "deploy/web", "--wait", "--timeout", "30")
    assert [pod.reforks for pod in pods] == [1, 1]


def test_status_and_top_show_what_the_policy_knows(plugged: Box) -> None:
    """Policies, their conditions and recommendations, and pods with the last outcome."""
    plugged.deployment("web", replicas=2, gained=[100 * MIB] * 4)
    selector = {"spec": {"selector": {"matchLabels": {"app": "web"}}}}
    plugged.api.patch("deployments", "web", selector)
    plugged.policy()
    plugged.operator()
    until(lambda: plugged.status().get("reforks", {}).get("succeeded") == 2 and plugged.status()["recommendations"])
    everything = refork(plugged, "status")
    assert "default/policy" in everything
    assert "Enforcing" in everything
    one = refork(plugged, "status", "policy/policy")
    assert "Degraded" in one
    assert "2048Mi -> " in one
    assert "Succeeded: generation 1" in refork(plugged, "status", "deploy/web", "-n", "default")
    assert "web-7d9f-0" in refork(plugged, "top", "--once")
    assert "web-7d9f-0" in refork(plugged, "top", "deploy/web", "--once")


@pytest.mark.parametrize("words", [("now", "web"), ("now", "cronjob/web"), ("status", "deploy/")])
def test_a_target_that_is_none_is_explained(plugged: Box, words: tuple[str, ...]) -> None:
    """The mistake is answered with an example."""
    assert "deploy/web" in refork(plugged, *words, check=False)


def test_what_kubectl_says_is_passed_on(plugged: Box) -> None:
    """An object that is not there is kubectl's error, in one line."""
    assert 'deployments "none" not found' in refork(plugged, "now", "deploy/none", check=False).replace(".apps", "")


def test_help_teaches_by_example(plugged: Box) -> None:
    """Each command is shown with a use."""
    assert "kubectl refork now deploy/web --wait" in refork(plugged, "--help")


@pytest.mark.parametrize(
    "words",
    [
        ("-n", "shop", "status"),
        ("status", "-n", "shop"),
        ("--namespace=shop", "status"),
        ("-n", "default", "status", "--namespace", "shop"),
        ("-A", "status"),
        ("--context", "fake", "-n", "shop", "status"),
    ],
)
def test_where_to_look_may_be_said_before_the_command_and_after_it(plugged: Box, words: tuple[str, ...]) -> None:
    """As with kubectl; what is said later wins."""
    plugged.policy(namespace="shop")
    assert "shop/policy" in refork(plugged, *words)


def test_a_kubeconfig_before_the_command_is_that_of_kubectl(plugged: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what is wrong with a context that is not there, kubectl says."""
    plugged.policy()
    monkeypatch.delenv("KUBECONFIG")
    assert "default/policy" in refork(plugged, "--kubeconfig", str(plugged.admin), "status", "policy", "policy")
    failed = refork(plugged, "--kubeconfig", str(plugged.admin), "--context", "none", "status", check=False)
    assert failed.startswith("error: ")  # the words are kubectl's, and differ from version to version
    assert "context" in failed
    assert "none" in failed


def test_pods_of_all_namespaces_are_told_apart(plugged: Box) -> None:
    """Two of one name are two lines, each with its own memory."""
    for namespace in ("shop", "bank"):
        plugged.pod("web-0", namespace=namespace, base=100 * MIB * (1 + (namespace == "bank")))
        plugged.policy(namespace=namespace, mode="Observe")
    plugged.operator()
    until(lambda: "bank/web-0" in (shown := refork(plugged, "top", "-A", "--once")) and "shop/web-0" in shown)


def test_a_waiting_request_that_was_replaced_is_given_up(plugged: Box) -> None:
    """Nobody waits half an hour for an answer that cannot come."""
    plugged.deployment("web", replicas=1)
    with subprocess.Popen(
        ["kubectl", "refork", "now", "deploy/web", "--wait"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as waiting:
        until(lambda: plugged.annotations("deployments", "web").get("refork.dev/requestedAt"))
        plugged.api.annotate("deployments", "web", "of somebody else")
        assert "somebody else" in waiting.communicate(timeout=30)[1]
    assert waiting.returncode == 1


def test_a_cluster_without_the_operator_is_named_as_that(plugged: Box) -> None:
    """A new user has not met the resource type."""
    del plugged.api.kinds["refork.dev", "reforkpolicies"]
    assert "is the operator installed" in refork(plugged, "status", check=False)


def test_whoever_has_read_enough_is_told_nothing_more(plugged: Box) -> None:
    """``| head`` is not answered with a traceback."""
    plugged.policy()
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(["kubectl", "refork", "status"], stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert done.stderr == b""


@pytest.mark.parametrize("words", [("top", "--interval", "-1"), ("now", "deploy/web", "--timeout", "soon")])
def test_a_time_that_is_none_is_explained(plugged: Box, words: tuple[str, ...]) -> None:
    """And not found out by sleeping."""
    assert "a number of seconds is needed" in refork(plugged, *words, check=False)


def test_every_selector_is_written_as_kubectl_takes_it() -> None:
    """Workloads may find their pods by more than equal labels."""
    expressions = [
        {"key": "tier", "operator": "In", "values": ["a", "b"]},
        {"key": "old", "operator": "NotIn", "values": ["yes"]},
        {"key": "app", "operator": "Exists"},
        {"key": "job", "operator": "DoesNotExist"},
    ]
    found = plugin.selector({"matchLabels": {"app": "web"}, "matchExpressions": expressions})
    assert found == "app=web,tier in (a,b),old notin (yes),app,!job"
