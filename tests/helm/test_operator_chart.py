"""The operator's chart: what it becomes with which values, and what it refuses."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import helm_python
import pytest
import yaml

from refork_operator import settings
from tests.fakes.apiserver import ApiServer
from tests.helm import harness
from tests.helm.harness import OPERATOR, VERSIONS, Object, Release, render

if TYPE_CHECKING:
    from pathlib import Path

EVERYTHING: Object = {
    "replicas": 3,
    "image": {"digest": "sha256:" + "0" * 64, "pullPolicy": "Always", "pullSecrets": ["registry"]},
    "fullnameOverride": "watcher",
    "watch": {
        "namespaces": ["shop", "blog"],
        "podSelector": "refork.dev/watched=true,tier in (web, api)".replace(" ", ""),
    },
    "dryRun": True,
    "rbac": {"secrets": {"names": ["refork-control", "authority"]}},
    "serviceAccount": {"name": "watcher", "annotations": {"example.org/role": "watcher"}},
    "lease": {"duration": 30, "renewDeadline": 20, "retry": 4},
    "poll": {"concurrency": 128, "timeout": 2, "bodyLimit": 4194304},
    "operationTimeout": 1800,
    "settle": 5,
    "statusInterval": 30,
    "log": {"level": "DEBUG", "format": "text"},
    "extraArgs": ["--listen=[::]:8080"],
    "extraEnv": [{"name": "TZ", "value": "Europe/Berlin"}],
    "resources": {"requests": {"cpu": 1, "memory": "1Gi"}, "limits": {"memory": "1Gi", "cpu": "1500m"}},
    "runAsUser": 1000,
    "priorityClassName": "system-cluster-critical",
    "nodeSelector": {"example.org/pool": "system"},
    "tolerations": [{"key": "dedicated", "operator": "Equal", "value": "system", "effect": "NoSchedule"}],
    "affinity": {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": [{"key": "kubernetes.io/arch", "operator": "Exists"}]}]
            }
        }
    },
    "topologySpreadConstraints": [
        {
            "topologyKey": "kubernetes.io/hostname",
            "maxSkew": 1,
            "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": {"matchLabels": {"app.kubernetes.io/instance": "refork"}},
        }
    ],
    "podLabels": {"team": "platform"},
    "podAnnotations": {"example.org/note": "operator"},
    "podDisruptionBudget": {"maxUnavailable": "50%"},
    "networkPolicy": {
        "enabled": True,
        "metricsFrom": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}],
        "apiServerCIDRs": ["10.0.0.1/32", "fd00::/8"],
        "apiServerPorts": [6443],
        "controlPorts": [9091, "refork-control"],
    },
    "metrics": {
        "monitor": {"enabled": True, "kind": "ServiceMonitor", "interval": "15s", "labels": {"release": "prometheus"}},
        "rules": {"enabled": True, "labels": {"release": "prometheus"}},
        "dashboards": {"enabled": True, "labels": {"grafana": "yes"}, "annotations": {"grafana_folder": "refork"}},
    },
}
NOTHING: Object = {
    "replicas": 1,
    "crds": {"enabled": False},
    "identity": False,
    "rbac": {"create": False, "aggregate": False},
    "serviceAccount": {"create": False, "name": "existing"},
    "runAsUser": None,
    "nodeSelector": None,
    "podDisruptionBudget": {"enabled": False},
}
VARIANTS: dict[str, Object] = {
    "as it is": {},
    "everything": EVERYTHING,
    "nothing": NOTHING,
    "two namespaces": {"watch": {"namespaces": ["shop", "blog"]}},
    "no secrets": {"rbac": {"secrets": {"enabled": False}}},
    "named secrets": {"rbac": {"secrets": {"names": ["refork-control"]}}},
    "a CRD that goes": {"crds": {"keep": False}},
    "a network policy": {"networkPolicy": {"enabled": True}},
    "a network policy for two namespaces": {"networkPolicy": {"enabled": True}, "watch": {"namespaces": ["a", "b"]}},
    "a PodMonitor": {"metrics": {"monitor": {"enabled": True}}},
    "rules and dashboards": {"metrics": {"rules": {"enabled": True}, "dashboards": {"enabled": True}}},
    "part of another chart": {"global": {"imageRegistry": "registry.example.org"}},
}
REFUSED: list[tuple[Object, str]] = [
    ({"replica": 3}, "replica"),
    ({"replicas": 0}, "replicas"),
    ({"replicas": "2"}, "replicas"),
    ({"image": {"repository": "https://ghcr.io/refork"}}, "repository"),
    ({"image": {"repository": "Refork"}}, "repository"),
    ({"image": {"repository": ""}}, "repository"),
    ({"image": {"tag": 1.0}}, "tag"),
    ({"image": {"tag": "a tag"}}, "tag"),
    ({"image": {"digest": "0" * 64}}, "digest"),
    ({"image": {"pullPolicy": "Sometimes"}}, "pullPolicy"),
    ({"image": {"pullSecrets": [{"name": "registry"}]}}, "pullSecrets"),
    ({"fullnameOverride": "Refork_Operator"}, "fullnameOverride"),
    ({"fullnameOverride": "x" * 64}, "fullnameOverride"),
    ({"fullnameOverride": "1-operator"}, "fullnameOverride"),
    ({"crds": {"install": True}}, "install"),
    ({"crds": {"enabled": "yes"}}, "enabled"),
    ({"watch": {"namespaces": "shop"}}, "namespaces"),
    ({"watch": {"namespaces": ["shop", "shop"]}}, "namespaces"),
    ({"watch": {"namespaces": ["shop,blog"]}}, "namespaces"),
    ({"watch": {"namespace": "shop"}}, "namespace"),
    ({"watch": {"podSelector": "a = b"}}, "podSelector"),
    ({"dryRun": "true"}, "dryRun"),
    ({"identity": {"audience": "other"}}, "identity"),
    ({"rbac": {"secrets": {"names": ["*"]}}}, "names"),
    ({"rbac": {"rules": []}}, "rules"),
    ({"serviceAccount": {"create": False}}, "name"),
    ({"serviceAccount": {"annotations": {"role": 1}}}, "role"),
    ({"lease": {"duration": 0}}, "duration"),
    ({"lease": {"duration": 10.5}}, "duration"),
    ({"lease": {"duration": 7}}, "lease.retry < lease.renewDeadline < lease.duration"),
    ({"lease": {"retry": 7}}, "lease.retry < lease.renewDeadline < lease.duration"),
    ({"poll": {"concurrency": 0}}, "concurrency"),
    ({"poll": {"timeout": "5s"}}, "timeout"),
    ({"poll": {"bodyLimit": 1}}, "bodyLimit"),
    ({"log": {"level": "TRACE"}}, "level"),
    ({"log": {"format": "logfmt"}}, "format"),
    ({"extraArgs": "--dry-run"}, "extraArgs"),
    ({"extraEnv": [{"value": "nameless"}]}, "name"),
    ({"extraEnv": [{"name": "POD_NAME", "value": "forged"}]}, "name"),
    ({"resources": {"limits": {"memory": "256 MB"}}}, "memory"),
    ({"resources": {"memory": "256Mi"}}, "memory"),
    ({"runAsUser": 0}, "runAsUser"),
    ({"runAsUser": "nobody"}, "runAsUser"),
    ({"nodeSelector": {"kubernetes.io/os": True}}, "os"),
    ({"tolerations": [{"effect": "Never"}]}, "effect"),
    ({"affinity": {"nodeAfinity": {}}}, "nodeAfinity"),
    ({"topologySpreadConstraints": [{"topologyKey": "zone"}]}, "topologySpreadConstraints"),
    ({"podLabels": {"app.kubernetes.io/name": "other"}}, "podLabels"),
    ({"podLabels": {"team": "a team"}}, "team"),
    ({"podSecurityContext": {"runAsNonRoot": False}}, "podSecurityContext"),
    ({"podDisruptionBudget": {"maxUnavailable": 0}}, "maxUnavailable"),
    ({"podDisruptionBudget": {"maxUnavailable": "0%"}}, "maxUnavailable"),
    ({"podDisruptionBudget": {"minAvailable": 1}}, "minAvailable"),
    ({"networkPolicy": {"apiServerCIDRs": ["10.0.0.1"]}}, "apiServerCIDRs"),
    ({"networkPolicy": {"controlPorts": []}}, "controlPorts"),
    ({"networkPolicy": {"apiServerPorts": [70000]}}, "apiServerPorts"),
    ({"networkPolicy": {"metricsFrom": [{}]}}, "metricsFrom"),
    ({"metrics": {"monitor": {"kind": "Annotation"}}}, "kind"),
    ({"metrics": {"monitor": {"interval": "often"}}}, "interval"),
    ({"metrics": {"serviceMonitor": {"enabled": True}}}, "serviceMonitor"),
]


@pytest.fixture(params=VARIANTS, ids=lambda name: name.replace(" ", "-"))
def variant(request: pytest.FixtureRequest) -> Release:
    """The chart with some of its options."""
    return render(OPERATOR, VARIANTS[request.param])


def operator(release: Release) -> Object:
    """Return the container of the operator."""
    (container,) = release.one("Deployment")["spec"]["template"]["spec"]["containers"]
    return container


# --- whatever is chosen -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [{}, EVERYTHING, NOTHING], ids=["as-it-is", "everything", "nothing"])
def test_helm_lint_finds_nothing(values: Object) -> None:
    """Not even a warning."""
    assert harness.lint(OPERATOR, values) == []


def test_every_object_is_one_that_kubernetes_knows(variant: Release) -> None:
    """No field is unknown, or of another type, to any supported version."""
    assert [fault for item in variant.objects for v in VERSIONS for fault in harness.faults(item, version=v)] == []


def test_selectors_select_and_ports_exist(variant: Release) -> None:
    """What belongs together finds itself by labels and names."""
    assert harness.misses(variant.objects) == []


def test_every_pod_is_restricted(variant: Release) -> None:
    """No value loosens the Pod Security Standard, and no file system can be written."""
    assert {label: harness.unrestricted(pod) for label, pod in harness.pods(variant.objects)} == {
        label: [] for label, _ in harness.pods(variant.objects)
    }


def test_every_container_has_requests_and_a_limit_of_memory(variant: Release) -> None:
    """A scheduler can count with it, and a node cannot be filled by it."""
    for _, pod in harness.pods(variant.objects):
        for container in harness.containers(pod):
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
            assert "memory" in container["resources"]["limits"]


def test_only_the_operator_gets_a_token_of_the_api_server(variant: Release) -> None:
    """Neither the ServiceAccount gives one away, nor does the pod of the test ask for one."""
    asking = {label: pod["spec"].get("automountServiceAccountToken") for label, pod in harness.pods(variant.objects)}
    assert {label.partition(" ")[0]: asked for label, asked in asking.items()} == {"Deployment": True, "Pod": False}
    assert all(account["automountServiceAccountToken"] is False for account in variant.of("ServiceAccount"))


def test_selectors_never_change(variant: Release) -> None:
    """A Deployment's selector is immutable: an upgrade that changes it fails, whichever values it changes."""
    labels = {"app.kubernetes.io/name": "refork-operator", "app.kubernetes.io/instance": "refork"}
    assert variant.one("Deployment")["spec"]["selector"] == {"matchLabels": labels}
    assert variant.one("Service")["spec"]["selector"] == labels


