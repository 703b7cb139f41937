"""What words of a command line mean, for ``argparse``: numbers, durations, and errors in one line.

Imports next to nothing, because commands are to start fast.
"""

from __future__ import annotations

import argparse
import math
from typing import NoReturn

USAGE = 2
"""The exit code for wrong usage."""

MOST_PIDS = 1 << 22  # PID_MAX_LIMIT of the kernel

_LONGEST_NUMBER = 9


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage around it."""

    def error(self, message: str) -> NoReturn:
        """Leave with the exit code for wrong usage."""
        command = self.prog.partition(" ")[0]
        self.exit(USAGE, f"{command}: {message} (try: {command} --help)\n")


def seconds(text: str) -> float:
    """Read a duration, which may be nothing."""
    try:
        duration = float(text)
    except ValueError:
        duration = math.nan
    if not (math.isfinite(duration) and duration >= 0):
        raise argparse.ArgumentTypeError(f"not a duration in seconds: {text!r}")
    return duration


def seconds_from(least: float, text: str) -> float:
    """Read a duration of ``least`` or more."""
    duration = seconds(text)
    if duration < least:
        raise argparse.ArgumentTypeError(f"not a duration of {least:g} s or more: {text!r}")
    return duration


def pid(text: str) -> int:
    """Read the number of a process."""
    return number(text, least=1, most=MOST_PIDS)


def number(text: str, *, least: int, most: int) -> int:
    """Read a number."""
    if not (text.isascii() and text.isdigit() and len(text) <= _LONGEST_NUMBER and least <= int(text) <= most):
        raise argparse.ArgumentTypeError(f"not a number from {least} to {most}: {text!r}")
    return int(text)
