"""What happened while nobody watched: watches that break, histories that are compacted, names that are used again."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from tests.operator.conftest import Box, until
from tests.operator.test_process import MIB, watching

if TYPE_CHECKING:
    from tests.fakes.pods import FakePod


def polled(pod: FakePod, times: int) -> None:
    """Wait until a pod was asked so many times more."""
    wanted = len(pod.polls) + times
    until(lambda: len(pod.polls) >= wanted, what=f"{times} more polls")


def test_pods_are_compared_once_for_each_list_that_was_begun_anew(box: Box) -> None:
    """Our own list is no reason to list again: a cluster's pods are many."""
    (pod,) = box.deployment("web", replicas=1)
    box.pod("gone")
    box.policy()
    box.operator()
    until(lambda: box.status().get("pods", {}).get("matched") == 2)
    watching(box, "pods")
    box.api.forget("pods", "gone")
    box.api.break_watches()
    until(lambda: box.status()["pods"]["matched"] == 1, what="the pod that vanished unseen is forgotten")
    before = box.api.count(verb="list", resource="pods")
    polled(pod, 6)
    assert box.api.count(verb="list", resource="pods") <= before + 1


def test_a_policy_that_vanished_unseen_reforks_nobody(box: Box) -> None:
    """Its pods go to the next policy, though no watch has told of its end."""
    (pod, _) = box.deployment("web", replicas=2)
    box.policy("older", mode="Observe")
    operator = box.operator()
    until(lambda: box.status("older").get("pods", {}).get("matched") == 2)
    box.policy("younger", mode="Observe")
    operator.says("policy policy=default/younger")
    box.api.forget("reforkpolicies", "older")
    box.api.break_watches()
    operator.says("policy gone policy=default/older")
    until(lambda: box.status("younger").get("pods", {}).get("matched") == 2)
    assert not pod.commands


def test_a_list_that_fails_is_made_again(box: Box) -> None:
    """What vanished is forgotten later, and not never."""
    box.deployment("web", replicas=1)
    box.pod("gone")
    box.policy()
    operator = box.operator()
    until(lambda: box.status().get("pods", {}).get("matched") == 2)
    watching(box, "pods")
    until(lambda: box.api.count(verb="list", resource="pods") == 3, what="the comparison after kopf's first list")
    lists = itertools.count()
    box.api.forget("pods", "gone")
    box.api.misbehave(
        status=400,
        times=1,
        only=lambda verb, resource: (verb, resource) == ("list", "pods") and next(lists) == 1,
    )
    box.api.break_watches()
    operator.says("not listed resource=pods")
    until(lambda: box.status()["pods"]["matched"] == 1, what="the pod that vanished unseen is forgotten")


def test_the_end_of_one_is_not_the_end_of_the_next_of_the_same_name(box: Box) -> None:
    """A StatefulSet's pods keep their names; each is told by its uid."""
    box.pod("web-0")
    box.policy()
    operator = box.operator()
    until(lambda: box.status().get("pods", {}).get("sampled") == 1)
    box.api.delete("pods", "web-0")
    again = box.pod("web-0", gained=[100 * MIB] * 4)
    until(lambda: again.reforks == 1)
    until(lambda: box.status()["pods"]["matched"] == 1)
    assert operator.process.poll() is None
