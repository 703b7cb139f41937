"""Random numbers of its own for each forked worker.

A fork copies the state of every generator, and two workers with one state hand out the same session ids. The kernel's
own (``os.urandom``, and ``uuid4`` and ``secrets`` with it) needs nothing; OpenSSL mixes in the process id by itself,
and gets fresh entropy nevertheless. What an application keeps in generators of its own (``random.Random()``,
``numpy.random.default_rng()``) is the application's to seed, in ``after_worker_fork``.
"""

from __future__ import annotations

import os
import random
import sys


def reseed() -> None:
    """Give the process-wide generators that are loaded a seed of their own."""
    random.seed(os.urandom(64))
    numpy = sys.modules.get("numpy.random")
    if numpy is not None:
        numpy.seed()  # the legacy state: from the kernel, if it is told nothing
    ssl = sys.modules.get("ssl")
    if ssl is not None:
        ssl.RAND_add(os.urandom(32), 0.0)
    uuid = sys.modules.get("uuid")
    if uuid is not None:
        uuid._last_timestamp = None  # type: ignore[attr-defined]  # noqa: SLF001 - two workers may share a moment