def test_no_rule_has_a_wildcard(variant: Release) -> None:
    """What may be done is said word by word."""
    roles = [*variant.of("Role"), *variant.of("ClusterRole")]
    words = [word for role in roles for rule in role["rules"] for part in rule.values() for word in part]
    assert "*" not in words


def test_the_operator_understands_what_it_is_told(variant: Release) -> None:
    """Every option of the chart is one of the operator's."""
    container = operator(variant)
    env = {entry["name"]: entry.get("value", entry["name"].lower()) for entry in container["env"]}
    chosen = settings.parse(container["args"], env=env)
    assert chosen.lease_namespace == "pod_namespace"
    assert chosen.identity.startswith("pod_name-")
    assert chosen.lease_name == variant.one("Deployment")["metadata"]["name"]


@pytest.mark.parametrize("name", ["x" * 53, "a-release-of-a-name-that-is-as-long-as-helm-allows-op", "operator"])
@pytest.mark.parametrize("values", [{}, EVERYTHING | {"fullnameOverride": ""}], ids=["as-it-is", "everything"])
def test_long_names_stay_short_enough(name: str, values: Object) -> None:
    """Whatever Helm allows as a release's name, no name or label is too long, and none is there twice."""
    release = render(OPERATOR, values, name=name, namespace="n" * 63)
    assert harness.too_long(release.objects) == []
    keys = [(item["kind"], item["metadata"].get("namespace"), item["metadata"]["name"]) for item in release.objects]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("name", ["refork.v2", "1refork"])
