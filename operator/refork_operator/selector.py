"""Label selectors: which pods a policy or a workload means. The rules are those of Kubernetes' own selectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Requirement:
    """One condition on one label."""

    key: str
    operator: str
    values: frozenset[str] = frozenset()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Tell whether labels fulfil it; NotIn is fulfilled by a missing label, too."""
        match self.operator:
            case "In":
                return self.key in labels and labels[self.key] in self.values
            case "NotIn":
                return self.key not in labels or labels[self.key] not in self.values
            case "Exists":
                return self.key in labels
            case "DoesNotExist":
                return self.key not in labels
            case _:
                return False


@dataclass(frozen=True, slots=True)
class Selector:
    """All of some requirements. One without any matches nothing: it would take a whole namespace by mistake."""

    requirements: tuple[Requirement, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Tell whether labels fulfil every requirement."""
        return bool(self.requirements) and all(requirement.matches(labels) for requirement in self.requirements)


def parse(raw: Mapping[str, Any] | None) -> Selector:
    """Read a LabelSelector."""
    raw = raw or {}
    equal = [
        Requirement(key, "In", frozenset([value])) for key, value in sorted((raw.get("matchLabels") or {}).items())
    ]
    others = [
        Requirement(item["key"], item["operator"], frozenset(item.get("values") or ()))
        for item in raw.get("matchExpressions") or ()
    ]
    return Selector((*equal, *others))
