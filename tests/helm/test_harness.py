"""What the other tests of the charts rely on finds what it is there to find."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from kubernetes_validate import SchemaNotFoundError

from tests.helm import harness
from tests.helm.harness import OPERATOR, VERSIONS, Object, render

if TYPE_CHECKING:
    from collections.abc import Callable

POLICY: Object = {
    "apiVersion": "refork.dev/v1alpha1",
    "kind": "ReforkPolicy",
    "metadata": {"name": "web"},
    "spec": {"selector": {"matchLabels": {"app": "web"}}},
}


def changed(item: Object, path: str, value: Any) -> Object:
    """Return an object with another value at a path; numbers are places in lists."""
    copied = copy.deepcopy(item)
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    place: Any = copied
    for part in parents:
        place = place[part]
    place[last] = value
    return copied


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("Deployment", "spec.replicas", "2"),
        ("Deployment", "spec.replica", 2),
        ("Deployment", "spec.template.spec.containers.0.imagePulPolicy", "Always"),
        ("CustomResourceDefinition", "spec.versions.0.schema.openAPIV3Schema.typ", "object"),
        ("PodMonitor", "spec.podMetricsEndpoints.0.interval", "often"),
        ("PodMonitor", "spec.endpoints", []),
        ("PrometheusRule", "spec.groups.0.rules.0.alarm", "Bad"),
    ],
)
@pytest.mark.parametrize("version", [VERSIONS[0], VERSIONS[-1]])
def test_what_an_api_server_refuses_is_a_fault(kind: str, path: str, value: Any, version: str) -> None:
    """A type that is wrong, a field that is unknown."""
    item = render(OPERATOR, {"metrics": {"monitor": {"enabled": True}, "rules": {"enabled": True}}}).one(kind)
    assert not harness.faults(item, version=version)
    assert harness.faults(changed(item, path, value), version=version)


@pytest.mark.parametrize(
    ("path", "value"),
    [("spec.selector", {}), ("spec.selector.matchLabel", {"app": "web"}), ("spec.mode", "Always")],
)
def test_a_policy_is_checked_by_its_crd(path: str, value: Any) -> None:
    """By its schema and its rules, and nothing may be dropped."""
    assert not harness.faults(POLICY, version=VERSIONS[0])
    assert harness.faults(changed(POLICY, path, value), version=VERSIONS[0])


def test_a_kind_that_nobody_knows_is_an_error() -> None:
    """It is not passed over."""
    with pytest.raises(SchemaNotFoundError):
        harness.faults(changed(POLICY, "kind", "Policy"), version=VERSIONS[0])


def loosened(change: Callable[[Object], None]) -> list[str]:
    """Return what is found in the operator's pod after a change."""
    (pod,) = [copy.deepcopy(pod) for label, pod in harness.pods(render(OPERATOR).objects) if "Deployment" in label]
    assert not harness.unrestricted(pod)
    change(pod["spec"])
    return harness.unrestricted(pod)


@pytest.mark.parametrize(
    "change",
    [
        lambda spec: spec.update(hostPID=True),
        lambda spec: spec["securityContext"].pop("runAsNonRoot"),
        lambda spec: spec["securityContext"].pop("seccompProfile"),
        lambda spec: spec["securityContext"].update(runAsUser=0),
        lambda spec: spec["volumes"].append({"name": "root", "hostPath": {"path": "/"}}),
        lambda spec: spec.update(initContainers=[{"name": "loose"}]),
        lambda spec: spec["containers"][0]["securityContext"].pop("readOnlyRootFilesystem"),
        lambda spec: spec["containers"][0]["securityContext"].pop("allowPrivilegeEscalation"),
        lambda spec: spec["containers"][0]["securityContext"].pop("capabilities"),
        lambda spec: spec["containers"][0]["securityContext"]["capabilities"].update(add=["SYS_PTRACE"]),
        lambda spec: spec["containers"][0]["securityContext"].update(privileged=True),
        lambda spec: spec["containers"][0]["ports"][0].update(hostPort=80),
    ],
)
def test_every_loosening_is_found(change: Callable[[Object], None]) -> None:
    """Each part of the restricted standard is looked at, in every container."""
    assert loosened(change)


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("Service", "spec.selector", {"app": "other"}),
        ("Service", "spec.ports.0.targetPort", "http"),
        ("Deployment", "spec.selector.matchLabels", {"app": "other"}),
        ("PodDisruptionBudget", "spec.selector.matchLabels", {}),
        ("NetworkPolicy", "spec.ingress.0.ports.0.port", 9090),
        ("PodMonitor", "spec.podMetricsEndpoints.0.port", "http"),
    ],
)
def test_what_does_not_meet_is_found(kind: str, path: str, value: Any) -> None:
    """A selector that selects nothing, a port that is not there."""
    objects = render(OPERATOR, {"metrics": {"monitor": {"enabled": True}}, "networkPolicy": {"enabled": True}}).objects
    assert not harness.misses(objects)
    assert harness.misses(tuple(changed(item, path, value) if item["kind"] == kind else item for item in objects))


def test_a_name_that_is_too_long_is_found() -> None:
    """Of an object, or in a label of a pod."""
    (item,) = render(OPERATOR).of("Deployment")
    assert harness.too_long((changed(item, "metadata.name", "x" * 64),)) == ["x" * 64]
    assert harness.too_long((changed(item, "spec.template.metadata.labels.team", "x" * 64),)) == ["x" * 64]


def test_a_key_that_stands_twice_is_an_error() -> None:
    """The second would win unseen."""
    with pytest.raises(yaml.YAMLError, match="twice"):
        harness.objects_of("a: 1\nb: {c: 1, c: 2}\n")


def test_values_that_are_accepted_are_no_refusal() -> None:
    """A test of refusals fails when nothing is refused."""
    with pytest.raises(AssertionError, match="accepted"):
        harness.refusal(OPERATOR, {})
