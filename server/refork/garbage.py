"""Sealed garbage: what was sealed in an earlier generation, and is reached by nothing any more, but is never freed.

It is estimated by what molds have grown by since the first one that was warm. That takes a cache that is still filling
for garbage too; a rebase it does not need costs time, but no memory.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from refork.population import Mold


@dataclass(slots=True)
class Garbage:
    """What is known of the growth from mold to mold, of one loaded application. ``warm``: the first warm mold."""

    warm: Mold | None = None

    def measured(self, mold: Mold) -> None:
        """Take note of the size of a mold."""
        first = self.warm is None or self.warm.loaded != mold.loaded
        if first and mold.generation > mold.loaded:
            self.warm = replace(mold)

    def worn_out(self, mold: Mold | None, *, max_growth: float) -> bool:
        """Whether the mold after this one would have grown by more than ``max_growth`` of the first warm one."""
        warm = self.warm
        if mold is None or warm is None or mold.loaded != warm.loaded or mold.generation == warm.generation:
            return False
        growth = (mold.size - warm.size) / (mold.generation - warm.generation)
        return mold.size + growth > warm.size * (1 + max_growth)
