"""What the chart of applications makes of values, as a cluster, its administrators and its operator see it."""

from __future__ import annotations

import base64
import re
from typing import TYPE_CHECKING

import pytest
import yaml

from refork.orders import KILL_MARGIN
from refork_operator.names import DEFAULT_PORT
from tests.helm import harness
from tests.helm.app_chart import (
    ACCOUNT,
    EVERYTHING,
    GUNICORN,
    IMAGE,
    NAME,
    NAMESPACE,
    TLS,
    TOKEN,
    VARIANTS,
    WSGI,
    container_of,
    pod_of,
    rendered,
)

if TYPE_CHECKING:
    from tests.helm.harness import Object

SECONDS_TO_GO = 2 * KILL_MARGIN
"""What a server takes at most when its last request has ended or was given up: workers and molds are killed, then."""

HELMS_PATIENCE = 300
"""Seconds that `helm test` waits unless told otherwise."""


@pytest.fixture(params=VARIANTS)
def values(request: pytest.FixtureRequest) -> Object:
    """Values of each kind that people would write."""
    return VARIANTS[request.param]


# --- as a cluster sees it ---------------------------------------------------------------------------------------------


def test_lint_finds_nothing(values: Object) -> None:
    """`helm lint --strict` is content with the chart and with each set of values."""
    assert harness.lint(harness.APP, values) == []


def test_every_object_is_what_the_api_server_takes(values: Object) -> None:
    """Each supported version of Kubernetes knows each field of each object."""
    objects = rendered(values).objects
    assert objects
    found = [
        fault for version in harness.VERSIONS for item in objects for fault in harness.faults(item, version=version)
    ]
    assert found == []


def test_every_pod_is_restricted(values: Object) -> None:
    """All pods, the one of `helm test` too, conform to the restricted Pod Security Standard with read-only roots."""
    for label, pod in harness.pods(rendered({**values, "initContainers": [], "extraContainers": []}).objects):
        assert harness.unrestricted(pod) == [], label


def test_what_belongs_together_finds_each_other(values: Object) -> None:
    """Every selector selects pods of the release, and every port that is asked for is there."""
    assert harness.misses(rendered(values).objects) == []


def test_names_fit_however_long_the_release_is_called(values: Object) -> None:
    """Helm allows release names of 53 characters."""
    assert harness.too_long(rendered(values, name="r" * 53).objects) == []


def test_everything_is_named_like_the_release() -> None:
    """The workload is the release: that is what dashboards call it, and what people annotate."""
    release = rendered(EVERYTHING)
    names = {item["metadata"]["name"] for item in release.objects}
    assert names == {NAME, f"{NAME}-control", f"{NAME}-answers", "keeper"}
    assert {item["metadata"]["namespace"] for item in release.objects} == {NAMESPACE}


def test_the_test_pod_is_not_selected() -> None:
    """The pod of `helm test` gets no requests, counts in no budget and belongs to no policy."""
    release = rendered(EVERYTHING)
    selector = release.one("Service")["spec"]["selector"]
    assert not selector.items() <= release.one("Pod")["metadata"]["labels"].items()


def test_two_releases_of_a_namespace_do_not_meet() -> None:
    """The pods of one release have not the labels that another one selects."""
    one, other = rendered(WSGI, name="one"), rendered(WSGI, name="other")
    selector = one.one("Deployment")["spec"]["selector"]["matchLabels"]
    assert selector.items() <= pod_of(one)["metadata"]["labels"].items()
    assert not selector.items() <= pod_of(other)["metadata"]["labels"].items()


def test_the_same_values_make_the_same_pods() -> None:
    """Nothing random is in the pods, so an upgrade that changes nothing restarts nothing."""
    values = {**WSGI, "control": TOKEN}
    again = {**values, "service": {"port": 81}}
    assert pod_of(rendered(values)) == pod_of(rendered(again))


def test_another_configuration_makes_other_pods() -> None:
    """A gunicorn.conf.py is read at start, so a changed one needs new pods."""
    one, other = (rendered({**WSGI, "config": text}) for text in ("timeout = 5\n", "timeout = 6\n"))
    assert one.one("ConfigMap")["data"] == {"gunicorn.conf.py": "timeout = 5\n"}
    assert pod_of(one) != pod_of(other)
    beside = {"image": IMAGE, "exporter": {"enabled": True}}
    assert pod_of(rendered({**beside, "config": "timeout = 5\n"})) == pod_of(rendered(beside))


