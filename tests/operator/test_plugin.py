"""``kubectl refork``: run by the real kubectl, from the PATH."""

from __future__ import annotations

import os
import stat
import subprocess
import sys

import pytest

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
