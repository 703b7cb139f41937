"""``kubectl refork``: what the operator knows and does, for people at a terminal.

kubectl runs any executable named ``kubectl-refork`` on the PATH as ``kubectl refork``. This one asks kubectl itself for
everything, so that contexts, credentials and proxies are those of kubectl, and it needs no rights that its user lacks:
it reads policies and pods, and sets one annotation.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

from refork_operator.names import GROUP, HANDLED_AT, OUTCOME, PAUSED, PLURAL, REQUESTED_AT
from refork_operator.settings import seconds

_KINDS = {
    "po": "pod", "pod": "pod", "pods": "pod",
    "deploy": "deployment", "deployment": "deployment", "deployments": "deployment",
    "sts": "statefulset", "statefulset": "statefulset", "statefulsets": "statefulset",
    "ds": "daemonset", "daemonset": "daemonset", "daemonsets": "daemonset",
    "rfp": "policy", "reforkpolicy": "policy", "policy": "policy",
}  # fmt: skip
_SELECTORS = {
    "In": "{key} in ({values})",
    "NotIn": "{key} notin ({values})",
    "Exists": "{key}",
    "DoesNotExist": "!{key}",
}
_POD_HEADER = ["POD", "GEN", "PSS", "GAIN", "DECISION", "LAST OUTCOME"]
_POLL_SECONDS = 1.0

_EPILOG = """
  kubectl refork status                     all policies: pods, memory, what is saved
  kubectl refork status deploy/web          the pods of a Deployment: memory, last refork, what is decided and why
  kubectl refork now deploy/web --wait      refork its pods one after the other, and wait for the outcome
  kubectl refork now pod/web-0              refork one pod
  kubectl refork top                        the pods that a refork would help most, again and again
"""


class PluginError(Exception):
    """What was asked cannot be done; the message says why."""


@dataclass(frozen=True, slots=True)
class Target:
    """What the user named: a kind and a name; ``name`` is empty for everything."""

    kind: str = ""
    name: str = ""


def main() -> None:
    """Do what the command line says."""
    options = _parse(sys.argv[1:])
    try:
        code = options.act(options, Kubectl(options))
        sys.stdout.flush()
    except PluginError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # whoever read it, like head, has read enough; nothing may be left for Python to flush
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code)


class Kubectl:
    """kubectl, with the flags that say which cluster and namespace."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._flags = [
            part
            for flag in ("kubeconfig", "context")
            if getattr(options, flag)
            for part in (f"--{flag}", getattr(options, flag))
        ]
        self._where = ["-A"] if options.all_namespaces else ["-n", options.namespace] if options.namespace else []

    def items(self, *words: str) -> list[dict[str, Any]]:
        """Get objects of a kind, by name or all."""
        found = json.loads(self._run("get", *words, "-o", "json", *self._where))
        listed: list[dict[str, Any]] = found["items"] if found.get("kind", "").endswith("List") else [found]
        return listed

    def annotate(self, kind: str, name: str, key: str, value: str) -> None:
        """Set an annotation."""
        self._run("annotate", "--overwrite", kind, name, f"{key}={value}", *self._where)

    def _run(self, *words: str) -> str:
        program = os.environ.get("KUBECTL", "kubectl")
        try:
            done = subprocess.run(  # noqa: S603 - the user's own kubectl, no shell
                [program, *words, *self._flags], capture_output=True, text=True, check=False
            )
        except OSError as error:
            raise PluginError(f"{program}: {error.strerror}") from error
        if done.returncode:
            said = done.stderr.strip().removeprefix("Error: ").removeprefix("error: ")
            missing = "have a resource type" in said and PLURAL in said
            raise PluginError(f"{said}: is the operator installed in this cluster?" if missing else said)
        return done.stdout


# --- the commands -----------------------------------------------------------------------------------------------------


def status(options: argparse.Namespace, kubectl: Kubectl) -> int:
    """Show policies, or the pods of one workload or policy."""
    target: Target = options.target
    policies = kubectl.items(f"{PLURAL}.{GROUP}", *([target.name] if target.kind == "policy" else []))
    if not target.kind:
        print(policy_table(policies))  # noqa: T201 - this is a command
        return 0
    details = _details(policies)
    if target.kind == "policy":
        print(policy_table(policies), "", conditions_table(policies[0]), "", sep="\n")  # noqa: T201
        print(detail_table(details, everywhere=options.all_namespaces))  # noqa: T201
        return 0
    pods = _pods(kubectl, target)
    if not pods:
        raise PluginError(f"no pods belong to {target.kind}/{target.name}")
    print(pod_table(pods, details, everywhere=options.all_namespaces))  # noqa: T201
    return 0


