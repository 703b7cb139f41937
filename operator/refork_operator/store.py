"""What the cluster looks like now: pods, workloads and policies, and which policy each pod belongs to.

Plain bookkeeping without I/O. A pod belongs to one policy only, the oldest of those that match it, so that two policies
cannot pull at one pod.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refork_operator.pods import Key, Pod, Workload
    from refork_operator.policy import ReforkPolicy
    from refork_operator.workloads import Owner


class Store:
    """Pods, owners and policies by key."""

    def __init__(self) -> None:
        self.pods: dict[Key, Pod] = {}
        self.policies: dict[Key, ReforkPolicy] = {}
        self.owners: dict[Workload, Owner] = {}
        self._crews: dict[Workload, set[Key]] = defaultdict(set)
        self._members: dict[Key, set[Key]] = defaultdict(set)
        self._policy_of: dict[Key, Key] = {}

    def put_pod(self, pod: Pod) -> None:
        """Add or replace a pod."""
        before = self.pods.get(pod.key)
        if before is not None and before.workload != pod.workload:
            self._crews[before.workload].discard(pod.key)
        self.pods[pod.key] = pod
        self._crews[pod.workload].add(pod.key)
        if before is None or before.labels != pod.labels or before.uid != pod.uid:
            self._assign(pod)

    def drop_pod(self, key: Key) -> None:
        """Forget a pod."""
        pod = self.pods.pop(key, None)
        if pod is not None:
            crew = self._crews[pod.workload]
            crew.discard(key)
            if not crew:
                del self._crews[pod.workload]
        self._unassign(key)

    def put_policy(self, policy: ReforkPolicy) -> None:
        """Add or replace a policy."""
        before = self.policies.get(policy.key)
        self.policies[policy.key] = policy
        if before is None or before.selector != policy.selector or before.created != policy.created:
            self._assign_namespace(policy.namespace)

    def drop_policy(self, key: Key) -> None:
        """Forget a policy; its pods go to the next one that matches."""
        if self.policies.pop(key, None) is not None:
            self._assign_namespace(key[0])
        self._members.pop(key, None)

    def policy_of(self, key: Key) -> ReforkPolicy | None:
        """Find the policy that a pod belongs to."""
        found = self._policy_of.get(key)
        return self.policies.get(found) if found is not None else None

    def members(self, policy: Key) -> Iterator[Pod]:
        """Go through the pods of a policy."""
        for key in sorted(self._members.get(policy, ())):
            yield self.pods[key]

    def crew(self, workload: Workload) -> Iterator[Pod]:
        """Go through the pods of a workload."""
        for key in sorted(self._crews.get(workload, ())):
            yield self.pods[key]

    def _assign_namespace(self, namespace: str) -> None:
        for pod in list(self.pods.values()):
            if pod.namespace == namespace:
                self._assign(pod)

    def _assign(self, pod: Pod) -> None:
        self._unassign(pod.key)
        matching = [
            policy
            for policy in self.policies.values()
            if policy.namespace == pod.namespace and policy.selector.matches(pod.labels)
        ]
        if matching:
            policy = min(matching, key=lambda found: (found.created, found.key))
            self._policy_of[pod.key] = policy.key
            self._members[policy.key].add(pod.key)

    def _unassign(self, key: Key) -> None:
        before = self._policy_of.pop(key, None)
        if before is not None:
            self._members[before].discard(key)
