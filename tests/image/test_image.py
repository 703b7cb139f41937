"""What docs/IMAGE.md promises of the images: built, and run as a restricted pod is, on a base that has no shell."""

from __future__ import annotations

import marshal
import re
import stat
import tomllib
from typing import TYPE_CHECKING

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.image.podman import ROOT
from tests.integration.server import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.image.index import Index
    from tests.image.podman import Podman

pytestmark = [pytest.mark.xdist_group("image"), pytest.mark.timeout(400)]

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DOCUMENT = (ROOT / "docs/IMAGE.md").read_text()
USER = 65532

APP = """
import os, subprocess, sys

FORK = "import os; pid = os.fork(); print(pid, flush=True) if pid else os.read(0, 1)"

def orphan():
    "Start a process whose parent ends at once, and which ends with this request; return its pid."
    with subprocess.Popen([sys.executable, "-c", FORK], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        return parent.stdout.readline()

def app(environ, start_response):
    body = orphan() if environ["PATH_INFO"] == "/orphan" else b"hello"
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""


@pytest.fixture
def mounted(tmp_path: Path) -> str:
    """Podman's option for an application in /app."""
    (tmp_path / "app").mkdir()
    (tmp_path / "app/app.py").write_text(APP)
    return f"--volume={tmp_path}/app:/app:ro"


def files(tree: Path) -> Iterator[Path]:
    """All files and directories of an image."""
    yield tree
    for directory, names, more in tree.walk():
        yield from (directory / name for name in (*names, *more))


# --- what is in them --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fixture", "command", "port"), [("server", "refork", 8000), ("operator", "refork-operator", 8080)]
)
def test_an_image_tells_what_it_is_and_how_it_runs(
    fixture: str, command: str, port: int, builder: Podman, request: pytest.FixtureRequest
) -> None:
    """Its labels are for scanners, and its user is a number, which is all that runAsNonRoot believes."""
    config = builder.inspect(request.getfixturevalue(fixture))["Config"]
    assert config["User"] == f"{USER}:{USER}"
    assert config["Entrypoint"] == [command]
    assert not config.get("Cmd")
    assert config["ExposedPorts"] == {f"{port}/tcp": {}}
    labels = {name.removeprefix("org.opencontainers.image."): value for name, value in config["Labels"].items()}
    assert labels["title"] == command
    assert labels["version"] == PROJECT["version"]
    assert labels["licenses"] == PROJECT["license"]
    assert {"base.name", "description", "documentation", "revision", "source", "url", "vendor"} < set(labels)


@pytest.mark.parametrize("fixture", ["server", "operator"])
def test_its_user_can_write_to_nothing_but_tmp(fixture: str, builder: Podman, request: pytest.FixtureRequest) -> None:
    """No file is the user's, and none is everybody's to write."""
    with builder.tree(request.getfixturevalue(fixture)) as tree:
        facts = {path.relative_to(tree): path.lstat() for path in files(tree)}
    owned = [path for path, fact in facts.items() if USER in (fact.st_uid, fact.st_gid)]
    assert not owned
    open_to_all = [
        str(path) for path, fact in facts.items() if fact.st_mode & stat.S_IWOTH and not stat.S_ISLNK(fact.st_mode)
    ]
    assert open_to_all == ["tmp"]


@pytest.mark.parametrize("fixture", ["server", "operator"])
def test_nothing_is_left_of_the_build(fixture: str, builder: Podman, request: pytest.FixtureRequest) -> None:
    """Neither sources nor secrets are, and no file has the name of a C source or an object."""
    with builder.tree(request.getfixturevalue(fixture)) as tree:
        left = [name for name in ("src", "wheels", "files", "etc/pip.conf", "run/secrets") if (tree / name).exists()]
        sources = [path.name for path in files(tree) if path.suffix in {".c", ".o"} and "refork" in str(path)]
    assert not left
    assert not sources


def test_all_modules_are_compiled_and_will_not_be_compiled_again(builder: Podman, server: str) -> None:
    """A time in the bytecode is wrong once a layer's times are rewritten, and a read-only container keeps nothing."""
    with builder.tree(server) as tree:
        (package,) = tree.glob("usr/local/lib/python3*/site-packages/refork")
        sources = [path for path in files(package) if path.suffix == ".py"]
        assert sources
        for source in sources:
            (compiled,) = source.parent.glob(f"__pycache__/{source.stem}.*.pyc")
            head, code = compiled.read_bytes()[:16], compiled.read_bytes()[16:]
            assert int.from_bytes(head[4:8], "little") == 0b01, f"{compiled} is checked against its source"
            assert marshal.loads(code).co_filename == f"/{source.relative_to(tree)}"


