"""The workflows: well formed, with no more rights than they need, and for the Pythons that the project names."""

from __future__ import annotations

import re
import subprocess
import tomllib
from typing import Any

import pytest
import yaml
from yamllint import linter
from yamllint.config import YamlLintConfig

from tests.image.podman import ROOT
from tests.image.test_dockerfile import PROGRAMS

WORKFLOWS = sorted((ROOT / ".github/workflows").iterdir())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

each = pytest.mark.parametrize("name", [path.name for path in WORKFLOWS])


def text(name: str) -> str:
    return (ROOT / ".github/workflows" / name).read_text()


def jobs(name: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load(text(name))["jobs"]
    return found


def run(program: str, *words: str) -> None:
    done = subprocess.run([PROGRAMS / program, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_workflows_are_what_github_understands() -> None:
    """Their form is that of GitHub's schema."""
    run("check-jsonschema", "--builtin-schema", "vendor.github-workflows", *map(str, WORKFLOWS))


def test_an_auditor_finds_nothing_in_the_workflows() -> None:
    """No action that could change under us, no credential left lying, no text of strangers in a shell."""
    run("zizmor", "--offline", "--no-progress", "--persona=regular", "--min-severity=medium", ".github")


def test_somebody_tells_of_newer_actions() -> None:
    """What is named by its commit never changes by itself."""
    run("check-jsonschema", "--builtin-schema", "vendor.dependabot", ".github/dependabot.yaml")
    updates = yaml.safe_load((ROOT / ".github/dependabot.yaml").read_text())["updates"]
    assert [each["package-ecosystem"] for each in updates] == ["github-actions"]


@each
def test_git_answers_in_every_container(name: str) -> None:
    """There root runs on the checkout of another user, about which git tells nothing unless told to."""
    for job in jobs(name).values():
        told = [step["run"] for step in job.get("steps", []) if "safe.directory" in step.get("run", "")]
        assert bool(told) is ("container" in job)


def test_a_real_cluster_is_part_of_every_change() -> None:
    """The suite that is skipped without one is run where there is one."""
    assert "make e2e-kind PYTHON=python" in [step.get("run") for step in jobs("ci.yaml")["cluster"]["steps"]]


@each
def test_a_workflow_is_written_like_all_yaml_here(name: str) -> None:
    """As .yamllint.yaml says."""
    config = YamlLintConfig(file=str(ROOT / ".yamllint.yaml"))
    assert not list(linter.run(text(name), config))


@each
def test_a_workflow_has_no_right_that_no_job_asks_for(name: str) -> None:
    """Each job says what it may do, and how long it may take."""
    assert yaml.safe_load(text(name))["permissions"] == {}
    for job in jobs(name).values():
        assert job["permissions"]
        assert "uses" in job or job["timeout-minutes"]


@each
def test_only_jobs_that_publish_may_write(name: str) -> None:
    """What is run for a pull request may read, and nothing else."""
    may_write = {
        job for job, facts in jobs(name).items() if any(right == "write" for right in facts["permissions"].values())
    }
    assert may_write == {"release.yaml": {"pypi", "images", "charts"}, "docs.yaml": {"deploy"}}.get(name, set())


@each
def test_every_action_is_one_commit_with_its_version_beside_it(name: str) -> None:
    """A tag can be moved, and a number of forty digits says nothing to people."""
    used = re.findall(r"uses: ((?!\./).+)", text(name))
    assert [line for line in used if not re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}  # v\d+\.\d+\.\d+", line)] == []


def test_an_action_is_the_same_commit_everywhere() -> None:
    """A version that is raised in one workflow is raised in all."""
    used = {line for path in WORKFLOWS for line in re.findall(r"uses: (\S+@\S+)", path.read_text())}
    assert len({line.partition("@")[0] for line in used}) == len(used)


def test_the_tested_pythons_are_those_that_the_project_names() -> None:
    """The classifiers, the tests and the wheels agree."""
    named = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["project"]["classifiers"]))
    assert jobs("ci.yaml")["test"]["strategy"]["matrix"]["python"] == named
    wheels = PROJECT["tool"]["cibuildwheel"]["build"]
    assert wheels == [f"cp{version.replace('.', '')}-*" for version in named]
    assert PROJECT["project"]["requires-python"] == f">={named[0]}"


def test_every_target_and_every_chart_is_released() -> None:
    """What the Dockerfile and helm/ have is what people are told to pull."""
    released = jobs("release.yaml")
    images = {entry["target"]: entry["image"] for entry in released["images"]["strategy"]["matrix"]["include"]}
    assert images == {"server": "ghcr.io/refork/refork", "operator": "ghcr.io/refork/refork-operator"}
    charts = {path.parent.name for path in (ROOT / "helm").glob("*/Chart.yaml")}
    assert set(released["charts"]["strategy"]["matrix"]["chart"]) == charts