def test_a_release_that_no_service_can_be_named_like_says_what_it_may_be_called(name: str) -> None:
    """Helm allows more names of releases than Kubernetes does of Services; with a name of its own it goes."""
    with pytest.raises(helm_python.HelmError, match="set fullnameOverride"):
        render(OPERATOR, name=name)
    assert render(OPERATOR, {"fullnameOverride": "watcher"}, name=name).one("Service")


def test_words_that_yaml_would_read_as_something_else_stay_words() -> None:
    """Kubernetes allows namespaces that look like numbers, and names that look like a truth value."""
    names: Object = {
        "image": {"pullSecrets": ["12"]},
        "priorityClassName": "12",
        "rbac": {"secrets": {"names": ["12"]}},
        "serviceAccount": {"name": "12"},
        "watch": {"namespaces": ["12", "null"]},
    }
    release = render(OPERATOR, EVERYTHING | names | {"fullnameOverride": "on"}, name="12", namespace="12")
    assert [fault for item in release.objects for fault in harness.faults(item, version=VERSIONS[-1])] == []


def test_labels_that_users_say_count_more_than_the_charts_own() -> None:
    """Nothing stands twice in a mapping, which clients of Kubernetes refuse or decide by chance."""
    labels = {"app.kubernetes.io/part-of": "monitoring"}
    metrics = {name: {"enabled": True, "labels": labels} for name in ("monitor", "rules", "dashboards")}
    release = render(OPERATOR, {"metrics": metrics})
    found = [item for item in release.objects if item["kind"] in {"PodMonitor", "PrometheusRule", "ConfigMap"}]
    assert len(found) == 4
    for item in found:
        assert item["metadata"]["labels"].items() >= {**labels, "app.kubernetes.io/instance": "refork"}.items()


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("values", "word"), REFUSED, ids=[json.dumps(values) for values, _ in REFUSED])
def test_what_makes_no_sense_is_refused_by_name(values: Object, word: str) -> None:
    """A typo or nonsense ends the installation before it begins, with the name of the value."""
    assert word in harness.refusal(OPERATOR, values)


