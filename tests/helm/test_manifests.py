"""The plain manifests are what the charts say, and all YAML is written alike."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import helm_python
import pytest
import yaml
from yamllint import linter
from yamllint.config import YamlLintConfig

from tests.helm import harness
from tests.helm.harness import ROOT, VERSIONS

DIRECTORIES = ["operator", "app"]
KUBECTL = os.environ.get("KUBECTL") or shutil.which("kubectl")


def test_the_manifests_are_what_the_charts_say() -> None:
    """After a change of a chart: make manifests."""
    assert harness.script("deploy/generate.py").differences() == []


def test_a_manifest_that_differs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was edited, one that is missing, and one that should not be there."""
    generate = harness.script("deploy/generate.py")
    files, before = generate.wanted(), set(generate.differences())
    (edited, stale, *_), missing = files, generate.HERE / "operator/missing.yaml"
    changed = {path: text for path, text in files.items() if path != stale} | {edited: "edited", missing: "new"}
    monkeypatch.setattr(generate, "wanted", lambda: changed)
    found = set(generate.differences()) - before
    assert found == {str(path.relative_to(generate.HERE)) for path in (edited, stale, missing)}


@pytest.mark.parametrize("directory", DIRECTORIES)
def test_kustomize_builds_them(directory: str) -> None:
    """The base holds every manifest, each valid for every supported version, and nothing of Helm's."""
    if KUBECTL is None:
        pytest.skip("no kubectl on the PATH, and KUBECTL names none")
    base = ROOT / "deploy" / directory
    done = subprocess.run([KUBECTL, "kustomize", str(base)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "helm" not in done.stdout.lower()
    built = harness.objects_of(done.stdout)
    listed = [path for path in base.glob("*.yaml") if path.name not in {"kustomization.yaml", "values.yaml"}]
    assert len(built) == sum(len(harness.objects_of(path.read_text())) for path in listed)
    assert [fault for item in built for version in VERSIONS for fault in harness.faults(item, version=version)] == []
    assert harness.misses(built) == []
    assert {label: harness.unrestricted(pod) for label, pod in harness.pods(built)} == {
        label: [] for label, _ in harness.pods(built)
    }


def yaml_files() -> list[Path]:
    """Return all YAML of the repository but for templates, which become YAML."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.yaml", "*.yml"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    return [ROOT / line for line in listed.stdout.splitlines() if "/templates/" not in line and (ROOT / line).exists()]


def test_all_yaml_is_written_alike() -> None:
    """As .yamllint.yaml says."""
    config = YamlLintConfig(file=str(ROOT / ".yamllint.yaml"))
    wrong = [
        f"{path.relative_to(ROOT)}: {problem}"
        for path in yaml_files()
        for problem in linter.run(path.read_text(), config)
    ]
    assert wrong == []


@pytest.mark.parametrize("directory", DIRECTORIES)
def test_a_package_is_the_whole_chart(directory: str, tmp_path: Path) -> None:
    """What is pushed to a registry becomes the same objects as what is here, dashboards and rules among them."""
    generate = harness.script("deploy/generate.py")
    (bundle,) = [each for each in generate.BUNDLES if each.directory == directory]
    chart, monitored = (
        harness.ROOT / "helm" / bundle.chart,
        {"rules": {"enabled": True}, "dashboards": {"enabled": True}},
    )
    values = bundle.values | ({"metrics": monitored} if chart == harness.OPERATOR else {})
    packed = Path(helm_python.package(chart, destination=tmp_path))
    assert packed.name == f"{chart.name}-{harness.project_version()}.tgz"
    assert harness.render(packed, values) == harness.render(chart, values)


@pytest.mark.parametrize("chart", [harness.OPERATOR, harness.APP], ids=lambda chart: chart.name)
def test_charts_have_the_version_of_the_project(chart: Path) -> None:
    """A tag releases everything under one version."""
    facts = yaml.safe_load((chart / "Chart.yaml").read_text())
    project = harness.project_version()
    assert (facts["version"], facts["appVersion"]) == (project, project)
