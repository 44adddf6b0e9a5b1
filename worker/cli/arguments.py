"""Arguments and options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

SourceName = Annotated[str, typer.Argument(help="Name of the source, as `pgoutlier sources` lists it.")]
AsJson = Annotated[bool, typer.Option("--json", help="One line of JSON instead of a table.")]
Version = Annotated[str, typer.Argument(help="Number of the version, or champion, or challenger.")]
Reason = Annotated[str, typer.Option(help="Why; kept in outlier.alias_events.")]
