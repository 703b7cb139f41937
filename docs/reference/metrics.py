"""The tables of metrics, from what is exported: server and operator.

Families are made of a status, so one is made up in which nothing is missing.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import inspect

from refork import api
from refork.exposition import Kind
from refork.families import families
from refork_operator.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_HEAD = "| name | type | labels | meaning |\n|---|---|---|---|\n"
_MARKED = re.compile(r"(<!-- begin: (\w+) [^>]*-->\n)(.*?)(<!-- end -->\n)", re.DOTALL)
_SUFFIX = {"counter": "_total", "info": "_info"}


def filled_in(page: str) -> str:
    """Write the tables between the marks of a page anew."""
    tables = {"server": _server, "operator": _operator}
    return _MARKED.sub(lambda mark: mark[1] + _HEAD + "".join(tables[mark[2]]()) + mark[4], page)


def whole_status() -> api.Status:
    """Make up a status in which everything is known."""
    durations = api.StepDurations(api.Phase.SURGE, (1,) * (len(api.STEP_BOUNDS) + 1), 1.0)
    status: api.Status = _made_up(inspect.type_info(api.Status))
    return msgspec.structs.replace(status, steps=(durations,))


def _server() -> Iterator[str]:
    for family in families(whole_status()):
        (sample, _), *_ = family.samples
        kind = "gauge" if family.kind is Kind.INFO else family.kind.value
        yield _row(family.name + _SUFFIX.get(family.kind, ""), kind, re.findall(r'(\w+)="', sample), family.help)


def _operator() -> Iterator[str]:
    for metric in vars(Metrics()).values():
        if hasattr(metric, "describe"):
            (family,) = metric.describe()
            labels = metric._labelnames  # noqa: SLF001 - nothing else tells the labels of a metric without samples
            yield _row(family.name + _SUFFIX.get(family.type, ""), family.type, labels, family.documentation)


def _row(name: str, kind: str, labels: Iterable[str], meaning: str) -> str:
    named = ", ".join(f"`{label}`" for label in labels if label != "le")
    return f"| `{name}` | {kind} | {named} | {meaning} |\n".replace("|  |", "| |")


def _made_up(kind: inspect.Type) -> Any:
    """Make up a value of a type, with everything in it that may be missing."""
    match kind:
        case inspect.StructType(cls=cls, fields=fields):
            return cls(**{field.name: _made_up(field.type) for field in fields})
        case inspect.UnionType(types=types):
            return _made_up(next(each for each in types if not isinstance(each, inspect.NoneType)))
        case inspect.VarTupleType(item_type=item):
            return (_made_up(item),)
        case inspect.EnumType(cls=cls):
            return next(iter(cls))
        case inspect.BoolType():
            return True
        case inspect.IntType() | inspect.FloatType():
            return 1
        case inspect.StrType():
            return "x"
    raise TypeError(f"nothing is known to make up for {kind}")