@pytest.mark.parametrize(
    "text", ["  # indented first\nx = 1\n", "\n\nx = 1\n\n\n", "x = '{{ no template }}'", "é\t= 1\r\n"]
)
def test_a_configuration_arrives_to_the_letter(text: str) -> None:
    """Whatever it begins and ends with."""
    assert rendered({**WSGI, "config": text}).one("ConfigMap")["data"] == {"gunicorn.conf.py": text}


def test_words_that_yaml_would_read_as_something_else_stay_words() -> None:
    """Kubernetes allows namespaces that look like numbers, and names that look like a truth value."""
    release = rendered(
        {
            **EVERYTHING,
            "image": {**IMAGE, "pullSecrets": ["12"]},
            "workerClass": "package.worker: #1",
            "control": {
                **ACCOUNT,
                "operator": {"namespace": "12", "serviceAccount": "on"},
                "keys": {"jwks": "https://keys.example.org/a: #b", "issuer": "https://keys.example.org/: #"},
            },
            "priorityClassName": "12",
            "serviceAccount": {"name": "12"},
            "ingress": {"enabled": True, "className": "12", "host": "12", "tlsSecretName": "12"},
        },
        name="on",
        namespace="12",
    )
    assert [fault for item in release.objects for fault in harness.faults(item, version=harness.VERSIONS[-1])] == []
    token = {"auth": "Token", "token": {"existingSecret": "12", "key": "12"}}
    tls = {"tls": {"secretName": "12", "serverName": "12", "caSecretName": "12", "caKey": "12"}}
    release = rendered({**WSGI, "control": {**token, **tls}, "policy": {"enabled": True}})
    assert [fault for item in release.objects for fault in harness.faults(item, version=harness.VERSIONS[-1])] == []


def test_what_users_say_of_labels_and_annotations_counts_more_than_what_the_chart_says() -> None:
    """Nothing stands twice in a mapping, which clients of Kubernetes refuse or decide by chance."""
    release = rendered(
        {
            **WSGI,
            "podAnnotations": {"kubectl.kubernetes.io/default-container": "proxy"},
            "podMonitor": {"enabled": True, "labels": {"app.kubernetes.io/part-of": "monitoring"}},
        }
    )
    assert pod_of(release)["metadata"]["annotations"] == {"kubectl.kubernetes.io/default-container": "proxy"}
    labels = release.one("PodMonitor")["metadata"]["labels"]
    assert (labels["app.kubernetes.io/part-of"], labels["app.kubernetes.io/instance"]) == ("monitoring", NAME)


# --- the life of a pod ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("graceful", "before"), [(1, 1), (30, 5), (90, 12), (3600, 60)])
def test_the_grace_period_covers_the_drain(graceful: int, before: int) -> None:
    """A pod is killed only after preStop, the requests under way and the end of the server had their time."""
    release = rendered({**WSGI, "gracefulTimeout": graceful, "preStopSeconds": before})
    app, spec = container_of(release), pod_of(release)["spec"]
    assert f"--graceful-timeout={graceful}" in app["args"]
    assert app["lifecycle"]["preStop"] == {"sleep": {"seconds": before}}
    assert spec["terminationGracePeriodSeconds"] == before + graceful + SECONDS_TO_GO


def test_a_strategy_says_what_belongs_to_its_type() -> None:
    """To recreate pods it is enough to say so: how they would roll is an error to Kubernetes then."""
    assert rendered({**WSGI, "strategy": {"type": "Recreate"}}).one("Deployment")["spec"]["strategy"] == {
        "type": "Recreate"
    }


@pytest.mark.parametrize("seconds", [1, 60, 600])
def test_the_startup_probe_covers_the_boot(seconds: int) -> None:
    """A pod is restarted only after loading the application and booting its workers had their time."""
    app = container_of(rendered({**WSGI, "spawnTimeout": seconds}))
    probe = app["startupProbe"]
    assert f"--spawn-timeout={seconds}" in app["args"]
    assert probe["failureThreshold"] * probe["periodSeconds"] >= 2 * seconds


