"""Runs many operators at little more than the price of one: imports once, and forks.

``python -m tests.operator.many FILE``; the file is a JSON object of log files and the options of an operator each.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from refork_operator import cli


def main() -> None:
    """Start them all, and wait until all have ended."""
    operators = json.loads(Path(sys.argv[1]).read_text())
    for log, options in operators.items():
        if os.fork() == 0:
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT, 0o644), sys.stderr.fileno())
            sys.argv[1:] = options
            cli.main()
    for _ in operators:
        os.wait()


if __name__ == "__main__":
    main()