def test_no_level_of_the_schema_is_open() -> None:
    """Only where Helm or Kubernetes define what may stand there, anything may."""
    schema = json.loads((OPERATOR / "values.schema.json").read_text())
    assert set(harness.open_levels(schema)) == {"properties.global", "definitions.kubernetes"}


def test_schema_and_values_know_the_same_names() -> None:
    """No value that the schema lacks, and none that has no default and no comment."""
    schema = json.loads((OPERATOR / "values.schema.json").read_text())
    values = yaml.safe_load((OPERATOR / "values.yaml").read_text())
    assert harness.names(values, schema) == harness.declared(schema) - {"global"}


def test_the_defaults_are_the_operators_own() -> None:
    """Who reads values.yaml and who reads --help learn the same."""
    chosen = settings.parse(operator(render(OPERATOR))["args"], env={"POD_NAMESPACE": "refork"})
    plain = settings.parse([], env={"POD_NAMESPACE": "refork"})
    assert chosen == plain


def test_everything_that_is_said_is_handed_on() -> None:
    """Each option arrives at the operator."""
    chosen = settings.parse(operator(render(OPERATOR, EVERYTHING))["args"], env={})
    assert (chosen.namespaces, chosen.pod_selector) == (("shop", "blog"), EVERYTHING["watch"]["podSelector"])
    assert (chosen.lease_duration, chosen.lease_renew_deadline, chosen.lease_retry) == (30, 20, 4)
    assert (chosen.poll_concurrency, chosen.poll_timeout, chosen.body_limit) == (128, 2, 4194304)
    assert (chosen.operation_timeout, chosen.settle, chosen.status_interval) == (1800, 5, 30)
    assert (chosen.log_level, chosen.log_format, chosen.listen) == ("DEBUG", "text", "[::]:8080")
    assert chosen.dry_run


