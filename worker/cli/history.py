"""history: earlier scores of rows."""

from __future__ import annotations

from typing import Annotated

import typer

from pgoutlier.worker.cli.arguments import AsJson, CommandOfKeys, SourceName
from pgoutlier.worker.cli.context import open_runtime
from pgoutlier.worker.console import console, print_json, print_table
from pgoutlier.worker.history import keeping

history = typer.Typer(
    no_args_is_help=True,
    help="Earlier scores: the one before is kept, in outlier.score_history_SOURCE, whenever another model version"
    " scores a row anew. Off until you ask for it.",
)


@history.command("keep")
def keep(source: SourceName, as_json: AsJson = False) -> None:
    """Keep earlier scores of a source from now on.

    They are removed by prune after PGOUTLIER_KEEP_HISTORY_DAYS, or when their row is gone.

    Example: pgoutlier history keep payments
    """
    changed = keeping.keep(open_runtime(), source)
    if as_json:
        print_json({"source": source, "kept": True, "changed": changed})
    elif changed:
        console.print(
            f"Earlier scores are kept from now on in outlier.score_history_{source}.", highlight=False
        )
    else:
        console.print(f"Earlier scores of {source} are kept already.", highlight=False)


@history.command("stop")
def stop(
    source: SourceName,
    drop: Annotated[bool, typer.Option("--drop", help="Remove those that were kept, too.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="With --drop: do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Keep earlier scores of a source no more. Those that were kept stay, unless --drop."""
    if drop and not yes:
        typer.confirm(f"Remove all earlier scores of {source}?", abort=True)
    changed = keeping.stop(open_runtime(), source, drop=drop)
    if as_json:
        print_json({"source": source, "kept": False, "changed": changed})
    else:
        what = "are kept no more" if changed else "were not kept"
        console.print(f"Earlier scores of {source} {what}.", highlight=False)


@history.command("show", cls=CommandOfKeys)
def show(
    source: SourceName,
    key: Annotated[
        list[str],
        typer.Argument(help="Key of the row; one of several columns as a word a column, or as JSON."),
    ],
    as_json: AsJson = False,
) -> None:
    """Every score that a row has had, the newest first."""
    rows = keeping.of_row(open_runtime(), source, key)
    if as_json:
        print_json(rows)
    elif not rows:
        console.print(
            f"{source} has no score of {' '.join(key)}, and had none.", highlight=False, markup=False
        )
    else:
        columns = ["version", "reconstruction error", "flagged", "scored at", "replaced at"]
        fields = ["model_version", "reconstruction_error", "flagged", "scored_at", "replaced_at"]
        print_table("", columns, [[getattr(row, field) for field in fields] for row in rows])
