"""The CRD: what the API server lets in, and what people see of it."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from refork_operator import policy
from tests.operator.conftest import Box, until

MINIMAL: dict[str, Any] = {"selector": {"matchLabels": {"app": "web"}}}


def apply(box: Box, spec: dict[str, Any], *, check: bool = True) -> str:
    """Create a policy with the real kubectl."""
    manifest = {
        "apiVersion": "refork.dev/v1alpha1",
        "kind": "ReforkPolicy",
        "metadata": {"name": "policy"},
        "spec": spec,
    }
    return box.kubectl("create", "--validate=false", "-f", "-", stdin=yaml.safe_dump(manifest), check=check)


def test_a_selector_is_all_that_is_needed(box: Box) -> None:
    """Everything else has a default, and the whole is a policy that only observes."""
    apply(box, MINIMAL)
    found = policy.parse(box.api.get("reforkpolicies", "policy"))
    assert not found.enforce
    assert found.interval == 15.0
    assert found.pays.cooldown == 600.0
    assert found.pays.min_gain == 32 << 20
    assert [str(threshold) for threshold in found.pays.thresholds] == ["PredictedGain above 64 MiB"]
    assert found.control.port == "refork-control"


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ({"selector": {}}, "an empty selector"),
        ({"selector": {"matchExpressions": [{"key": "app", "operator": "In"}]}}, "need values"),
        ({"mode": "Maybe"}, 'supported values: "Observe", "Enforce"'),
        ({"interval": "100ms"}, "should match"),
        ({"interval": "2h"}, "between 1s and 1h"),
        ({"maxConcurrent": 0}, "greater than or equal to 1"),
        ({"maxConcurrent": "0%"}, "should match"),
        ({"triggers": [{"metric": "SharedRatio", "threshold": "64Mi"}]}, "take a percentage"),
        ({"triggers": [{"metric": "LimitShare", "threshold": 5}]}, "take a percentage"),
        ({"triggers": [{"metric": "PSS", "threshold": "lots"}]}, "should match"),
        ({"control": {"caSecretRef": {"name": "ca"}}}, "needs the scheme HTTPS"),
        ({"control": {"port": "Not_A_Port"}}, "should match"),
        ({"control": {"port": 70000}}, "less than or equal to 65535"),
        ({"schedule": {"windows": [{"start": "02:00", "end": "02:00"}]}}, "is none"),
        ({"schedule": {"windows": [{"start": "25:00", "end": "02:00"}]}}, "should match"),
        ({"schedule": {"windows": []}}, "should have at least 1 items"),
        ({"control": {"tokenSecretRef": {}}}, "spec.control.tokenSecretRef.name: Required value"),
        ({"interval": f"{'1' * 20}s"}, "may not be more than 20 bytes"),
        ({"triggers": [{"metric": "PSS", "threshold": 5}] * 17}, "must have at most 16 items"),
        ({"paused": "yes"}, "must be of type boolean"),
        ({"maxConcurrent": True}, "must be of type integer,string"),
        ({"payback": {"attempts": 0}}, "greater than or equal to 1"),
    ],
)
def test_what_makes_no_sense_is_refused_with_a_reason(box: Box, spec: dict[str, Any], sentence: str) -> None:
    """The API server says what is wrong before the operator ever sees it."""
    assert sentence in apply(box, MINIMAL | spec, check=False)


@pytest.mark.parametrize(
    "spec",
    [
        {"triggers": [{"metric": "SharedRatio", "threshold": "40%", "scope": "Worker", "sustainedFor": "1h30m"}]},
        {"triggers": [{"metric": "PSS", "threshold": 1073741824}, {"metric": "USS", "threshold": "1.5Gi"}]},
        {"triggers": []},
        {"mode": None, "control": {"port": None}},
        {"maxConcurrent": 3, "minGain": 0, "minAge": "0s", "paused": True},
        {"control": {"port": 9443, "scheme": "HTTPS", "caSecretRef": {"name": "ca"}, "serverName": "web"}},
        {"control": {"tokenSecretRef": {"name": "token", "key": "t"}}},
        {"schedule": {"timeZone": "Europe/Berlin", "windows": [{"days": ["Sat"], "start": "22:00", "end": "04:00"}]}},
        {"cooldown": {"pod": "1h", "policy": "30s"}, "payback": {"share": "80%", "attempts": 2}, "margin": "0%"},
    ],
)
def test_what_makes_sense_is_let_in_and_understood(box: Box, spec: dict[str, Any]) -> None:
    """Whatever the CRD accepts, the operator can read."""
    apply(box, MINIMAL | spec)
    policy.parse(box.api.get("reforkpolicies", "policy"))


def test_the_status_that_is_written_fits_its_schema(box: Box) -> None:
    """Nothing of it is pruned away by the API server."""
    box.deployment("web", replicas=2, gained=[200 << 20] * 4)
    box.pod("bad", behaviour="nonsense")
    box.policy()
    box.operator()
    until(lambda: box.status().get("reforks", {}).get("succeeded") == 2 and box.status()["recommendations"])
    until(lambda: box.condition("Degraded").get("status") == "True")
    sent = [request.body["status"] for request in box.api.asked(verb="patch", resource="reforkpolicies/status")]
    stored = box.status()
    assert sent[-1].keys() <= stored.keys()
    assert [set(item) for item in sent[-1]["details"]] == [set(item) for item in stored["details"]]
    assert [set(item) for item in sent[-1]["conditions"]] == [set(item) for item in stored["conditions"]]
    assert sent[-1]["recommendations"] == stored["recommendations"]


def test_kubectl_knows_the_short_name(box: Box) -> None:
    """``kubectl get rfp`` works."""
    apply(box, MINIMAL)
    assert "policy" in box.kubectl("get", "rfp")
