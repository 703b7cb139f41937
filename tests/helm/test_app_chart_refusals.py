"""What the chart of applications refuses, and that it says what would have been right."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import helm_python
import pytest
import yaml

from tests.helm import harness
from tests.helm.app_chart import ACCOUNT, EVERYTHING, EXPORTER, IMAGE, TLS, TOKEN, WSGI, with_value

if TYPE_CHECKING:
    from tests.helm.harness import Object

SCHEMA = json.loads((harness.APP / "values.schema.json").read_text())
DEFAULTS = yaml.safe_load((harness.APP / "values.yaml").read_text())
CRD = yaml.safe_load((harness.OPERATOR / "files/reforkpolicy-crd.yaml").read_text())

CONTRADICTIONS: dict[str, tuple[Object, str]] = {
    "no image": ({"app": "app:app"}, "set image.repository"),
    "no tag": ({"image": {"repository": "shop"}, "app": "app:app"}, "set image.tag or image.digest"),
    "no application": ({"image": IMAGE}, "set app to MODULE:CALLABLE"),
    "control in the clear": (
        {**WSGI, "control": {"auth": "Token"}},
        "control.tls.secretName, or control.plaintext=true",
    ),
    "plaintext with TLS": ({**WSGI, "control": {**TOKEN, "tls": TLS}}, "one or the other"),
    "a policy that nobody can carry out": ({**WSGI, "policy": {"enabled": True}}, "set control.auth"),
    "a certificate without a name": (
        {**WSGI, "control": {"auth": "Token", "tls": {"secretName": "t"}}, "policy": {"enabled": True}},
        "control.tls.serverName",
    ),
    "keys without an issuer": ({**WSGI, "control": {**ACCOUNT, "keys": {"jwks": "/keys"}}}, "go together"),
    "an exporter that is commanded": ({"image": IMAGE, "exporter": EXPORTER, "control": TOKEN}, "control.auth to None"),
    "an exporter with a policy": (
        {"image": IMAGE, "exporter": EXPORTER, "policy": {"enabled": True}},
        "policy.enabled",
    ),
    "workers said twice": ({**WSGI, "extraArgs": ["--workers=8"]}, "is what the value workers is for"),
    "a grace period of its own": ({**WSGI, "extraArgs": ["--graceful-timeout=8"]}, "the value gracefulTimeout is for"),
    "another metrics port": ({**WSGI, "extraArgs": ["--metrics-bind=:1"]}, "come to port 9090"),
    "another door": ({**WSGI, "extraArgs": ["--control-plaintext"]}, "values under control"),
    "workers in the configuration too": ({**WSGI, "config": "workers = 8\n"}, "config sets workers"),
    "a drain in the configuration": ({**WSGI, "config": "graceful_timeout=8\n"}, "config sets graceful_timeout"),
    "the port of the probes": ({**WSGI, "bind": "[::]:9090"}, "probes and scrapes come to port 9090"),
    "the port of the operator": ({**WSGI, "bind": ":9091", "control": TOKEN}, "the operator comes to port 9091"),
    "no port": ({**WSGI, "bind": ":0"}, "no port between 1 and 65535"),
    "a port that is none": ({**WSGI, "bind": ":65536"}, "no port between 1 and 65535"),
    "an exporter that nobody scrapes": (
        {"image": IMAGE, "exporter": {**EXPORTER, "extraArgs": ["--bind=:1"]}},
        "scrapes come to port 9090",
    ),
    "a certificate for no host": (
        {**WSGI, "ingress": {"enabled": True, "tlsSecretName": "shop-web-tls"}},
        "set the host name",
    ),
    "a rollout that cannot move": (
        {**WSGI, "strategy": {"rollingUpdate": {"maxSurge": "0%", "maxUnavailable": 0}}},
        "one of them has to be more",
    ),
    "autoscaling of nothing": ({**WSGI, "autoscaling": {"enabled": True}}, "set resources.requests.cpu"),
    "autoscaling backwards": (
        {**EVERYTHING, "autoscaling": {"enabled": True, "minReplicas": 5, "maxReplicas": 4}},
        "minReplicas (5) exceeds maxReplicas (4)",
    ),
}

WRONG: dict[str, Any] = {
    "app": "shop wsgi",
    "autoscaling.minReplicas": 0,
    "bind": "8000",
    "config": {"workers": 8},
    "control.auth": "Password",
    "control.keys.jwks": "http://keys.example.org",
    "control.operator.namespace": "Refork System",
    "control.token.key": "",
    "env": {"COLOUR": "green"},
    "exporter.app.command": "gunicorn",
    "exporter.app.readinessPath": "health",
    "exporter.extraArgs": ["-i"],
    "extraArgs": ["-w", "4"],
    "gracefulTimeout": 0,
    "image.digest": "sha256:short",
    "image.pullPolicy": "always",
    "image.tag": 1.2,
    "ingress.host": "https://shop",
    "podAnnotations": {"number": 1},
    "podDisruptionBudget.maxUnavailable": "half",
    "podLabels": {"app.kubernetes.io/name": "other"},
    "podMonitor.interval": 15,
    "policy.spec.mode": "enforce",
    "policy.spec.triggers": [{"metric": "PSS"}],
    "preStopSeconds": 0,
    "replicas": "2",
    "resources.limit": {"memory": "1Gi"},
    "service.port": 0,
    "spawnTimeout": "1m",
    "strategy.type": "Rolling",
    "threads": 0,
    "workers": 1025,
}
"""A value of the wrong kind for a path."""


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_contradictions_are_refused_with_the_way_out(case: str) -> None:
    """What the schema cannot say is refused in a sentence that names what to set."""
    values, words = CONTRADICTIONS[case]
    assert words in harness.refusal(harness.APP, values)


@pytest.mark.parametrize("name", ["shop.v2", "1shop"])
def test_a_release_that_no_service_can_be_named_like_is_refused(name: str) -> None:
    """Helm allows more names of releases than Kubernetes does of Services, which would fail half-way."""
    with pytest.raises(helm_python.HelmError, match="a letter first"):
        harness.render(harness.APP, WSGI, name=name)


@pytest.mark.parametrize("path", WRONG)
def test_wrong_values_are_refused(path: str) -> None:
    """The schema refuses a value of the wrong kind, and names it."""
    message = harness.refusal(harness.APP, with_value(WSGI, path, WRONG[path]))
    assert path.rsplit(".", maxsplit=1)[-1] in message


def test_no_level_of_the_schema_is_open() -> None:
    """A mistyped name is refused, except where Helm or Kubernetes define what may stand there."""
    opened = {"properties.global", "definitions.kubernetes", "definitions.named"}
    assert set(harness.open_levels(SCHEMA)) == opened


@pytest.mark.parametrize("path", ["typo", "control.typo", "exporter.app.typo", "policy.spec.typo", "resources.typo"])
def test_unknown_values_are_refused_by_name(path: str) -> None:
    """Helm says which name it does not know."""
    assert "typo" in harness.refusal(harness.APP, with_value(WSGI, path, "x"))


def test_schema_and_values_know_the_same_names() -> None:
    """No value that the schema lacks, and none that has no default, except where a type is Kubernetes' own."""
    kubernetes = (
        "policy.spec.",
        "resources.",
        "exporter.resources.",
        "tmp.",
        "affinity.",
        "strategy.",
        "autoscaling.behavior.",
    )

    def own(names: set[str]) -> set[str]:
        return {name for name in names if not name.startswith(kubernetes)} - {"global"}

    assert own(harness.names(DEFAULTS, SCHEMA)) == own(harness.declared(SCHEMA))


