"""When a pod is asked next: on time, spread over the interval, and less and less often while it does not answer. Pure.

The place of a pod within the interval comes from its uid: two thousand pods are asked evenly over the interval, and a
restarted operator asks them in the same order.
"""

from __future__ import annotations

import hashlib

LONGEST_SECONDS = 300.0
SOON_SECONDS = 2.0
MOST_DOUBLINGS = 10


def phase(uid: str) -> float:
    """Tell the place of a pod in any interval, 0 to 1."""
    return int.from_bytes(hashlib.blake2b(uid.encode(), digest_size=4).digest()) / 2**32


def first_due(uid: str, *, now: float, interval: float) -> float:
    """Tell when a pod that was never asked is asked first: at its place in the present interval."""
    start = now - now % interval
    due = start + phase(uid) * interval
    return due if due >= now else due + interval


def next_due(due: float, *, now: float, interval: float, failures: int) -> float:
    """Tell when a pod is asked next, after ``failures`` answers in a row that were none.

    The first failure may be an accident, and is looked into soon. Ticks that were missed are left out, not made up for.
    """
    if failures == 1:
        return now + min(interval, SOON_SECONDS)
    doublings = min(max(0, failures - 2), MOST_DOUBLINGS)
    step = max(interval, min(interval * 2.0**doublings, LONGEST_SECONDS))
    missed = max(0, int((now - due) // step)) if now > due else 0
    return due + step * (missed + 1)