def test_scanners_find_every_package_with_its_version(builder: Podman, server: str) -> None:
    """An SBOM is made from the metadata that pip leaves: what refork depends on is all there, and its own too."""
    ask = "from importlib.metadata import distributions as all; print(*(d.name for d in all() if d.version))"
    found = {canonicalize_name(name) for name in builder.run(server, "-c", ask, entrypoint="python3").split()}
    wanted = {canonicalize_name(Requirement(line).name) for line in PROJECT["dependencies"]}
    assert wanted | {"refork", "uvicorn-worker", "pyjwt", "cryptography"} <= found


# --- how they run -----------------------------------------------------------------------------------------------------


def test_the_base_has_no_shell(builder: Podman, server: str) -> None:
    """So all that the tests here see working works without one."""
    with builder.tree(server) as tree:
        assert not [name for name in ("sh", "bash", "dash", "busybox", "env") if (tree / "usr/bin" / name).exists()]


def test_a_container_without_an_application_says_what_is_missing(builder: Podman, server: str) -> None:
    """It ends, and names the remedy."""
    with builder.started(server) as container:
        assert container.process.wait(60) == 2
        assert "no application: name it" in container.log.read_text()


def test_as_a_restricted_pod_it_serves_reforks_reaps_and_stops(builder: Podman, server: str, mounted: str) -> None:
    """As process 1 of a user without a name, with nothing to write to, no capability and no shell."""
    with builder.started(server, "app:app", "--workers=2", "--canary-seconds=0.1", options=(mounted,)) as container:
        container.says(r"Listening at: http://0\.0\.0\.0:8000 \(1\)")
        container.says("serving: workers=2 gen=0")
        assert container.get() == "hello"
        container.do("reforkctl", "refork", "--wait")
        container.says(r"mold gen=1 .* sealed")
        orphan = container.get("/orphan").strip()
        until(lambda: orphan not in container.do("python3", "-c", "import os; print(*os.listdir('/proc'))").split(),
              what="the orphan to be reaped")  # fmt: skip
        assert container.get() == "hello"
        assert container.stop() == 0
        assert "Traceback" not in container.log.read_text()


def test_the_operator_answers_without_a_cluster_what_it_can_be_told(builder: Podman, operator: str) -> None:
    """All that it needs is in its image."""
    assert "--namespaces" in builder.run(operator, "--help")


def test_the_operator_says_that_there_is_no_cluster(builder: Podman, operator: str) -> None:
    """It loads the Kubernetes client, finds nothing to talk to, and ends."""
    with builder.started(operator) as container:
        assert container.process.wait(60) == 1
        assert "no cluster" in container.log.read_text()


# --- how they are used ------------------------------------------------------------------------------------------------


def dockerfiles() -> dict[str, str]:
    """The Dockerfiles of the documentation: the new side of the two-line change, and the one on refork's image."""
    (change,) = re.findall(r"```diff\n(.*?)```", DOCUMENT, re.DOTALL)
    (derived,) = re.findall(r"```dockerfile\n(.*?)```", DOCUMENT, re.DOTALL)
    new = "".join(line[1:] for line in change.splitlines(keepends=True) if not line.startswith("-"))
    return {"changed": new, "derived": derived}


def test_the_change_to_a_gunicorn_image_is_two_lines() -> None:
    """As it is promised; one gives way to one."""
    (change,) = re.findall(r"```diff\n(.*?)```", DOCUMENT, re.DOTALL)
    gone, come = ([line[1:] for line in change.splitlines() if line.startswith(sign)] for sign in "-+")
    assert len(gone) == len(come) == 2
    assert [line.replace("gunicorn", "refork") for line in gone] == come


@pytest.mark.parametrize(("which", "on"), [("changed", "localhost/base"), ("derived", "localhost/server")])
def test_the_dockerfiles_of_the_documentation_build_and_serve(  # noqa: PLR0917 - fixtures are known by name
    which: str, on: str, builder: Podman, index: Index, wheels: Path, tmp_path: Path
) -> None:
    """A Flask application, restricted like the images themselves."""
    (tmp_path / "Dockerfile").write_text(dockerfiles()[which])
    (tmp_path / "app.py").write_text("from flask import Flask\napp = Flask(__name__)\napp.get('/')(lambda: 'flask')\n")
    builder.build(f"localhost/{which}", tmp_path, f"--from={on}", *index.volumes(wheels))
    with builder.started(f"localhost/{which}") as container:
        container.says("serving: workers=4 gen=0")
        assert container.get() == "flask"
        assert container.stop() == 0