def test_the_table_of_values_is_written_from_the_values() -> None:
    """After a change of values.yaml: python helm/readme.py."""
    readme = harness.script("helm/readme.py")
    assert (OPERATOR / "README.md").read_text() == readme.page(OPERATOR)


def test_a_value_without_a_comment_is_an_error() -> None:
    """Every value is documented where it stands."""
    readme = harness.script("helm/readme.py")
    with pytest.raises(ValueError, match="line 3: b needs a comment"):
        readme.table("# What a is.\na: 1\nb: 2\n")


# --- who it is and what it may do -------------------------------------------------------------------------------------


def rules_file() -> dict[str, Any]:
    """Return the rules that the chart is made from."""
    rules: dict[str, Any] = yaml.safe_load((OPERATOR / "files/operator-rules.yaml").read_text())
    return rules


def test_all_namespaces_need_a_cluster_role() -> None:
    """It holds the rules of the file, bound to the account that the pods run as."""
    release, rules = render(OPERATOR), rules_file()
    role, binding = release.one("ClusterRole", "refork-operator-refork"), release.one("ClusterRoleBinding")
    assert role["rules"] == [*rules["watched"], *rules["secrets"]]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    account = release.one("Deployment")["spec"]["template"]["spec"]["serviceAccountName"]
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": account, "namespace": "refork"}]
    assert release.one("ServiceAccount")["metadata"]["name"] == account


def test_named_namespaces_need_only_roles() -> None:
    """One Role and binding in each, and nothing beyond them but the Lease."""
    release, rules = (
        render(OPERATOR, {"watch": {"namespaces": ["shop", "blog"]}, "rbac": {"aggregate": False}}),
        rules_file(),
    )
    assert not release.of("ClusterRole")
    assert not release.of("ClusterRoleBinding")
    there = [role for role in release.of("Role") if role["metadata"]["namespace"] != "refork"]
    assert [role["metadata"]["namespace"] for role in there] == ["shop", "blog"]
    assert all(role["rules"] == [*rules["watched"], *rules["secrets"]] for role in there)
    bound = {(item["metadata"]["namespace"], item["roleRef"]["name"]) for item in release.of("RoleBinding")}
    assert bound == {(item["metadata"]["namespace"], item["metadata"]["name"]) for item in release.of("Role")}


def test_only_one_lease_may_be_changed() -> None:
    """The one that the operator is told to hold."""
    release = render(OPERATOR)
    create, change = release.one("Role")["rules"]
    assert (create["verbs"], change["verbs"]) == (["create"], ["get", "update"])
    assert change["resourceNames"] == ["refork-operator"]
    assert f"--lease-name={change['resourceNames'][0]}" in operator(release)["args"]


def test_secrets_can_be_narrowed_down_or_left_out() -> None:
    """To names, or to none at all."""

    def granted(**secrets: Any) -> list[Any]:
        rules = render(OPERATOR, {"rbac": {"secrets": secrets, "aggregate": False}}).one("ClusterRole")["rules"]
        return [rule.get("resourceNames", "any") for rule in rules if rule["resources"] == ["secrets"]]

    assert granted() == ["any"]
    assert granted(names=["refork-control"]) == [["refork-control"]]
    assert granted(enabled=False) == []


