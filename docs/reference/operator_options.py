"""The options of refork-operator, from the parser itself."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from refork_operator import settings

if TYPE_CHECKING:
    from collections.abc import Iterator

_HEAD = """\
# The operator's options

<!-- Written by `python -m docs.generate` from the operator's own parser. Edit that. -->

`refork-operator` takes flags, and environment variables of the same name; flags win. Lists are separated by commas, and
switches are on with `1`, `true` or `yes`. In the chart they are values; what the operator does is in
[the operator](OPERATOR.md).

It ends with 0 after SIGTERM, with 1 when the cluster cannot be reached or the Lease was lost, and with 2 for a wrong
option.
"""


def page() -> str:
    """Write the page."""
    return _HEAD + "".join(_sections())


def _sections() -> Iterator[str]:
    for group in settings._parser({})._action_groups:  # noqa: SLF001 - argparse has no other way to ask
        actions = [action for action in group._group_actions if action.dest != "help"]  # noqa: SLF001
        if actions:
            title = str(group.title)
            yield f"\n## {title[0].upper()}{title[1:]}\n\n"
            yield "| option | environment variable | default | |\n|---|---|---|---|\n"
            yield from map(_row, actions)


def _row(action: argparse.Action) -> str:
    flags = ", ".join(f"`{flag} {_argument(action)}`".replace(" `", "`") for flag in action.option_strings)
    variable = f"{settings.ENV_PREFIX}{action.dest.upper()}"
    meaning = str(action.help).partition(" (default: ")[0].replace("%%", "%")
    return f"| {flags} | `{variable}` | {_default(action)} | {meaning} |\n"


def _argument(action: argparse.Action) -> str:
    if action.choices:
        return "|".join(map(str, action.choices)).replace("|", "\\|")
    return action.metavar if isinstance(action.metavar, str) and action.nargs != 0 else ""


def _default(action: argparse.Action) -> str:
    if isinstance(action, argparse.BooleanOptionalAction):
        return "on" if action.default else "off"
    if isinstance(action.default, int | float):
        return f"`{action.default:g}`" if isinstance(action.default, float) else f"`{action.default}`"
    _, _, words = str(action.help).partition(" (default: ")
    return f"`{action.default}`" if words == f"{action.default})" else words.removesuffix(")")
