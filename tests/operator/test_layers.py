"""What may know what: the operator's pure core, and its only two windows to the server."""

from __future__ import annotations

import ast

import pytest

from tests.operator.conftest import ROOT

PACKAGE = ROOT / "operator/refork_operator"
PURE = [
    "backoff", "conditions", "lease", "names", "plan", "pods", "policy", "quantity", "recommend", "report", "requests",
    "samples", "schedule", "selector", "state", "store", "workloads",
]  # fmt: skip
SHELL = {"asyncio", "os", "socket", "subprocess", "threading", "time", "aiohttp", "kopf", "kubernetes"}


def imported(module: str, *, runtime: bool = False) -> set[str]:
    """The names of all modules that a module imports; for type checking only, unless ``runtime``."""
    tree = ast.parse((PACKAGE / f"{module}.py").read_text())
    typing_only = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if runtime and node in typing_only:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("module", sorted(path.stem for path in PACKAGE.glob("*.py")))
def test_of_the_server_only_the_wire_and_the_decisions_are_known(module: str) -> None:
    """Everything else of ``refork`` may not even be there: the operator talks to it over the network."""
    for name in imported(module):
        if name == "refork" or name.startswith("refork."):
            assert name.startswith(("refork.api", "refork.decide")), f"{module} imports {name}"


@pytest.mark.parametrize("module", PURE)
def test_the_core_knows_no_clock_and_no_io(module: str) -> None:
    """Facts and the time go in, decisions come out."""
    assert not {name.partition(".")[0] for name in imported(module, runtime=True)} & SHELL


def test_the_standard_librarys_operator_is_not_shadowed() -> None:
    """A file ``operator/__init__.py`` would break every Python program that is started in this directory."""
    assert not (ROOT / "operator/__init__.py").exists()
