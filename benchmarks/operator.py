"""What the operator costs and how fast it is, with 2,000 pods that answer real HTTP on loopback every 15 seconds.

The operator is a process of its own, measured from outside. Pods and API server are fakes in this process: a pod
answers as a server with four workers does, each on its own loopback address; the API server speaks HTTPS and enforces
the operator's roles. Requests to the API server must follow changes, not pods: they are counted while nothing changes,
and while pods are reforked.
"""

from __future__ import annotations

import http.client
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from benchmarks._common import MIB, ROOT, BenchmarkError, Target, command, conclude, say, table
from tests.fakes.apiserver import Account, ApiServer
from tests.fakes.pods import FakePod, FakePods

if TYPE_CHECKING:
    from collections.abc import Callable

PODS = 2000
REPLICAS = 20
INTERVAL = 15.0
QUIET_SECONDS = 75.0
SAMPLES = 12
TOKEN = "operator"


class Cluster:
    """2,000 pods, one policy, and the operator."""

    def __init__(self, directory: Path) -> None:
        self.api = ApiServer().start()
        self.api.bookmark_seconds = 30.0
        self.api.install(yaml.safe_load((ROOT / "helm/refork/files/reforkpolicy-crd.yaml").read_text()))
        rules = yaml.safe_load((ROOT / "helm/refork/files/operator-rules.yaml").read_text())
        everything = [*rules["watched"], *rules["secrets"], *rules["lease"]]
        self.api.accounts[TOKEN] = Account("operator", rules=everything)
        self.pods = FakePods().start()
        self.names: dict[str, FakePod] = {}
        kubeconfig = directory / "kubeconfig"
        kubeconfig.write_text(yaml.safe_dump(self.api.kubeconfig(TOKEN)))
        for number in range(PODS):
            self._add(number)
        self._add_policy()
        self.log = (directory / "log").open("w")
        paths = os.pathsep.join(str(ROOT / name) for name in ("server", "operator"))
        options = ["--kubeconfig", str(kubeconfig), "--listen", "127.0.0.1:0", "--log-format", "text"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "refork_operator", *options],
            env={**os.environ, "PYTHONPATH": paths},
            stderr=self.log,
        )
        self.address = ""
        self.wait(self._listening, seconds=30)

    def _add(self, number: int) -> None:
        app, replica = divmod(number, REPLICAS)
        fake = self.pods.add(number, refork_seconds=0.5)
        name = f"app-{app}-5c4f-{replica}"
        self.names[name] = fake
        owner = {"kind": "ReplicaSet", "name": f"app-{app}-5c4f", "uid": str(app), "controller": True}
        container = {
            "name": "app",
            "image": "registry.example/app:1",
            "env": [{"name": f"SETTING_{each}", "value": "x" * 40} for each in range(20)],
            "ports": [{"name": "refork-control", "containerPort": self.pods.port}],
            "resources": {"requests": {"memory": "1Gi"}, "limits": {"memory": "2Gi"}},
        }
        self.api.create(
            "pods",
            {
                "metadata": {
                    "name": name,
                    "labels": {"app": f"app-{app}", "tier": "web", "pod-template-hash": "5c4f"},
                    "ownerReferences": [owner],
                    "creationTimestamp": "2026-01-01T00:00:00Z",
                },
                "spec": {"nodeName": f"node-{number % 50}", "containers": [container]},
                "status": {
                    "phase": "Running",
                    "podIP": fake.address,
                    "conditions": [{"type": "Ready", "status": "True"}],
                },
            },
        )

    def _add_policy(self) -> None:
        spec = {
            "selector": {"matchLabels": {"tier": "web"}},
            "mode": "Enforce",
            "interval": f"{INTERVAL:.0f}s",
            "triggers": [{"metric": "PredictedGain", "threshold": "64Mi", "sustainedFor": "0s"}],
        }
        self.api.create("reforkpolicies", {"metadata": {"name": "all"}, "spec": spec})

    def _listening(self) -> bool:
        found = re.search(r"listening address=(\S+)", Path(self.log.name).read_text())
        self.address = found[1] if found else ""
        return bool(found)

    def close(self) -> None:
        """End everything."""
        self.process.kill()
        self.process.wait()
        self.log.close()
        self.pods.stop()
        self.api.stop()

    def wait(self, look: Callable[[], object], *, seconds: float) -> None:
        """Wait until something is so."""
        deadline = time.monotonic() + seconds
        while not look():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise BenchmarkError("it did not happen; the log ends with:\n" + self.tail())
            time.sleep(0.01)

    def tail(self) -> str:
        """The end of the operator's log."""
        return "\n".join(Path(self.log.name).read_text().splitlines()[-10:])

    def cpu_seconds(self) -> float:
        """The processor time that the operator has used."""
        words = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")

    def rss(self) -> int:
        """Its resident memory; nothing of it is shared with another process."""
        found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{self.process.pid}/status").read_text())
        return int(found[1]) * 1024 if found else 0

    def metric(self, name: str) -> float:
        """Read one of its metrics, summed over labels."""
        connection = http.client.HTTPConnection(self.address, timeout=10)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        return sum(float(line.split()[-1]) for line in text.splitlines() if re.match(rf"{name}[ {{]", line))

    def asked(self) -> int:
        """Requests to the API server so far."""
        return len(self.api.requests)


