"""The names that the operator and the cluster agree on: the API group, the annotations, the reasons.

They are an interface: scripts, dashboards and people's habits hang on them. Nothing here changes without a note in the
changelog.
"""

from __future__ import annotations

from enum import StrEnum

GROUP = "refork.dev"
VERSION = "v1alpha1"
PLURAL = "reforkpolicies"
KIND = "ReforkPolicy"
COMPONENT = "refork-operator"

REQUESTED_AT = f"{GROUP}/requestedAt"
HANDLED_AT = f"{GROUP}/handledAt"
OUTCOME = f"{GROUP}/outcome"
PAUSED = f"{GROUP}/paused"
STATE = f"{GROUP}/state"
"""What the operator must remember about a pod or workload beyond its own life; nobody else's business."""

CONTROL_PORT = f"{GROUP}/control-port"
CONTROL_SCHEME = f"{GROUP}/control-scheme"
TOKEN_SECRET = f"{GROUP}/token-secret"
"""How to reach a pod that no policy matches: ``NAME`` or ``NAME/KEY`` of a Secret in its namespace."""

DEFAULT_PORT = "refork-control"
WATCHED_KINDS = {"Deployment": "deployments", "StatefulSet": "statefulsets", "DaemonSet": "daemonsets"}


LONGEST_SENTENCE = 200


def sentence(text: str) -> str:
    """Take a sentence from somebody who is not trusted: one line, no control characters, not too long."""
    line = " ".join(text[: 4 * LONGEST_SENTENCE].split())
    return "".join(letter if letter.isprintable() else "?" for letter in line)[:LONGEST_SENTENCE]


class Hold(StrEnum):
    """Why a pod is not reforked now although somebody or something wants it; beside ``refork.decide.Reason``."""

    OBSERVING = "Observing"
    PAUSED = "Paused"
    NOT_READY = "NotReady"
    TERMINATING = "Terminating"
    TOO_YOUNG = "TooYoung"
    REFORKING = "Reforking"
    BUSY = "Busy"
    BUDGET = "Budget"
    LAST_REPLICA = "LastReplica"
    POLICY_COOLING_DOWN = "PolicyCoolingDown"
    OUTSIDE_SCHEDULE = "OutsideSchedule"
    NOT_SAMPLED = "NotSampled"
    UNREACHABLE = "Unreachable"
    TURN = "WaitingForItsTurn"


class Trouble(StrEnum):
    """What is wrong with a pod's answer."""

    NO_ADDRESS = "NoAddress"
    NO_CONTROL_PORT = "NoControlPort"
    NO_TOKEN = "NoToken"  # noqa: S105 - the word for a missing token
    UNREACHABLE = "Unreachable"
    TIMED_OUT = "TimedOut"
    UNAUTHORIZED = "Unauthorized"
    HTTP_ERROR = "HTTPError"
    TOO_LARGE = "TooLarge"
    NONSENSE = "Nonsense"
