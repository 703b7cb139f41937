"""What the operator may do is what it does: nothing that its chart grants can be taken away, and nothing is missing.

One story uses everything that the operator can do. It is told once in a namespace with all rights and, side by side,
once for each right in a namespace where that one right is missing. Every namespace has an operator of its own.
"""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import yaml

from tests.fakes.apiserver import ADMIN, Account
from tests.helm import harness
from tests.operator.conftest import ROOT, Box, account, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.xdist_group("rights")
MIB = 1 << 20
TOKEN = "control"
WHOLE = "whole"
KINDS = ("Deployment", "StatefulSet", "DaemonSet")
GRANTED = account("operator", harness.render(harness.OPERATOR, {"watch": {"namespaces": ["watched"]}}))
RULES = [rule for rules in GRANTED.namespaces.values() for rule in rules]


@dataclass(frozen=True, order=True)
class Right:
    """One verb on one resource."""

    verb: str
    resource: str

    @property
    def namespace(self) -> str:
        """Where the story is told without it."""
        return f"no-{self.verb}-{self.resource.replace('/', '-')}"

    @property
    def refusal(self) -> str:
        """What the API server says when it is missing."""
        return f'cannot {self.verb} resource "{self.resource}"'


RIGHTS = sorted({Right(verb, name) for rule in RULES for name in rule["resources"] for verb in rule["verbs"]})


def rules_without(missing: Right | None) -> list[dict[str, Any]]:
    """Return all rules with one verb taken out of one resource."""
    return [
        {**rule, "resources": [name], "verbs": [verb for verb in rule["verbs"] if Right(verb, name) != missing]}
        for rule in RULES
        for name in rule["resources"]
    ]


@dataclass(frozen=True)
class Ending:
    """How a story has ended: what the API server was asked and refused, and how many refusals the metrics count."""

    used: set[Right]
    refused: set[Right]
    errors: float