def quiet(cluster: Cluster) -> dict[str, float]:
    """Measure while nothing changes in the cluster, and every pod's memory moves."""
    cpu, began, requests, late, polls = (
        cluster.cpu_seconds(), time.monotonic(), cluster.asked(), cluster.metric("refork_operator_late_polls_total"),
        cluster.metric("refork_operator_polls_total"),
    )  # fmt: skip
    time.sleep(QUIET_SECONDS)
    seconds = time.monotonic() - began
    return {
        "cpu_share": round((cluster.cpu_seconds() - cpu) / seconds, 3),
        "rss_mib": round(cluster.rss() / MIB, 1),
        "late_polls": cluster.metric("refork_operator_late_polls_total") - late,
        "polls_per_second": round((cluster.metric("refork_operator_polls_total") - polls) / seconds, 1),
        "api_requests_per_minute": round((cluster.asked() - requests) / seconds * 60, 1),
    }


def delays(cluster: Cluster, cause: Callable[[str, FakePod], None], *, seconds: float) -> list[float]:
    """Give some pods a cause at random moments; return how long each took to be commanded."""
    idle = [name for name, pod in sorted(cluster.names.items()) if not pod.reforks]
    chosen = random.Random(7).sample(idle, SAMPLES)
    caused = {}
    for name in chosen:
        caused[name] = time.time()
        cause(name, cluster.names[name])
        time.sleep(random.Random(name).uniform(0.1, 0.6))
    cluster.wait(lambda: all(_after(cluster.names[name], at) for name, at in caused.items()), seconds=seconds + 20)
    return [_after(cluster.names[name], at) - at for name, at in caused.items()]


def _after(pod: FakePod, at: float) -> float:
    return next((when for when in pod.command_times if when >= at), 0.0)


def main() -> int:
    """Run it."""
    with tempfile.TemporaryDirectory() as directory:
        say(f"{PODS} pods, asked every {INTERVAL:.0f} s")
        cluster = Cluster(Path(directory))
        try:
            cluster.pods.each = _move
            cluster.wait(lambda: all(pod.polls for pod in cluster.pods.pods.values()), seconds=60)
            say("every pod was asked; now two more intervals to settle")
            time.sleep(2 * INTERVAL)
            figures = quiet(cluster)
            say(f"measured over {QUIET_SECONDS:.0f} s")
            requests = cluster.asked()
            grown = delays(
                cluster, lambda _, pod: pod.gained.__setitem__(slice(None), [80 * MIB] * 4), seconds=INTERVAL
            )
            say("memory grew in some pods: commanded")
            asked = delays(cluster, lambda name, _: _annotate(cluster, name), seconds=5)
            say("annotated some pods: commanded")
            time.sleep(8.0)
            figures["api_requests_per_refork"] = round((cluster.asked() - requests) / (2 * SAMPLES), 1)
            figures["threshold_to_command_seconds"] = round(max(grown), 2)
            figures["annotation_to_command_seconds"] = round(max(asked), 2)
            figures["rss_at_end_mib"] = round(cluster.rss() / MIB, 1)
        finally:
            cluster.close()
    print("\n" + table(("figure", "value"), [[key, value] for key, value in figures.items()]))
    targets = {
        "cpu_share": Target(at_most=0.30),
        "rss_mib": Target(at_most=200),
        "late_polls": Target(at_most=0),
        "polls_per_second": Target(at_least=0.98 * PODS / INTERVAL),
        "api_requests_per_minute": Target(at_most=60),
        "threshold_to_command_seconds": Target(at_most=INTERVAL + 2),
        "annotation_to_command_seconds": Target(at_most=2),
    }
    return conclude("operator", figures, targets)


def _move(pod: FakePod) -> None:
    """Let memory move a little, below every threshold."""
    if max(pod.gained) < 20 * MIB:
        pod.gained = [random.randint(1, 15) * MIB for _ in pod.gained]


def _annotate(cluster: Cluster, name: str) -> None:
    cluster.api.annotate("pods", name, datetime.now(UTC).isoformat())


if __name__ == "__main__":
    command(main)