def test_whoever_may_edit_a_namespace_may_edit_its_policies() -> None:
    """By aggregation into Kubernetes' own roles; viewing does not change anything."""
    release = render(OPERATOR)
    view = release.one("ClusterRole", "refork-operator-refork-view")
    edit = release.one("ClusterRole", "refork-operator-refork-edit")
    assert view["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-view"] == "true"
    assert "rbac.authorization.k8s.io/aggregate-to-view" not in edit["metadata"]["labels"]
    assert not set(view["rules"][0]["verbs"]) & set(edit["rules"][0]["verbs"])


def test_releases_in_two_namespaces_do_not_meet() -> None:
    """What is not in a namespace of their own has names of their own; but for the CRD, which a cluster has once."""
    here, there = (render(OPERATOR, {"crds": {"enabled": False}}, namespace=where) for where in ("one", "two"))
    names = [
        {(item["kind"], item["metadata"]["name"]) for item in release.objects if "namespace" not in item["metadata"]}
        for release in (here, there)
    ]
    assert names[0]
    assert not names[0] & names[1]


def test_pods_are_shown_a_token_for_refork_alone() -> None:
    """It is where the operator looks for it, for the audience that servers demand, and not for the API server."""
    spec = render(OPERATOR).one("Deployment")["spec"]["template"]["spec"]
    (source,) = spec["volumes"][0]["projected"]["sources"]
    (mount,) = spec["containers"][0]["volumeMounts"]
    assert source["serviceAccountToken"]["audience"] == "refork"
    assert f"{mount['mountPath']}/{source['serviceAccountToken']['path']}" == settings.TOKEN_FILE
    assert "volumes" not in render(OPERATOR, {"identity": False}).one("Deployment")["spec"]["template"]["spec"]


# --- the CRD ----------------------------------------------------------------------------------------------------------