def now(options: argparse.Namespace, kubectl: Kubectl) -> int:
    """Set the annotation, and wait for the answer if that is wanted."""
    target: Target = options.target
    if target.kind in ("", "policy"):
        raise PluginError("name a workload or a pod: kubectl refork now deploy/web")
    value = datetime.now(UTC).isoformat(timespec="milliseconds")
    kubectl.annotate(target.kind, target.name, REQUESTED_AT, value)
    print(f"{target.kind}/{target.name}: refork requested")  # noqa: T201
    return _wait(options, kubectl, value) if options.wait else 0


def top(options: argparse.Namespace, kubectl: Kubectl) -> int:
    """Show the pods with the largest predicted gain, again and again."""
    while True:
        policies = kubectl.items(f"{PLURAL}.{GROUP}")
        details = sorted(_details(policies), key=lambda item: -_mebi(item.get("predictedGain")))
        if options.target.kind:
            pods = {_key(pod) for pod in _pods(kubectl, options.target)}
            details = [item for item in details if (item["namespace"], item["name"]) in pods]
        text = f"{policy_table(policies)}\n\n{detail_table(details, everywhere=options.all_namespaces)}"
        if options.once:
            print(text)  # noqa: T201
            return 0
        print(f"\x1b[2J\x1b[H{text}", flush=True)  # noqa: T201
        time.sleep(options.interval)


def _wait(options: argparse.Namespace, kubectl: Kubectl, value: str) -> int:
    target: Target = options.target
    deadline = time.monotonic() + options.timeout
    while time.monotonic() < deadline:
        (found,) = kubectl.items(target.kind, target.name)
        annotations = found["metadata"].get("annotations") or {}
        if annotations.get(HANDLED_AT) == value:
            outcome = annotations.get(OUTCOME, "")
            print(f"{target.kind}/{target.name}: {outcome}")  # noqa: T201
            return 0 if outcome.startswith("Succeeded") else 1
        if annotations.get(REQUESTED_AT) != value:
            raise PluginError(f"somebody else has set {REQUESTED_AT} meanwhile: this request will not be answered")
        time.sleep(_POLL_SECONDS)
    raise PluginError(f"no answer within {options.timeout:g} s: does the operator run? kubectl get events tells more")


def _pods(kubectl: Kubectl, target: Target) -> list[dict[str, Any]]:
    """Find the pods of a workload by its selector; for a pod, the pod."""
    if target.kind == "pod":
        return kubectl.items("pod", target.name)
    (found,) = kubectl.items(target.kind, target.name)
    wanted = selector(found["spec"].get("selector") or {})
    if not wanted:
        raise PluginError(f"{target.kind}/{target.name} has no selector to find its pods by")
    return kubectl.items("pod", "-l", wanted)


def _details(policies: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {**item, "namespace": found["metadata"].get("namespace", "")}
        for found in policies
        for item in (found.get("status") or {}).get("details") or ()
    ]


def _key(found: dict[str, Any]) -> tuple[str, str]:
    return found["metadata"].get("namespace", ""), found["metadata"]["name"]


def selector(raw: dict[str, Any]) -> str:
    """Write a LabelSelector as kubectl's -l takes it."""
    parts = [f"{key}={value}" for key, value in sorted((raw.get("matchLabels") or {}).items())]
    for item in raw.get("matchExpressions") or ():
        values = ",".join(item.get("values") or ())
        parts.append(_SELECTORS[item["operator"]].format(key=item["key"], values=values))
    return ",".join(parts)


# --- tables: pure -----------------------------------------------------------------------------------------------------


def policy_table(policies: list[dict[str, Any]]) -> str:
    """Show policies, one a line."""
    rows = []
    for found in policies:
        state = found.get("status") or {}
        totals, pods = state.get("totals") or {}, state.get("pods") or {}
        ready = _condition(found, "Ready")
        rows.append(
            [
                "/".join(_key(found)),
                found["spec"].get("mode", ""),
                f"{pods.get('ready', 0)}/{pods.get('matched', 0)}",
                totals.get("pss", ""),
                totals.get("saved", ""),
                totals.get("predictedGain", ""),
                str((state.get("reforks") or {}).get("succeeded", 0)),
                ready.get("reason", ""),
            ]
        )
    return table(["POLICY", "MODE", "READY", "PSS", "SAVED", "GAIN", "REFORKS", "STATE"], rows)


def conditions_table(found: dict[str, Any]) -> str:
    """Show what a policy says of itself, and what it recommends."""
    state = found.get("status") or {}
    rows = [[c["type"], c["status"], c["reason"], c["message"]] for c in state.get("conditions") or ()]
    lines = [table(["CONDITION", "", "REASON", "MESSAGE"], rows)]
    advice = [
        [
            item["workload"],
            item.get("peak", ""),
            f"{item.get('currentRequest', '-')} -> {item.get('memoryRequest', '')}",
            f"{item.get('currentLimit', '-')} -> {item.get('memoryLimit', '')}",
            item.get("message", ""),
        ]
        for item in state.get("recommendations") or ()
    ]
    if advice:
        lines += ["", table(["WORKLOAD", "PEAK", "REQUEST", "LIMIT", ""], advice)]
    return "\n".join(lines)


