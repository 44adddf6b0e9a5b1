"""label and verdicts."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, BinaryIO

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pgoutlier.db.errors import VerdictError
from pgoutlier.db.verdicts.verdicts import named
from pgoutlier.worker.cli.arguments import AsJson, SourceName
from pgoutlier.worker.cli.context import open_runtime
from pgoutlier.worker.console import console, errors, print_json, print_table
from pgoutlier.worker.verdicts import judging, verdict_csv
from pgoutlier.worker.verdicts.judging import Given

_FORM = "write: pgoutlier label SOURCE KEY... fraud|normal|withdrawn, or: pgoutlier label SOURCE --csv FILE"


def label(
    source: SourceName,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY... fraud|normal|withdrawn",
            help="Keys of rows and what is said of them; withdrawn takes back what was said before.",
            show_default=False,
        ),
    ] = None,
    note: Annotated[str | None, typer.Option(help="Why; kept with the verdict.")] = None,
    csv: Annotated[
        Path | None,
        typer.Option(
            "--csv", help="A file with the columns key,verdict[,note] instead; - is standard input."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say that rows are fraud or normal; all of it is recorded, or nothing.

    The verdict given last holds. Fraud is not trained on, normal rows are even where they were flagged, and both are
    what precision and recall are measured with. Your role and the time are kept.

    Example: pgoutlier label payments 20002 fraud --note 'card reported stolen'

    Many at once: pgoutlier label payments --csv chargebacks.csv

    A key of several columns is a word for each, or JSON: pgoutlier label payments '[7, "2026-01-31"]' fraud

    A key that begins with a minus, and no digit behind it, goes after two dashes: pgoutlier label payments -- -a normal
    """
    if csv is not None:
        if words or note is not None:
            raise VerdictError(
                "--csv takes keys, verdicts and notes from the file; leave them away, or --csv."
            )
        done = _give_file(source, csv)
    else:
        if not words or len(words) < 2:
            raise VerdictError(f"A key or a verdict is missing; {_FORM}.")
        named(words[-1])
        done = judging.label(open_runtime(), source, words[:-1], words[-1], note=note)
    if as_json:
        print_json(vars(done))
        return
    again = f", {done.n_unchanged:,} known already" if done.n_unchanged else ""
    word = "verdict" if done.n_given == 1 else "verdicts"
    console.print(f"{done.n_given:,} {word} recorded{again}.", highlight=False)


def _give_file(source: str, path: Path) -> Given:
    runtime = open_runtime()
    name = "standard input" if str(path) == "-" else str(path)
    try:
        with _opened(path) as (file, n_bytes), _bar(source, file, n_bytes) as show:
            return judging.give(runtime, source, verdict_csv.read(file, name), on_progress=show)
    except OSError as error:
        raise VerdictError(f"{name} cannot be read: {error.strerror or error}.") from None


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, int | None]]:
    """The file and its length in bytes; None where that is not known before its end."""
    if str(path) == "-":
        yield sys.stdin.buffer, None
        return
    with path.open("rb") as file:
        yield file, os.fstat(file.fileno()).st_size or None


@contextmanager
def _bar(source: str, file: BinaryIO, n_bytes: int | None) -> Iterator[Callable[[int], None]]:
    """A bar of how much of a file was read on standard error, moved by what this gives."""
    columns = (
        TextColumn("labelling {task.description}"),
        BarColumn(bar_width=30),
        TextColumn("{task.fields[n]:,} verdicts"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    # Where there is no terminal, a bar would only leave an empty line.
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bar:
        task = bar.add_task(source, total=n_bytes, n=0)
        yield lambda n: bar.update(task, completed=file.tell() if n_bytes else None, n=n)


def verdicts(
    source: SourceName,
    key: Annotated[
        str | None, typer.Option(help="Only those of the row with this key; of several columns as JSON.")
    ] = None,
    history: Annotated[
        bool, typer.Option("--history", help="Also what was replaced or withdrawn since.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, help="At most this many, the newest first.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List the verdicts of a source: those that hold now, or their history; with who gave them and when.

    What a label column of the source says is not among them.
    """
    rows = judging.listed(open_runtime(), source, key=key, history=history, limit=limit)
    if as_json:
        print_json(rows)
        return
    if not rows:
        console.print(f"No verdict. Give one: pgoutlier label {source} KEY fraud|normal", highlight=False)
        return
    columns = ["key", "verdict", "note", "created_by", "created_at"]
    print_table("", columns, [[getattr(row, column) for column in columns] for row in rows])