def test_the_table_of_values_is_written_from_the_values() -> None:
    """After a change of values.yaml: python helm/readme.py."""
    readme = harness.script("helm/readme.py")
    assert (harness.APP / "README.md").read_text() == readme.page(harness.APP)


def test_the_policy_of_the_values_is_that_of_the_crd() -> None:
    """The schema has every field of a policy's spec as the CRD has it, except those that the chart fills in."""
    spec = CRD["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    wanted = as_json_schema({**spec, "required": []})
    for filled in ("selector", "control"):
        del wanted["properties"][filled]
    assert SCHEMA["properties"]["policy"]["properties"]["spec"] == wanted


def as_json_schema(schema: Object) -> Object:
    """Say in JSON Schema, strictly, what a CRD's schema says. CEL rules are left to the API server."""
    kept = ("type", "enum", "minimum", "maximum", "minLength", "maxLength", "pattern", "minItems", "maxItems")
    found = {key: schema[key] for key in kept if key in schema}
    if schema.get("required"):
        found["required"] = schema["required"]
    if schema.get("x-kubernetes-int-or-string"):
        found["type"] = ["integer", "string"]
    if "properties" in schema:
        found["additionalProperties"] = False
        found["properties"] = {name: as_json_schema(inner) for name, inner in schema["properties"].items()}
    if "items" in schema:
        found["items"] = as_json_schema(schema["items"])
    return found
