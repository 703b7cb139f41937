"""The exporter of the chart watches a real gunicorn, both with the words that the chart renders."""

from __future__ import annotations

import http.client
import re
import subprocess
import sys
import tomllib
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import yaml

from tests.helm import harness
from tests.helm.app_chart import IMAGE, container_of, rendered
from tests.integration.server import SOURCES, WSGI, free_port, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.helm.harness import Object

README = (harness.APP / "README.md").read_text()


@contextmanager
def running(*command: str, directory: Path) -> Iterator[int]:
    """Run a command in a directory that has no home; yield its process id."""
    environment = {"PATH": "/usr/bin:/bin", "HOME": "/", "PYTHONPATH": SOURCES}
    with (directory / "log").open("ab") as log:
        process = subprocess.Popen(command, cwd=directory, env=environment, stdout=log, stderr=log)
    try:
        yield process.pid
    finally:
        process.terminate()
        assert process.wait(30) == 0, (directory / "log").read_text()


def get(port: int, path: str) -> str:
    """Return the body of a good answer; nothing while there is none."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    with closing(connection):
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.read().decode() if answer.status == 200 else ""
        except ConnectionError:
            return ""


def documented_values() -> Object:
    """Return the values that the README gives for the exporter."""
    (block,) = re.findall(r"```yaml\n# values.yaml\n(.*?)```", README, re.DOTALL)
    values: Object = yaml.safe_load(block)
    return values


def test_the_documented_values_show_the_memory_of_a_plain_gunicorn(tmp_path: Path) -> None:
    """With the words of the README, adapted in module and ports, gunicorn serves and the exporter sees its workers."""
    values = documented_values()
    assert values["image"].keys() == IMAGE.keys()
    app = container_of(rendered(values))
    port, metrics = free_port(), free_port()
    (tmp_path / "app.py").write_text(WSGI)
    adapted = {"--bind=:8000": f"--bind=127.0.0.1:{port}", "shop.wsgi:application": "app:app"}
    assert app["command"] == ["gunicorn"]
    words = [adapted.get(word, word) for word in app["args"]]
    with running(sys.executable, "-m", "gunicorn", *words, directory=tmp_path) as master:
        until(lambda: get(port, "/") == "hello", what="gunicorn")
        values["exporter"]["extraArgs"] = [f"--pid={master}", "--interval=0.2", "--estimate-interval=0"]
        exporter = container_of(rendered(values), "exporter")
        words = [word.replace("=:9090", f"=127.0.0.1:{metrics}") for word in exporter["args"]]
        scripts = tomllib.loads((harness.ROOT / "pyproject.toml").read_text())["project"]["scripts"]
        module, _, _ = scripts[exporter["command"][0]].partition(":")
        with running(sys.executable, "-m", module, *words, directory=tmp_path):
            until(lambda: get(metrics, exporter["livenessProbe"]["httpGet"]["path"]), what="the liveness probe")
            seen = 'refork_memory_pss_bytes{role="worker",slot="3"} '
            until(lambda: seen in get(metrics, "/metrics"), what="the memory of four workers")
