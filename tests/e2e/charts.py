"""Helm as a person uses it: the command, if it is on the PATH; otherwise Helm's own library, which pip brings."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

SECONDS = 60
"""A release is ready within a minute, or has failed."""


def helm(
    action: str, release: str, *, namespace: str, chart: Path | None = None, values: dict[str, Any] | None = None
) -> None:
    """Run ``helm install``, ``upgrade``, ``test`` or ``uninstall``, and wait for what it did."""
    if shutil.which("helm") is None:
        _library(action, release, namespace=namespace, chart=chart, values=values)
        return
    words = ["helm", action, release, *([str(chart), "--values", "-"] if chart else []), "--namespace", namespace]
    words += [f"--timeout={SECONDS}s", "--logs" if action == "test" else "--wait"]
    done = subprocess.run(words, input=json.dumps(values), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}{done.stdout}"


def _library(action: str, release: str, *, namespace: str, chart: Path | None, values: dict[str, Any] | None) -> None:
    import helm_python  # noqa: PLC0415 - not needed where the command is

    with helm_python.Config(namespace=namespace) as cluster:
        match action:
            case "install":
                cluster.install(str(chart), release, values, namespace=namespace, timeout=SECONDS, wait="watcher")
            case "upgrade":
                cluster.upgrade(str(chart), release, values, namespace=namespace, timeout=SECONDS, wait="watcher")
            case "test":
                cluster.test(release, timeout=SECONDS, logs=True)
            case "uninstall":
                cluster.uninstall(release, timeout=SECONDS, wait="watcher")
            case _:
                raise AssertionError(action)