def test_the_crd_is_the_file_and_stays() -> None:
    """Upgrades bring it up to date; uninstalling takes nobody's policies away, unless somebody wants that."""
    name, file = "CustomResourceDefinition", yaml.safe_load((OPERATOR / "files/reforkpolicy-crd.yaml").read_text())
    kept = render(OPERATOR).one(name)
    assert kept["spec"] == file["spec"]
    assert kept["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert "annotations" not in render(OPERATOR, {"crds": {"keep": False}}).one(name)["metadata"]
    assert not render(OPERATOR, {"crds": {"enabled": False}}).of(name)


def test_the_crd_that_is_rendered_works() -> None:
    """An API server that has it admits a policy and fills in its defaults."""
    api = ApiServer().start()
    try:
        api.install(render(OPERATOR).one("CustomResourceDefinition"))
        made = api.create(
            "reforkpolicies", {"metadata": {"name": "web"}, "spec": {"selector": {"matchLabels": {"app": "web"}}}}
        )
    finally:
        api.stop()
    assert made["spec"]["mode"] == "Observe"


# --- how it runs ------------------------------------------------------------------------------------------------------


def test_a_digest_counts_more_than_a_tag() -> None:
    """And without either, the version of the chart does; the pod of the test runs the same image."""
    digest = "sha256:" + "0" * 64
    for image, expected in [
        ({}, "ghcr.io/refork/refork-operator:0.1.0"),
        ({"tag": "1.2"}, "ghcr.io/refork/refork-operator:1.2"),
        ({"repository": "registry:5000/x", "tag": "1", "digest": digest}, f"registry:5000/x@{digest}"),
    ]:
        release = render(OPERATOR, {"image": image})
        assert {c["image"] for _, pod in harness.pods(release.objects) for c in harness.containers(pod)} == {expected}


def test_replicas_keep_apart_unless_told_otherwise() -> None:
    """By node and zone, where there are several; what somebody says takes their place."""
    spec = render(OPERATOR).one("Deployment")["spec"]["template"]["spec"]
    assert "podAntiAffinity" in spec["affinity"]
    assert [each["whenUnsatisfiable"] for each in spec["topologySpreadConstraints"]] == ["ScheduleAnyway"]
    told = render(OPERATOR, EVERYTHING).one("Deployment")["spec"]["template"]["spec"]
    assert told["affinity"] == EVERYTHING["affinity"]
    assert told["topologySpreadConstraints"] == EVERYTHING["topologySpreadConstraints"]


def test_a_platform_can_choose_the_user() -> None:
    """With null, no user is named, and still none may be root."""
    for pod in (pod for _, pod in harness.pods(render(OPERATOR, {"runAsUser": None}).objects)):
        assert not {"runAsUser", "runAsGroup", "fsGroup"} & pod["spec"]["securityContext"].keys()
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True


def test_a_network_policy_opens_what_is_needed() -> None:
    """Metrics from outside; the API server and control ports from inside, there only in the watched namespaces."""
    values: Object = {"networkPolicy": {"enabled": True}, "watch": {"namespaces": ["shop"]}}
    spec = render(OPERATOR, values).one("NetworkPolicy")["spec"]
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    assert spec["ingress"] == [{"ports": [{"port": "metrics", "protocol": "TCP"}]}]
    server, pods = spec["egress"]
    assert [port["port"] for port in server["ports"]] == [443, 6443]
    assert [port["port"] for port in pods["ports"]] == [9091]
    assert pods["to"][0]["namespaceSelector"]["matchExpressions"][0]["values"] == ["shop"]


def test_helm_test_is_let_through_a_network_policy() -> None:
    """When only some may read metrics, the pod of the test is one of them."""
    release = render(OPERATOR, EVERYTHING)
    sources = release.one("NetworkPolicy")["spec"]["ingress"][0]["from"]
    labels = release.one("Pod")["metadata"]["labels"]
    assert {"podSelector": {"matchLabels": labels}} in sources


# --- how it is watched ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "labelled"), [("PodMonitor", "pod"), ("ServiceMonitor", "service")])
def test_the_job_is_the_release(kind: str, labelled: str) -> None:
    """Dashboards and rules tell operators apart by it."""
    release = render(OPERATOR, {"metrics": {"monitor": {"enabled": True, "kind": kind}}}, name="mine")
    template = release.one("Deployment")["spec"]["template"]
    labels = (template if labelled == "pod" else release.one("Service"))["metadata"]["labels"]
    assert labels[release.one(kind)["spec"]["jobLabel"]] == "mine"


def test_dashboards_and_rules_are_installed_as_they_are(bare: Path) -> None:
    """What looks like a template in them is Prometheus's or Grafana's, and is left alone."""
    values: Object = {"metrics": {"rules": {"enabled": True}, "dashboards": {"enabled": True}}}
    assert not render(bare, values).of("ConfigMap")
    board = {"title": "Fleet", "panels": [{"expr": 'sum by (job) (up{job="$job"})', "legend": "{{ job }}"}]}
    alert = {"alert": "Bad", "expr": "up == 0", "for": "5m", "annotations": {"summary": "{{ $labels.job }} is down"}}
    groups = [{"name": "refork", "rules": [{"record": "job:up:sum", "expr": "sum by (job) (up)"}, alert]}]
    for path, content in {
        "dashboards/refork-fleet.json": json.dumps(board),
        "rules/refork.rules.yaml": yaml.dump({"groups": groups}),
    }.items():
        (bare / "files" / path).parent.mkdir()
        (bare / "files" / path).write_text(content)
    fresh = bare.rename(bare.with_name("full"))
    release = render(fresh, values)
    config = release.one("ConfigMap", "refork-operator-refork-fleet")
    assert json.loads(config["data"]["refork-fleet.json"]) == board
    assert config["metadata"]["labels"]["grafana_dashboard"] == "1"
    rule = release.one("PrometheusRule", "refork-operator-refork-rules")
    assert rule["spec"]["groups"] == groups
    assert harness.faults(rule, version=VERSIONS[0]) == []


def test_every_dashboard_and_rule_of_the_chart_is_installed() -> None:
    """As many as there are files."""
    release = render(OPERATOR, {"metrics": {"rules": {"enabled": True}, "dashboards": {"enabled": True}}})
    boards = {path.name for path in (OPERATOR / "files/dashboards").glob("*.json")}
    rules = list((OPERATOR / "files/rules").glob("*.yaml"))
    assert {name for item in release.of("ConfigMap") for name in item["data"]} == boards
    assert len(release.of("PrometheusRule")) == len(rules)
    assert boards
    assert rules


# --- what people do with it -------------------------------------------------------------------------------------------


def commands(release: Release) -> list[list[str]]:
    """Return the commands that the notes tell, in words."""
    return [
        shlex.split(command)
        for command in re.findall(r"^ +((?:helm|kubectl) (?:.*\\\n)*.*)$", release.notes, re.MULTILINE)
    ]


def told(words: list[str]) -> Object:
    """Return the values that a command sets."""
    return helm_python.parse_set_string(",".join(words[n + 1] for n, word in enumerate(words) if word == "--set"))


def test_the_notes_tell_three_commands() -> None:
    """They are those for this release, ready to be pasted."""
    test, install, look = commands(render(OPERATOR, name="refork", namespace="refork-system"))
    assert test == ["helm", "test", "refork", "--namespace", "refork-system"]
    assert install[:6] == [
        "helm",
        "install",
        "shop",
        "oci://ghcr.io/refork/charts/refork-app",
        "--namespace",
        "default",
    ]
    assert look == ["kubectl", "get", "reforkpolicies", "--all-namespaces"]


@pytest.mark.parametrize("values", [{}, {"identity": False}], ids=["identity", "token"])
@pytest.mark.parametrize("name", ["refork", "mine"])
def test_the_application_of_the_notes_trusts_this_operator(name: str, values: Object) -> None:
    """The command installs one whose policy reaches it, by the identity of this very release or by a token."""
    operators = render(OPERATOR, values, name=name, namespace="ops")
    shown = told(commands(operators)[1])
    shown["image"] = {"repository": "registry.example.org/shop", "tag": "1"}
    container = render(harness.APP, shown, name="shop").one("Deployment")["spec"]["template"]["spec"]["containers"][0]
    account = operators.one("ServiceAccount")["metadata"]["name"]
    assert (f"ops:{account}" in " ".join(container["args"])) is ("identity" not in values)
    assert ("--control-token-file" in " ".join(container["args"])) is ("identity" in values)


def test_the_notes_depend_on_the_values() -> None:
    """They name the watched namespace, and what is still missing."""
    release = render(OPERATOR, {"watch": {"namespaces": ["shop", "blog"]}})
    assert "the namespaces shop, blog" in release.notes
    assert commands(release)[1][4:6] == commands(release)[2][3:] == ["--namespace", "shop"]
    assert "only decides and logs" in render(OPERATOR, {"dryRun": True}).notes
    lacking = render(OPERATOR, NOTHING).notes
    assert "left to you" in lacking
    assert "bind the ServiceAccount existing to the rules" in lacking
    assert not [word for word in ("left to you", "no rights", "only decides") if word in release.notes]


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1)])
def test_helm_test_succeeds_when_the_operator_is_ready(status: int, code: int, answering: Any) -> None:
    """Its command, run against a server that is ready and against one that is not; it needs no shell."""
    release = render(OPERATOR)
    hook, service = release.one("Pod"), release.one("Service")
    assert hook["metadata"]["annotations"]["helm.sh/hook"] == "test"
    *words, url = hook["spec"]["containers"][0]["command"]
    assert words[0] == "python"
    (port,) = service["spec"]["ports"]
    assert url == f"http://{service['metadata']['name']}.refork:{port['port']}/readyz"
    with answering(status) as here:
        done = subprocess.run(
            [sys.executable, *words[1:], f"{here}/readyz"], capture_output=True, timeout=20, check=False
        )
    assert done.returncode == code
