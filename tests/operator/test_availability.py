"""Operators die, hang and come back: nothing is forgotten, and nothing is done twice."""

from __future__ import annotations

import random
import signal
import time

import pytest

from tests.operator.conftest import Box, until
from tests.operator.test_process import MIB, now, watching

LEASE = ("--lease-duration", "2", "--lease-renew-deadline", "1.4", "--lease-retry", "0.3")


def test_the_standby_takes_over_within_twenty_seconds_of_a_kill(box: Box) -> None:
    """With the times that it is shipped with, and with no word from the one that died."""
    (pod,) = box.deployment("web", replicas=1)
    first = box.operator()
    watching(box, "pods")
    second = box.operator()
    second.says("started")
    assert not any("leader" in line for line in second.lines)
    first.kill()
    killed = time.monotonic()
    box.api.annotate("pods", "web-7d9f-0", now())
    until(lambda: pod.reforks == 1)
    assert time.monotonic() - killed < 20
    until(lambda: box.outcome("pods", "web-7d9f-0").startswith("Succeeded"))
    assert len(pod.commands) == 1


def test_a_clean_end_hands_over_at_once(box: Box) -> None:
    """After SIGTERM the Lease is free, and nobody has to wait for it to run out."""
    first = box.operator()
    first.says("leader")
    second = box.operator("--lease-duration", "60", "--lease-renew-deadline", "50", "--lease-retry", "0.2")
    second.says("started")
    assert first.stop() == 0
    second.says("leader", seconds=5)


def test_one_that_cannot_renew_its_lease_ends(box: Box) -> None:
    """Cut off from the API server, it stops before anybody else may start."""
    operator = box.operator(*LEASE)
    operator.says("leader")
    box.api.misbehave(seconds=30, only=lambda verb, resource: resource == "leases")
    operator.says("lease lost", seconds=10)
    assert operator.process.wait(10) == 1


def test_one_that_was_frozen_does_not_act_when_it_wakes(box: Box) -> None:
    """A process that was stopped for a while finds its Lease taken, and ends."""
    frozen = box.operator(*LEASE)
    frozen.says("leader")
    frozen.process.send_signal(signal.SIGSTOP)
    other = box.operator(*LEASE)
    other.says("leader")
    frozen.process.send_signal(signal.SIGCONT)
    assert frozen.process.wait(15) == 1


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_killed_at_any_moment_every_pod_is_reforked_exactly_once(box: Box, seed: int) -> None:
    """Twenty pods, an operator that is killed again and again in the middle of it, and one refork each."""
    chance = random.Random(seed)
    pods = box.deployment("web", replicas=20, gained=[100 * MIB] * 4, refork_seconds=0.4)
    box.policy(maxConcurrent="25%")
    for _ in range(4):
        before = sum(len(pod.commands) for pod in pods)
        operator = box.operator(*LEASE)
        wanted = before + chance.randint(1, 4)
        until(lambda wanted=wanted: sum(len(pod.commands) for pod in pods) >= min(wanted, 20), seconds=40)
        time.sleep(chance.uniform(0.0, 0.7))
        operator.kill()
    box.operator(*LEASE)
    until(lambda: all(pod.generation == 1 for pod in pods), seconds=60)
    until(lambda: box.status().get("pods", {}).get("reforking") == 0)
    until(lambda: all(box.outcome("pods", f"web-7d9f-{n}").startswith("Succeeded") for n in range(20)))
    assert [pod.reforks for pod in pods] == [1] * 20
    assert box.pods.most_reforking <= 5


def test_a_workload_request_is_finished_by_whoever_takes_over(box: Box) -> None:
    """Killed in the middle of a Deployment, its request still reaches each pod once."""
    pods = box.deployment("web", replicas=5)
    operator = box.operator(*LEASE)
    watching(box, "deployments")
    box.api.annotate("deployments", "web", now())
    until(lambda: sum(pod.reforks for pod in pods) == 2)
    operator.kill()
    box.operator(*LEASE)
    until(lambda: box.outcome("deployments", "web") == "Succeeded: 5 of 5 pods")
    assert [pod.reforks for pod in pods] == [1] * 5


def test_a_restart_remembers_cool_downs_and_lessons(box: Box) -> None:
    """What annotations and status hold is read back: no refork before its time, and counts go on."""
    (pod,) = box.deployment("web", replicas=1, gained=[100 * MIB] * 4, pays=False)
    box.policy()
    operator = box.operator(*LEASE)
    until(lambda: box.status().get("reforks", {}).get("unpaid") == 1)
    operator.kill()
    asked = len(pod.polls)
    box.operator(*LEASE)
    until(lambda: len(pod.polls) >= asked + 4)
    until(lambda: any(item.get("reason") == "BackingOff" for item in box.status()["details"]))
    assert pod.reforks == 1
    assert box.status()["reforks"]["unpaid"] == 1


def test_a_server_that_was_restarted_meanwhile_is_not_reforked_for_the_old_one(box: Box) -> None:
    """An intent is for one server; another one in the same pod begins anew."""
    (pod,) = box.deployment("web", replicas=1, gained=[100 * MIB] * 4, refork_seconds=30)
    box.policy()
    operator = box.operator(*LEASE)
    until(lambda: pod.reforks == 1)
    operator.kill()
    pod.restart()
    pod.gained = [0] * 4
    box.operator(*LEASE)
    until(lambda: box.outcome("pods", "web-7d9f-0").startswith("Lost"))
    assert pod.reforks == 1
