"""Arguments and options that several commands have."""

from __future__ import annotations

import re
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

SourceName = Annotated[str, typer.Argument(help="Name of the source, as `pgoutlier sources` lists it.")]
AsJson = Annotated[bool, typer.Option("--json", help="One line of JSON instead of a table.")]
Version = Annotated[str, typer.Argument(help="Number of the version, or champion, or challenger.")]
Reason = Annotated[str, typer.Option(help="Why; kept in outlier.alias_events.")]

# A minus and a digit begin a number, which no option of ours does. Said to the parser with something before it.
_NEGATIVE = re.compile(r"-[0-9]")
_NO_OPTION = "\ufdd0"  # no character, so nobody types it


class CommandOfKeys(TyperCommand):
    """A command whose arguments are keys: -7 is one, and no option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the words behind the command's name."""
        rest = super().parse_args(
            ctx, [_NO_OPTION + word if _NEGATIVE.match(word) else word for word in args]
        )
        ctx.params = {name: _as_typed(value) for name, value in ctx.params.items()}
        return rest


def _as_typed(value: Any) -> Any:
    if isinstance(value, list):
        return [_as_typed(each) for each in value]
    return value.removeprefix(_NO_OPTION) if isinstance(value, str) else value
