"""One namespace of a real cluster, by the kubectl that a person would use."""

from __future__ import annotations

import base64
import json
import subprocess
import time
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Callable

Object = dict[str, Any]
PATIENCE = 180.0
INSTANCE = "app.kubernetes.io/instance"

_MEMORY = """
import pathlib
root = pathlib.Path("/sys/fs/cgroup")
files = [(root / "memory/memory.usage_in_bytes", "total_inactive_file"), (root / "memory.current", "inactive_file")]
used, cache = next(each for each in files if each[0].exists())
stat = dict(line.split() for line in used.with_name("memory.stat").read_text().splitlines())
print(int(used.read_text()) - int(stat[cache]))
"""
"""What the kubelet calls the working set, read in the container; in the words of cgroup v1, or else of v2."""


def until[Found](look: Callable[[], Found], *, what: str, seconds: float = PATIENCE) -> Found:
    """Wait until something is so, and return it."""
    deadline = time.monotonic() + seconds
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.5)


class Cluster:
    """A namespace, and what a person does and sees in it."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace

    def kubectl(self, *words: str, stdin: str | None = None, check: bool = True) -> str:
        """Run kubectl in the namespace, and return what it says."""
        command = ["kubectl", "--namespace", self.namespace, *words]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=300, check=False)
        assert not check or done.returncode == 0, f"{' '.join(command)}: {done.stderr}{done.stdout}"
        return done.stdout

    def apply(self, *manifests: Object) -> None:
        """Create objects, or change them."""
        self.kubectl("apply", "--server-side", "-f", "-", stdin=yaml.safe_dump_all(manifests))

    def secret(self, name: str, *, kind: str = "Opaque", **data: bytes) -> None:
        """Create a Secret; keys are written with ``_`` for a dot."""
        encoded = {key.replace("_", "."): base64.b64encode(value).decode() for key, value in data.items()}
        self.apply({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "type": kind, "data": encoded})

    def get(self, kind: str, name: str) -> Object:
        """Read one object."""
        found: Object = json.loads(self.kubectl("get", kind, name, "-o", "json"))
        return found

    def pods(self, release: str) -> list[str]:
        """Name the pods of a release that are to stay; not those of its tests."""
        listed = json.loads(self.kubectl("get", "pods", "-l", f"{INSTANCE}={release}", "-o", "json"))["items"]
        staying = [pod["metadata"] for pod in listed if "deletionTimestamp" not in pod["metadata"]]
        return sorted(meta["name"] for meta in staying if meta.get("ownerReferences"))

    def annotate(self, kind: str, name: str, value: str) -> None:
        """Ask for a refork, in the words of the documentation."""
        self.kubectl("annotate", kind, name, f"refork.dev/requestedAt={value}", "--overwrite")

    def answer(self, kind: str, name: str, value: str) -> str:
        """Return the outcome of a request; empty while there is none."""
        found = self.get(kind, name)["metadata"].get("annotations") or {}
        return str(found.get("refork.dev/outcome", "")) if found.get("refork.dev/handledAt") == value else ""

    def status(self, policy: str) -> Object:
        """Return the status of a policy."""
        found: Object = self.get("reforkpolicy", policy).get("status") or {}
        return found

    def memory(self, pod: str) -> int:
        """Return how much memory the kernel charges to the application's container."""
        return int(self.kubectl("exec", pod, "--container", "app", "--", "python3", "-c", _MEMORY))

    def names(self) -> set[str]:
        """Name everything that is in the namespace."""
        kinds = self.kubectl("api-resources", "--verbs=list", "--namespaced", "--output=name").split()
        kinds = [kind for kind in kinds if not kind.startswith(("events", "endpoints", "endpointslices"))]
        return set(self.kubectl("get", ",".join(kinds), "--ignore-not-found", "--output=name").split())

    def story(self) -> str:
        """Tell what one wants to read when a test has failed."""
        words = [
            ("get", "pods,deployments,reforkpolicies", "-o", "wide"),
            ("describe", "pods,reforkpolicies"),
            ("get", "events", "--sort-by=.lastTimestamp"),
            ("logs", "-l", "app.kubernetes.io/name=refork-operator", "--tail=80", "--prefix"),
            ("logs", "-l", "app.kubernetes.io/name=refork-app", "--tail=40", "--prefix"),
        ]
        told = [f"$ kubectl {' '.join(word)}\n{self.kubectl(*word, check=False)}" for word in words]
        return "\n\n".join([*told, "what there is:", *sorted(self.names())])
