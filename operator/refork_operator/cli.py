"""The command ``refork-operator``."""

from __future__ import annotations

import asyncio
import os
import sys

from refork_operator import logs, settings
from refork_operator.process import Process


def main() -> None:
    """Run the operator until it is told to end."""
    chosen = settings.parse(sys.argv[1:], env=os.environ)
    logs.configure(level=chosen.log_level, form=chosen.log_format)
    sys.exit(asyncio.run(Process(chosen).run()))
