"""What people copy: the cluster for trying, the examples for Argo CD and Flux, the configuration of Prometheus."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.helm import harness
from tests.helm.app_chart import VARIANTS, pod_of, rendered

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helm.harness import Object

DEPLOY = harness.ROOT / "deploy"
PROMTOOL = shutil.which("promtool")
SCRAPE = DEPLOY / "prometheus/scrape-config.yaml"
CHARTS = {"refork": harness.OPERATOR, "refork-app": harness.APP}


def version_of(chart: Path) -> str:
    """Return the version of a chart."""
    return str(yaml.safe_load((chart / "Chart.yaml").read_text())["version"])


def documents(path: str) -> tuple[Object, ...]:
    """Read a file of examples."""
    return harness.objects_of((DEPLOY / path).read_text())


@pytest.mark.parametrize("name", ["operator", "app"])
def test_argo_cd_gets_a_chart_of_ours_and_values_that_it_takes(name: str) -> None:
    """The Application names one of the charts at its version, and the chart renders with its values."""
    (application,) = documents(f"argocd/{name}.yaml")
    assert (application["apiVersion"], application["kind"]) == ("argoproj.io/v1alpha1", "Application")
    source = application["spec"]["source"]
    assert source["repoURL"] == "ghcr.io/refork/charts"
    chart = CHARTS[source["chart"]]
    assert source["targetRevision"] == version_of(chart)
    namespace = application["spec"]["destination"]["namespace"]
    release = harness.render(
        chart, source["helm"].get("valuesObject"), name=source["helm"]["releaseName"], namespace=namespace
    )
    assert release.of("Secret") == [], "it would be another one at each sync"
    assert_valid(release.objects)


@pytest.mark.parametrize("name", ["operator", "app"])
def test_flux_gets_a_chart_of_ours_and_values_that_it_takes(name: str) -> None:
    """The HelmRelease refers to the OCIRepository beside it, which names one of the charts."""
    repository, release = documents(f"flux/{name}.yaml")
    assert (repository["apiVersion"], repository["kind"]) == ("source.toolkit.fluxcd.io/v1", "OCIRepository")
    assert (release["apiVersion"], release["kind"]) == ("helm.toolkit.fluxcd.io/v2", "HelmRelease")
    spec = release["spec"]
    assert spec["chartRef"] == {"kind": "OCIRepository", "name": repository["metadata"]["name"]}
    assert release["metadata"]["namespace"] == repository["metadata"]["namespace"]
    prefix, _, chart = repository["spec"]["url"].rpartition("/")
    assert prefix == "oci://ghcr.io/refork/charts"
    assert version_of(CHARTS[chart]).startswith(repository["spec"]["ref"]["semver"].removesuffix("x"))
    made = harness.render(
        CHARTS[chart], spec.get("values"), name=spec["releaseName"], namespace=release["metadata"]["namespace"]
    )
    assert_valid(made.objects)


def assert_valid(objects: tuple[Object, ...]) -> None:
    assert objects
    assert [fault for item in objects for fault in harness.faults(item, version=harness.VERSIONS[-1])] == []


def test_kind_makes_nodes_for_replicas() -> None:
    """The cluster has more than one node for pods, and the name that its comments load images into."""
    (cluster,) = documents("kind/cluster.yaml")
    assert (cluster["apiVersion"], cluster["kind"]) == ("kind.x-k8s.io/v1alpha4", "Cluster")
    assert [node["role"] for node in cluster["nodes"]].count("worker") >= 2
    assert f"--name {cluster['name']}" in (DEPLOY / "kind/cluster.yaml").read_text()


# --- Prometheus -------------------------------------------------------------------------------------------------------


needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed: apt-get install prometheus")


@needs_promtool
def test_prometheus_takes_the_configuration(tmp_path: Path) -> None:
    """`promtool check config` is content; Debian's is built without Kubernetes, and sees all but the discovery."""
    done = promtool("check", "config", str(SCRAPE))
    if "field kubernetes_sd_configs not found" in done.stderr:
        done = promtool("check", "config", str(with_targets([], tmp_path)))
    assert done.returncode == 0, done.stderr


