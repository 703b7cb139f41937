"""How the images are written down, before anything is built."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

from tests.image.podman import ROOT

PROGRAMS = Path(sys.executable).parent
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    """Neither a fault nor a matter of style."""
    done = subprocess.run(
        [PROGRAMS / "hadolint", "--no-color", "Dockerfile"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_images_have_the_version_of_the_project() -> None:
    """A label cannot be computed while an image is built, so it is written down twice."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert re.findall(r"^ARG VERSION=(.+)$", DOCKERFILE, re.MULTILINE) == [version]


def test_nothing_is_run_in_the_stages_that_become_images() -> None:
    """Else their base would need a shell."""
    _, stages = DOCKERFILE.split("FROM ${BASE_IMAGE} AS common")
    assert not re.findall(r"^RUN ", stages, re.MULTILINE)


def test_builds_need_no_registry_but_that_of_their_bases() -> None:
    """A frontend is fetched from a registry as well, which a mirror may not have."""
    assert "# syntax=" not in DOCKERFILE
    assert set(re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)) == {
        "${BUILD_IMAGE}", "${BASE_IMAGE}", "wheel", "common"
    }  # fmt: skip
