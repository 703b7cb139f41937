"""The benchmarks that hold the server to its promises, short enough for every run of the tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(module: str, **environment: str) -> dict[str, Any]:
    """Run a benchmark; its last line."""
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{module}"],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.stdout, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert result["met"], done.stdout + done.stderr
    return dict(result["figures"])


@pytest.mark.timeout(120)
def test_random_kills_cost_only_what_was_in_the_hands_of_the_dead() -> None:
    """Workers, molds, promoted workers and intermediates, in the middle of reforks and under load."""
    figures = run("chaos", SECONDS="16")
    assert figures["kills"] > 0
    assert figures["requests"] > 0


@pytest.mark.timeout(120)
def test_sealed_garbage_is_bounded_over_generations() -> None:
    """A cache that is replaced in each generation does not add up."""
    assert run("leak", GENERATIONS="5")["rebases"] >= 1