def test_autoscaled_pods_are_not_counted() -> None:
    """With a HorizontalPodAutoscaler the Deployment says no number, or each upgrade would set it back."""
    release = rendered(VARIANTS["autoscaled"])
    assert "replicas" not in release.one("Deployment")["spec"]
    scaler = release.one("HorizontalPodAutoscaler")["spec"]
    assert (scaler["scaleTargetRef"]["name"], scaler["minReplicas"], scaler["maxReplicas"]) == (NAME, 2, 10)
    assert rendered(WSGI).one("Deployment")["spec"]["replicas"] == 2


def test_a_scaler_may_be_told_how_fast_it_is() -> None:
    """As Kubernetes writes it."""
    behavior = {"scaleDown": {"stabilizationWindowSeconds": 600}}
    values = {**VARIANTS["autoscaled"], "autoscaling": {"enabled": True, "behavior": behavior}}
    assert rendered(values).one("HorizontalPodAutoscaler")["spec"]["behavior"] == behavior


def test_pods_are_spread_by_their_own_labels() -> None:
    """A constraint without a selector gets that of the release; one that has its own keeps it."""
    release = rendered(WSGI)
    (found,) = pod_of(release)["spec"]["topologySpreadConstraints"]
    assert found["labelSelector"] == release.one("Deployment")["spec"]["selector"]
    own = {"matchLabels": {"team": "market"}}
    constraint = {"maxSkew": 2, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": own}
    (kept,) = pod_of(rendered({**WSGI, "topologySpreadConstraints": [constraint]}))["spec"]["topologySpreadConstraints"]
    assert kept == constraint


@pytest.mark.parametrize("variant", ["everything", "exporter"])
def test_the_test_pod_runs_where_the_application_does_and_is_patient(variant: str) -> None:
    """`helm test` right after `helm install` waits for the application; its image may fit some of the nodes alone."""
    where = {name: EVERYTHING[name] for name in ("nodeSelector", "tolerations")}
    release = rendered({**VARIANTS[variant], **where})
    pod, beside = release.one("Pod")["spec"], pod_of(release)["spec"]
    assert (pod["nodeSelector"], pod["tolerations"]) == (beside["nodeSelector"], beside["tolerations"])
    assert pod["restartPolicy"] == "OnFailure"
    assert pod["activeDeadlineSeconds"] < HELMS_PATIENCE
    (container,) = pod["containers"]
    fetched = {(each["image"], each["imagePullPolicy"]) for each in beside["containers"] if "imagePullPolicy" in each}
    assert (container["image"], container["imagePullPolicy"]) in fetched


# --- control ----------------------------------------------------------------------------------------------------------


def test_no_door_is_open_unless_asked_for() -> None:
    """Without control there is no port, no Secret, no right for anybody and no token in the pod."""
    release = rendered(WSGI)
    assert {port["name"] for port in container_of(release)["ports"]} == {"http", "metrics"}
    assert not [word for word in container_of(release)["args"] if word.startswith("--control")]
    assert not {"Secret", "Role", "RoleBinding", "ClusterRoleBinding", "ReforkPolicy"} & {
        o["kind"] for o in release.objects
    }
    assert [volume["name"] for volume in pod_of(release)["spec"]["volumes"]] == ["tmp"]
    assert pod_of(release)["spec"]["automountServiceAccountToken"] is False
    assert release.one("ServiceAccount")["automountServiceAccountToken"] is False


def test_the_operator_shows_the_token_that_the_server_reads() -> None:
    """Secret, volume, policy, annotation and Role name one and the same key of one and the same Secret."""
    release = rendered({**WSGI, "control": TOKEN, "policy": {"enabled": True}})
    secret = release.one("Secret")
    ((key, value),) = secret["data"].items()
    name = secret["metadata"]["name"]
    assert len(base64.b64decode(value)) >= 32
    (volume,) = [v["secret"] for v in pod_of(release)["spec"]["volumes"] if "secret" in v]
    assert (volume["secretName"], volume["items"]) == (name, [{"key": key, "path": "token"}])
    assert release.one("ReforkPolicy")["spec"]["control"]["tokenSecretRef"] == {"name": name, "key": key}
    assert pod_of(release)["metadata"]["annotations"]["refork.dev/token-secret"] == f"{name}/{key}"
    assert release.one("Role")["rules"] == [
        {"apiGroups": [""], "resources": ["secrets"], "resourceNames": [name], "verbs": ["get"]}
    ]
    subject = {"kind": "ServiceAccount", "namespace": "refork-system", "name": "refork-operator"}
    assert release.one("RoleBinding")["subjects"] == [subject]


def test_a_named_token_is_left_to_who_made_it() -> None:
    """With an existing Secret the chart makes none, and refers to that one and its key everywhere."""
    release = rendered(VARIANTS["named token"])
    assert release.of("Secret") == []
    assert release.one("Role")["rules"][0]["resourceNames"] == ["door"]
    assert pod_of(release)["metadata"]["annotations"]["refork.dev/token-secret"] == "door/shop"
    (volume,) = [v["secret"] for v in pod_of(release)["spec"]["volumes"] if "secret" in v]
    assert (volume["secretName"], volume["items"][0]["key"]) == ("door", "shop")


def test_files_of_secrets_are_for_the_group_of_the_pod_alone() -> None:
    """The server is not their owner, root is: it reads them as a member of the pod's group, and nobody else does."""
    release = rendered({**EVERYTHING, "serviceAccount": {}, "control": {"auth": "ServiceAccount", "tls": TLS}})
    spec = pod_of(release)["spec"]
    modes = {
        v["name"]: (v.get("secret") or v["projected"])["defaultMode"]
        for v in spec["volumes"]
        if {"secret", "projected"} & set(v)
    }
    assert modes == {"identity": 0o440, "control-tls": 0o440}
    assert spec["securityContext"]["fsGroup"] == spec["securityContext"]["runAsGroup"]


def test_the_pods_own_token_is_where_it_is_needed_and_nowhere_else() -> None:
    """To fetch the cluster's keys the server shows a token: it is in its container, and in no other one of the pod."""
    release = rendered({**WSGI, "control": ACCOUNT, "extraContainers": [{"name": "proxy", "image": "proxy:1"}]})
    place = "/var/run/secrets/kubernetes.io/serviceaccount"
    mounts = {
        c["name"]: [m["mountPath"] for m in c.get("volumeMounts", [])] for c in harness.containers(pod_of(release))
    }
    assert [name for name, places in mounts.items() if place in places] == ["app"]
    (volume,) = [v["projected"] for v in pod_of(release)["spec"]["volumes"] if v["name"] == "identity"]
    assert {path for source in volume["sources"] for path in re.findall(r"'path': '([^']+)'", str(source))} == {
        "token",
        "ca.crt",
    }
    assert "identity" not in str(pod_of(rendered(VARIANTS["published keys"])))


def test_a_mounted_token_is_not_mounted_twice() -> None:
    """Where all containers get the pod's token anyway, the chart adds no second one at the same place."""
    release = rendered({**WSGI, "control": ACCOUNT, "serviceAccount": {"automountToken": True}})
    assert pod_of(release)["spec"]["automountServiceAccountToken"] is True
    assert "identity" not in str(pod_of(release))


def test_the_operator_trusts_the_authority_of_the_pods() -> None:
    """With TLS the policy names scheme, name and authority, and the operator may read that authority and no key."""
    release = rendered(VARIANTS["tls"])
    assert release.one("ReforkPolicy")["spec"]["control"] == {
        "scheme": "HTTPS",
        "serverName": "shop",
        "caSecretRef": {"name": "shop-ca", "key": "ca.crt"},
    }
    assert release.one("Role")["rules"][0]["resourceNames"] == ["shop-ca"]
    assert pod_of(release)["metadata"]["annotations"]["refork.dev/control-scheme"] == "https"


def test_a_policy_says_what_the_values_said() -> None:
    """The spec of the values is that of the policy; the chart adds whom it is for and how to reach them."""
    spec = rendered(EVERYTHING).one("ReforkPolicy")["spec"]
    assert {key: value for key, value in spec.items() if key not in {"selector", "control"}} == EVERYTHING["policy"][
        "spec"
    ]
    assert rendered(VARIANTS["token"]).one("ReforkPolicy")["spec"]["mode"] == "Observe"


def test_the_control_port_has_the_name_that_the_operator_looks_for() -> None:
    """Pods of the chart are found without a word about ports in a policy."""
    assert DEFAULT_PORT in {port["name"] for port in container_of(rendered(VARIANTS["token"]))["ports"]}


def test_only_the_operator_reaches_the_control_port() -> None:
    """The NetworkPolicy lets the operator's pods in its namespace, and nobody else; others may have what is theirs."""
    rules = rendered({**WSGI, "control": TOKEN, "networkPolicy": {"enabled": True}}).one("NetworkPolicy")["spec"][
        "ingress"
    ]
    peers = {rule["ports"][0]["port"]: rule.get("from") for rule in rules}
    operator = rendered_operator_labels()
    (peer,) = peers["refork-control"] or []
    assert peer["namespaceSelector"] == {"matchLabels": {"kubernetes.io/metadata.name": "refork-system"}}
    assert peer["podSelector"]["matchLabels"].items() <= operator.items()
    assert (peers["http"], peers["metrics"]) == (None, None)
    assert "refork-control" not in str(rendered({**WSGI, "networkPolicy": {"enabled": True}}).one("NetworkPolicy"))


def test_the_test_pod_reaches_the_application() -> None:
    """Whoever else is kept out by the NetworkPolicy: `helm test` asks from a pod with labels of its own."""
    release = rendered(EVERYTHING)
    rules = release.one("NetworkPolicy")["spec"]["ingress"]
    (peers,) = [rule["from"] for rule in rules if rule["ports"] == [{"port": "http"}]]
    labels = release.one("Pod")["metadata"]["labels"]
    assert {"podSelector": {"matchLabels": labels}} in peers


def test_the_operator_is_who_its_own_chart_makes_it() -> None:
    """The defaults name the namespace and ServiceAccount that the documented installation of the operator has."""
    operator = harness.render(harness.OPERATOR, name="refork", namespace="refork-system").one("ServiceAccount")[
        "metadata"
    ]
    wanted = f"--control-service-accounts=system:serviceaccount:{operator['namespace']}:{operator['name']}"
    assert wanted in container_of(rendered(VARIANTS["service account"]))["args"]


def rendered_operator_labels() -> dict[str, str]:
    operator = harness.render(harness.OPERATOR, name="refork", namespace="refork-system").one("Deployment")
    labels: dict[str, str] = operator["spec"]["template"]["metadata"]["labels"]
    return labels


# --- the exporter -----------------------------------------------------------------------------------------------------


def test_the_exporter_sees_the_processes_of_the_pod() -> None:
    """It shares their process namespace, user, group and capabilities: what the kernel asks for, and no more."""
    release = rendered(VARIANTS["exporter"])
    spec = pod_of(release)["spec"]
    assert spec["shareProcessNamespace"] is True
    assert {"runAsUser", "runAsGroup"} <= set(spec["securityContext"])
    app, exporter = container_of(release), container_of(release, "exporter")
    assert app["securityContext"] == exporter["securityContext"]
    assert not {"runAsUser", "runAsGroup"} & set(app["securityContext"])
    assert "shareProcessNamespace" not in pod_of(rendered(WSGI))["spec"]


def test_the_exporter_leaves_the_application_as_it_is() -> None:
    """The application runs its own command, or that of its image, and metrics come from the other container."""
    release = rendered(VARIANTS["exporter"])
    app, exporter = container_of(release), container_of(release, "exporter")
    assert {"command": app["command"], "args": app["args"]} == GUNICORN
    assert [port["name"] for port in app["ports"]] == ["http"]
    assert [port["name"] for port in exporter["ports"]] == ["metrics"]
    plain = container_of(rendered({"image": IMAGE, "exporter": {"enabled": True}}))
    assert not {"command", "args"} & set(plain)


def test_the_exporter_has_the_image_of_this_release() -> None:
    """Unless another one is named, it is the server's image of the chart's own version."""
    version = yaml.safe_load((harness.APP / "Chart.yaml").read_text())["appVersion"]
    assert container_of(rendered(VARIANTS["exporter"]), "exporter")["image"] == f"ghcr.io/refork/refork:{version}"


# --- what people read -------------------------------------------------------------------------------------------------


def test_the_notes_tell_the_next_three_commands(values: Object) -> None:
    """Each is a command line that names the namespace and the release."""
    commands = [line.strip() for line in rendered(values).notes.splitlines() if line.startswith("  ")]
    assert len(commands) == 3
    assert all(f"-n {NAMESPACE} " in line and NAME in line for line in commands)
