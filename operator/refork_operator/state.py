"""What must outlive the operator: written into annotations before it is acted on, read back by whoever takes over.

A refork that was begun is written down as an *intent* before the command is sent. Whoever finds one without an outcome
sends the same command with the same request id again, which the server answers with the operation that it has already
begun, if it has. So a kill at any moment costs nothing and doubles nothing.

Annotations can be edited by anybody who may edit the pod: what cannot be read is taken for a fresh start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec

from refork.decide import History
from refork_operator.names import STATE

if TYPE_CHECKING:
    from collections.abc import Mapping


Instant = Annotated[float, msgspec.Meta(ge=0, le=1e11)]
Size = Annotated[int, msgspec.Meta(ge=-(1 << 56), le=1 << 56)]
Count = Annotated[int, msgspec.Meta(ge=0, le=10_000)]
Text = Annotated[str, msgspec.Meta(max_length=1000)]
Name = Annotated[str, msgspec.Meta(max_length=128, pattern="^[A-Za-z0-9._:-]*$")]
"""What is read back was in reach of others: numbers and texts that cannot be ours are refused."""


class Intent(msgspec.Struct, frozen=True, omit_defaults=True):
    """A refork that was decided and has no outcome yet.

    Attributes:
        id: the request id of the command.
        at: when it was decided.
        server: when the server that it was meant for had started: another one never got it.
        promised: the predicted gain.
        pss: of all processes when it was decided, to see what it won.
        policy: who decided; empty for a request without a policy.
        request: the value of the annotation that asked for it; empty if none did.
        workload: the request was made to the pod's workload.
    """

    id: Name
    at: Instant
    server: Instant
    promised: Size
    pss: Size
    policy: Text = ""
    request: Text = ""
    workload: Text = ""


class PodState(msgspec.Struct, frozen=True, omit_defaults=True):
    """All that is remembered of one pod.

    Attributes:
        intent: a refork under way.
        reforked_at: when the last one was begun.
        realised: what it won; None when it is not known.
        unpaid: how many in a row did not pay.
        outcome: how the last one ended.
        workload_request: the value of its workload's annotation that it was reforked for last.
        server: when the server that all this is about had started: another one begins anew.
    """

    intent: Intent | None = None
    server: Instant = 0.0
    reforked_at: Instant | None = None
    realised: Size | None = None
    unpaid: Count = 0
    outcome: Text = ""
    workload_request: Text = ""

    def history(self) -> History:
        """Give the decisions what they must remember."""
        return History(reforked_at=self.reforked_at, realised=self.realised, unpaid=self.unpaid)


class WorkloadState(msgspec.Struct, frozen=True, omit_defaults=True):
    """All that is remembered of one workload: which request is being carried out, and when it was first seen."""

    request: Text = ""
    seen: Instant = 0.0


def write(state: PodState | WorkloadState) -> str:
    """Write a state as the value of an annotation."""
    return msgspec.json.encode(state).decode()


def read_pod(annotations: Mapping[str, str]) -> PodState:
    """Read what is remembered of a pod."""
    return _read(annotations, PodState)


def read_workload(annotations: Mapping[str, str]) -> WorkloadState:
    """Read what is remembered of a workload."""
    return _read(annotations, WorkloadState)


def _read[State: (PodState, WorkloadState)](annotations: Mapping[str, str], kind: type[State]) -> State:
    try:
        return msgspec.json.decode(annotations.get(STATE) or "{}", type=kind)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return kind()


def begun(state: PodState, intent: Intent) -> PodState:
    """Remember that a refork was decided."""
    return PodState(
        intent=intent,
        server=intent.server,
        reforked_at=intent.at,
        realised=state.realised,
        unpaid=state.unpaid,
        outcome=state.outcome,
        workload_request=state.workload_request,
    )


def not_begun(state: PodState) -> PodState:
    """Remember that nothing came of an intent; what was learnt before it is kept."""
    return msgspec.structs.replace(state, intent=None)


def ended(state: PodState, history: History, *, outcome: str) -> PodState:
    """Remember how it ended and what was learnt."""
    intent = state.intent
    workload_request = intent.request if intent is not None and intent.workload else state.workload_request
    return PodState(
        server=state.server,
        reforked_at=state.reforked_at,
        realised=history.realised,
        unpaid=history.unpaid,
        outcome=outcome,
        workload_request=workload_request,
    )
