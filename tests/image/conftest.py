"""The images, built once by podman from the sources as they are, on a base that is made of this machine."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest

from tests.image import base
from tests.image.index import Index
from tests.image.podman import ROOT, Podman

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PROGRAMS = ("crun", "ldconfig", "nsenter", "podman", "tar", "unshare")
BASE = "localhost/base"


@pytest.fixture(scope="session")
def podman() -> Iterator[Podman]:
    """A podman that has no image."""
    if os.geteuid() != 0:
        pytest.skip("only root makes namespaces for containers everywhere: run this test as root")
    if missing := [name for name in PROGRAMS if shutil.which(name) is None]:
        pytest.skip(f"no {', '.join(missing)} on the PATH: apt install podman crun")
    with Podman() as made:
        yield made


@pytest.fixture(scope="session")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """Where packages come from here."""
    return Index(tmp_path_factory.mktemp("index"))


@pytest.fixture(scope="session")
def builder(podman: Podman, index: Index, tmp_path_factory: pytest.TempPathFactory) -> Podman:
    """A podman that has the base."""
    if obstacle := base.obstacle():
        pytest.skip(obstacle)
    root: Path = tmp_path_factory.mktemp("base")
    base.make(root)
    podman.import_tree(root, BASE)
    shutil.rmtree(root)
    return podman


def _build(builder: Podman, index: Index, target: str) -> str:
    image = f"localhost/{target}"
    arguments = (f"BASE_IMAGE={BASE}", f"BUILD_IMAGE={BASE}", "SOURCE_DATE_EPOCH=1700000000")
    options = [word for argument in arguments for word in ("--build-arg", argument)]
    builder.build(image, ROOT, "--target", target, *options, *index.secrets())
    return image


@pytest.fixture(scope="session")
def server(builder: Podman, index: Index) -> str:
    """The image of the server."""
    return _build(builder, index, "server")


@pytest.fixture(scope="session")
def operator(builder: Podman, index: Index, server: str) -> str:
    """The image of the operator; after the server's, whose wheel it takes."""
    return _build(builder, index, "operator")


@pytest.fixture(scope="session")
def wheels(builder: Podman, index: Index, server: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the wheel that was built on the way, which is on no index yet."""
    directory: Path = tmp_path_factory.mktemp("wheels")
    with builder.tree(_build(builder, index, "wheel")) as tree:
        shutil.copytree(tree / "wheels", directory, dirs_exist_ok=True)
    return directory
