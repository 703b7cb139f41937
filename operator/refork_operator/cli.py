"""The command ``refork-operator``."""

from __future__ import annotations

import os
import signal

if os.getpid() == 1:  # process 1 has no default actions (pid_namespaces(7)): until there is a handler, SIGTERM is lost
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))

import asyncio
import sys

from refork_operator import logs, settings
from refork_operator.process import Process


def main() -> None:
    """Run the operator until it is told to end."""
    chosen = settings.parse(sys.argv[1:], env=os.environ)
    logs.configure(level=chosen.log_level, form=chosen.log_format)
    sys.exit(asyncio.run(Process(chosen).run()))
