"""Finds the objects of certain classes, wherever they are held.

The garbage collector knows all objects, but not those of a frozen heap any more (``gc.freeze`` takes them out of its
lists). So each heap is looked through once, before it is sealed, and what was found is remembered, in descendants too.
"""

from __future__ import annotations

import gc
import sys
import weakref
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

_found: dict[str, list[weakref.ref[Any]]] = {}


def look_for(names: Iterable[str]) -> None:
    """Look for objects of the classes ``MODULE:CLASS`` that are loaded, and of their subclasses."""
    wanted: dict[type, str] = {}
    for name in names:
        loaded = _class(name)
        if loaded is not None:
            wanted |= dict.fromkeys(_with_subclasses(loaded), name)
    if not wanted:
        return
    # There may be millions of objects: one look at each, and it is a short one.
    for thing in [thing for thing in gc.get_objects() if type(thing) in wanted]:
        _remember(wanted[type(thing)], thing)


def known(names: Iterable[str]) -> list[Any]:
    """Return the objects that were found and are still alive."""
    references = [reference for name in names for reference in _found.get(name, ())]
    return [thing for reference in references if (thing := reference()) is not None]


def _class(name: str) -> type | None:
    module, _, attribute = name.partition(":")
    found = getattr(sys.modules.get(module), attribute, None)
    return found if isinstance(found, type) else None


def _with_subclasses(cls: type) -> set[type]:
    found = {cls}
    subclasses: list[type] = cls.__subclasses__()
    for subclass in subclasses:
        found |= _with_subclasses(subclass)
    return found


def _remember(name: str, thing: Any) -> None:
    references = _found.setdefault(name, [])
    if all(reference() is not thing for reference in references):
        references[:] = [reference for reference in references if reference() is not None]
        references.append(weakref.ref(thing))