@needs_promtool
def test_prometheus_scrapes_each_pod_once_with_the_labels_of_a_pod_monitor(tmp_path: Path) -> None:
    """Of the ports of a pod one is kept, whoever serves it, with the release for its job; of a finished pod none."""
    operator = harness.render(harness.OPERATOR, name="refork", namespace="market").one("Deployment")["spec"]["template"]
    found = [
        *targets(pod_of(rendered(VARIANTS["everything"])), name="served", phase="Running"),
        *targets(pod_of(rendered(VARIANTS["exporter"])), name="watched", phase="Running"),
        *targets(pod_of(rendered(VARIANTS["sync"])), name="finished", phase="Succeeded"),
        *targets(operator, name="operator", phase="Running"),
    ]
    assert len(found) > 7
    scraped = labels_after_relabeling(found, tmp_path)
    assert [(each["pod"], each["job"], each["namespace"], each["instance"]) for each in scraped] == [
        ("operator", "refork", "market", "operator:8080"),
        ("served", "shop", "market", "served:9090"),
        ("watched", "shop", "market", "watched:9090"),
    ]
    assert {name for each in scraped for name in each} == {"pod", "job", "namespace", "instance"}


def test_prometheus_asks_for_the_pods_of_both_charts() -> None:
    """The selector names the label that both charts' pods have."""
    (scrape,) = yaml.safe_load(SCRAPE.read_text())["scrape_configs"]
    (discovery,) = scrape["kubernetes_sd_configs"]
    (selector,) = discovery["selectors"]
    assert (discovery["role"], selector["role"]) == ("pod", "pod")
    label, _, names = selector["label"].partition(" in ")
    operator = harness.render(harness.OPERATOR).one("Deployment")["spec"]["template"]
    wanted = {pod["metadata"]["labels"][label] for pod in (operator, pod_of(rendered(VARIANTS["sync"])))}
    assert set(names.strip("()").split(", ")) == wanted


def targets(pod: Object, *, name: str, phase: str) -> list[Object]:
    """Return what Kubernetes service discovery finds of a pod: a target for each port."""
    labels = {
        f"__meta_kubernetes_pod_label_{re.sub('[^a-zA-Z0-9_]', '_', key)}": value
        for key, value in pod["metadata"]["labels"].items()
    }
    return [
        {
            "targets": [f"{name}:{port['containerPort']}"],
            "labels": {
                **labels,
                "__meta_kubernetes_namespace": "market",
                "__meta_kubernetes_pod_name": name,
                "__meta_kubernetes_pod_phase": phase,
                "__meta_kubernetes_pod_container_port_name": port["name"],
            },
        }
        for each in harness.containers(pod)
        for port in each.get("ports", [])
    ]


def with_targets(found: list[Object], directory: Path) -> Path:
    """Write the configuration with these targets instead of those that Kubernetes would tell."""
    (scrape,) = yaml.safe_load(SCRAPE.read_text())["scrape_configs"]
    del scrape["kubernetes_sd_configs"]
    path = directory / "prometheus.yml"
    path.write_text(yaml.safe_dump({"scrape_configs": [{**scrape, "static_configs": found}]}))
    return path


def labels_after_relabeling(found: list[Object], directory: Path) -> list[dict[str, str]]:
    """Have Prometheus relabel targets; return the labels of those that it would scrape, by their pods."""
    done = promtool("check", "service-discovery", "--timeout=1s", str(with_targets(found, directory)), "refork")
    assert done.returncode == 0, done.stderr
    results: list[dict[str, Any]] = json.loads(done.stdout[done.stdout.index("[") :])
    kept = [each["labels"] for each in results if each.get("labels")]
    told = [{name: value for name, value in labels.items() if not name.startswith("__")} for labels in kept]
    return sorted(told, key=lambda labels: labels["pod"])


def promtool(*words: str) -> subprocess.CompletedProcess[str]:
    assert PROMTOOL is not None
    return subprocess.run([PROMTOOL, *words], capture_output=True, text=True, timeout=60, check=False)
