"""doctor: look at everything that has to be right, and say how to mend what is not."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from rich.markup import escape

from pgoutlier.worker.cli.arguments import AsJson
from pgoutlier.worker.cli.context import open_runtime
from pgoutlier.worker.console import console, print_json
from pgoutlier.worker.doctor import checks
from pgoutlier.worker.doctor.grouping import FEW_SOURCES, grouped


def doctor(
    as_json: AsJson = False,
    show_all: Annotated[
        bool,
        typer.Option("--all", help=f"Each source by itself, also where there are more than {FEW_SOURCES}."),
    ] = False,
) -> None:
    """Check servers, versions, schema, privileges, triggers, clocks, models and workers; exit 1 if one is wrong."""
    found = list(checks.examine(open_runtime(migrated=False)))
    if as_json:
        print_json([asdict(finding) for finding in found])
    else:
        for finding in found if show_all else grouped(found):
            mark = "[green]ok  [/green]" if finding.ok else "[red]look[/red]"
            console.print(f"{mark}  {escape(finding.what)}: {escape(finding.detail)}", highlight=False)
            if finding.mend:
                console.print(f"      mend: {escape(finding.mend)}", style="bold", highlight=False)
    if not all(finding.ok for finding in found):
        raise typer.Exit(1)
