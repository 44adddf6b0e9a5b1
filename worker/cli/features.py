"""features."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from pgoutlier.worker.cli.arguments import AsJson, SourceName
from pgoutlier.worker.cli.context import open_runtime
from pgoutlier.worker.console import console, identity, print_json, print_table
from pgoutlier.worker.scoring import row_values


def features(
    source: SourceName,
    keys: Annotated[list[str], typer.Argument(metavar="KEY...", help="Keys of rows.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """The values that the detector gets for these rows now, and the columns that they have in the table.

    What was known when a row was scored may differ: rows that came late, and later verdicts.

    Example: pgoutlier features payments 20002

    A key of several columns is a word for each, or JSON: pgoutlier features payments '[7, "2026-01-31"]'
    """
    found = row_values.of_rows(open_runtime(), source, keys)
    if as_json:
        print_json([asdict(row) for row in found])
        return
    for row in found:
        if row.problem is not None:
            console.print(f"{row.key}: {row.problem}", highlight=False, markup=False, soft_wrap=True)
        lines = [(name, value) for name, value in row.features.items()]
        print_table(f"row {row.key}: features", ["feature", "value"], lines)
        columns = [(name, identity(value)) for name, value in row.columns.items()]
        print_table(f"row {row.key}: columns", ["column", "value"], columns)