def detail_table(details: list[dict[str, Any]], *, everywhere: bool = False) -> str:
    """Show pods as policies' statuses list them."""
    rows = [
        _pod_row(item, key=(item["namespace"], item["name"]), everywhere=everywhere, outcome=item.get("message", ""))
        for item in details
    ]
    return table(_POD_HEADER, rows)


def pod_table(pods: list[dict[str, Any]], details: list[dict[str, Any]], *, everywhere: bool = False) -> str:
    """Show pods with what their annotations say and what a policy knows of them."""
    known = {(item["namespace"], item["name"]): item for item in details}
    rows = []
    for pod in pods:
        annotations = pod["metadata"].get("annotations") or {}
        item = dict(known.get(_key(pod), {}))
        if annotations.get(PAUSED) == "true":
            item["reason"] = "Paused"
        if OUTCOME in annotations:
            item["outcome"] = annotations[OUTCOME]
        rows.append(_pod_row(item, key=_key(pod), everywhere=everywhere))
    return table(_POD_HEADER, rows)


def _pod_row(item: dict[str, Any], *, key: tuple[str, str], everywhere: bool, outcome: str = "") -> list[str]:
    return [
        "/".join(key) if everywhere else key[1],
        str(item.get("generation", "")),
        item.get("pss", ""),
        item.get("predictedGain", ""),
        item.get("reason", ""),
        item.get("outcome", outcome),
    ]


def table(header: list[str], rows: list[list[str]]) -> str:
    """Lay out columns as kubectl does."""
    if not rows:
        return "nothing found"
    widths = [max(len(row[number]) for row in [header, *rows]) for number in range(len(header))]
    lines = ("   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in [header, *rows])
    return "\n".join(line.rstrip() for line in lines)


def _condition(found: dict[str, Any], kind: str) -> dict[str, Any]:
    conditions = (found.get("status") or {}).get("conditions") or ()
    return next((item for item in conditions if item["type"] == kind), {})


def _mebi(text: str | None) -> int:
    return int((text or "0").removesuffix("Mi") or 0)


# --- the command line -------------------------------------------------------------------------------------------------


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="kubectl refork",
        description="See and steer the pods that refork serves.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[_whereabouts()],
    )
    duration = partial(seconds, below=threading.TIMEOUT_MAX)  # time.sleep() takes no more
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    # What is not said after the command must not undo what was said before it.
    shared = [_whereabouts(argument_default=argparse.SUPPRESS)]
    target: dict[str, Any] = {"metavar": "KIND/NAME", "help": "like deploy/web or pod/web-0"}
    command = commands.add_parser("status", parents=shared, help="policies, or the pods of one workload or policy")
    command.add_argument("target", nargs="*", **target)
    command.set_defaults(act=status)
    command = commands.add_parser("now", parents=shared, help="refork a pod, or the pods of a workload in turn")
    command.add_argument("target", nargs="+", **target)
    command.add_argument("--wait", action="store_true", help="wait for the outcome; exit status 1 unless it succeeded")
    command.add_argument("--timeout", type=duration, default=1800.0, help="seconds to wait (default: 1800)")
    command.set_defaults(act=now)
    command = commands.add_parser("top", parents=shared, help="the pods that a refork would help most")
    command.add_argument("target", nargs="*", **target)
    command.add_argument("--once", action="store_true", help="show it once")
    command.add_argument("--interval", type=duration, default=5.0, help="seconds between two looks (default: 5)")
    command.set_defaults(act=top)
    options = parser.parse_args(argv)
    try:
        options.target = _target(options.target)
    except PluginError as error:
        parser.error(str(error))
    return options


def _whereabouts(**more: Any) -> argparse.ArgumentParser:
    """Make the flags that say which cluster and namespace; kubectl takes them anywhere, and so do we."""
    flags = argparse.ArgumentParser(add_help=False, **more)
    flags.add_argument("-n", "--namespace", help="namespace (default: that of the context)")
    flags.add_argument("-A", "--all-namespaces", action="store_true", help="all namespaces")
    flags.add_argument("--context", help="context of the kubeconfig")
    flags.add_argument("--kubeconfig", help="kubeconfig file")
    return flags


def _target(words: list[str]) -> Target:
    """Read KIND/NAME, or KIND NAME, or nothing."""
    if not words:
        return Target()
    kind, _, name = "/".join(words).partition("/")
    if kind.lower() not in _KINDS or not name or "/" in name:
        said = " ".join(words)
        raise PluginError(f"{said!r}: write KIND/NAME, like deploy/web, sts/db, pod/web-0 or policy/web")
    return Target(_KINDS[kind.lower()], name)