class Stories:
    """The same story in many namespaces."""

    def __init__(self, box: Box) -> None:
        self.box = box
        self.missing: dict[str, Right | None] = {WHOLE: None, **{right.namespace: right for right in RIGHTS}}
        for namespace, right in self.missing.items():
            box.api.accounts[namespace] = Account(namespace, rules=[], namespaces={namespace: rules_without(right)})
            self._set_the_scene(namespace)
        self.many: subprocess.Popen[str] | None = None

    def _set_the_scene(self, namespace: str) -> None:
        """A pod with much to win, a policy that only says so, a pod that is broken, and a workload of each kind."""
        secret = {"metadata": {"name": "control", "namespace": namespace}}
        self.box.api.create("secrets", secret | {"data": {"token": base64.b64encode(TOKEN.encode()).decode()}})
        self.box.pod("rich", namespace=namespace, token=TOKEN, gained=[100 * MIB] * 4)
        self.box.pod("broken", namespace=namespace, behaviour="nonsense")
        for kind in KINDS:
            self.box.deployment(kind.lower(), namespace=namespace, replicas=1, kind=kind, refork_seconds=0.1)
        self.box.policy(namespace=namespace, mode="Observe", control={"tokenSecretRef": {"name": "control"}})

    def recommend(self) -> None:
        """Have every event told once by an operator that has all rights, so that the next one counts it up."""
        self.box.kubeconfig.write_text(yaml.safe_dump(self.box.api.kubeconfig(ADMIN)))
        operator = self.box.operator()
        until(
            lambda: len(self.box.events("ReforkRecommended")) == len(self.missing), what="recommendations", seconds=60
        )
        assert operator.stop() == 0

    def tell(self) -> None:
        """Start an operator in each namespace, and ask for every workload to be reforked."""
        commands = self.box.directory / "commands"
        commands.write_text(json.dumps({str(self._log(each)): self._options(each) for each in self.missing}))
        paths = os.pathsep.join(str(ROOT / name) for name in ("server", "operator"))
        command = [sys.executable, "-m", "tests.operator.many", str(commands)]
        self.many = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": paths}, start_new_session=True)
        for namespace in self.missing:
            for kind in KINDS:
                self.box.api.annotate(f"{kind.lower()}s", kind.lower(), "please", namespace)

    def _options(self, namespace: str) -> list[str]:
        kubeconfig = self.box.directory / f"{namespace}.kubeconfig"
        kubeconfig.write_text(yaml.safe_dump(self.box.api.kubeconfig(namespace)))
        return [
            *("--kubeconfig", str(kubeconfig), "--namespaces", namespace, "--lease-namespace", namespace),
            *("--listen", "127.0.0.1:0", "--settle", "0.2", "--poll-timeout", "2", "--log-format", "text"),
            # So many at once may be slow to renew a Lease, and none of them shall end for that.
            *("--lease-duration", "90", "--lease-renew-deadline", "80", "--lease-retry", "1"),
        ]

    def _log(self, namespace: str) -> Path:
        path = self.box.directory / f"{namespace}.log"
        path.touch()
        return path

    def ending(self, namespace: str) -> Ending:
        """Wait until a story is told, or its operator's log says what is refused."""
        log, missing = self._log(namespace), self.missing[namespace]
        if missing is None:
            until(lambda: self.outcomes(namespace) == ["Succeeded: 1 of 1 pods"] * 3, what="all reforked", seconds=60)
            until(lambda: self._used(namespace) >= set(RIGHTS), what="every right in use", seconds=60)
        else:
            until(lambda: missing.refusal in log.read_text().replace("\\", ""), what=missing.refusal, seconds=60)
        return Ending(
            used=self._used(namespace),
            refused=self._refused(namespace),
            errors=self._errors(log.read_text()),
        )

    def outcomes(self, namespace: str) -> list[str]:
        """Return how the requests to the workloads ended."""
        objects = [self.box.api.get(f"{kind.lower()}s", kind.lower(), namespace) for kind in KINDS]
        return [item["metadata"]["annotations"].get("refork.dev/outcome", "") for item in objects]

    def _used(self, namespace: str) -> set[Right]:
        asked = self.box.api.asked(who=namespace)
        return {Right(each.verb, each.resource) for each in asked} - self._refused(namespace)

    def _refused(self, namespace: str) -> set[Right]:
        return {Right(each.verb, each.resource) for each in self.box.api.asked(who=namespace, status=403)}

    @staticmethod
    def _errors(log: str) -> float:
        """Read from an operator's metrics how often it was refused something."""
        address = re.search(r"listening address=(\S+)", log)
        assert address is not None
        text = httpx.get(f"http://{address[1]}/metrics").text
        found = re.findall(r'^refork_operator_api_errors_total\{code="403",.*\} (\S+)', text, re.MULTILINE)
        return sum(map(float, found))

    def close(self) -> None:
        """End all operators."""
        if self.many is not None:
            os.killpg(self.many.pid, signal.SIGKILL)
            self.many.wait(10)


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stories]:
    """All stories, under way."""
    box = Box(tmp_path_factory.mktemp("rights"))
    told = Stories(box)
    try:
        told.recommend()
        told.tell()
        yield told
    finally:
        told.close()
        box.close()


def test_every_right_is_used_and_no_other_is_missed(stories: Stories) -> None:
    """The story of a namespace uses exactly what the chart grants, and is refused nothing."""
    ending = stories.ending(WHOLE)
    assert ending.used == set(RIGHTS)
    assert ending.refused == set()
    assert ending.errors == 0


@pytest.mark.parametrize("right", RIGHTS, ids=lambda right: right.namespace)
def test_a_missing_right_is_seen(stories: Stories, right: Right) -> None:
    """The log says what is forbidden, and the metrics count it; nothing else is refused."""
    ending = stories.ending(right.namespace)
    assert ending.refused == {right}
    assert ending.errors >= 1
