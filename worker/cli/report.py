"""report."""

from __future__ import annotations

import sys
import webbrowser
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pgoutlier.db.errors import PgoutlierError
from pgoutlier.worker.cli.arguments import AsJson
from pgoutlier.worker.cli.context import open_runtime
from pgoutlier.worker.console import console, epoch_bar, errors, print_json
from pgoutlier.worker.training.recipes import chosen_recipe

if TYPE_CHECKING:
    from pgoutlier.worker.evaluation.run import Evaluation
    from pgoutlier.worker.evaluation.table import Columns


class ReportError(PgoutlierError):
    """A report that cannot be written where it should go."""


def report(
    source: Annotated[str | None, typer.Argument(help="Name of the source; or give --data.")] = None,
    version: Annotated[
        int | None,
        typer.Option(
            min=1, help="The page that was kept when this version was trained, in place of a live one."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Where to; - for standard output. Default: report-NAME.html."),
    ] = None,
    rows: Annotated[
        int, typer.Option(min=1, max=1_000_000, help="Look at this many of the newest rows of the table.")
    ] = 20_000,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Of a file in place of a source, with no server: fitted on one part of it, shown on the other."
        ),
    ] = None,
    recipe: Annotated[str, typer.Option(help="With --data: the recipe to fit.")] = "default",
    label: Annotated[
        str | None, typer.Option(help="With --data: column of 0 and 1 that says which rows are anomalies.")
    ] = None,
    normal_value: Annotated[
        int, typer.Option(min=0, max=1, help="With --data: the label value of a normal row.")
    ] = 0,
    time: Annotated[str | None, typer.Option(help="With --data: column that orders the rows.")] = None,
    drop: Annotated[
        str | None, typer.Option(help="With --data: columns that are no features, comma-separated.")
    ] = None,
    no_header: Annotated[
        bool, typer.Option("--no-header", help="With --data: the first line is a row; columns are 0, 1, ...")
    ] = False,
    show: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    as_json: AsJson = False,
) -> None:
    """Pictures of a model and of what it scored, as one HTML page that needs no network.

    Of a source, without --version, it shows the champion and the newest rows it has scored: errors against the
    threshold, what made flagged rows stand out, drift since the training, and ROC, precision and recall if the source
    has a label column. Of a file (--data), the split is the recipe's own; for another one, and for several recipes:
    pgoutlier evaluate --report.
    """
    if (source is None) == (data is None):
        raise ReportError("Name a source, or a file with --data; one of the two.")
    if data is not None:
        from pgoutlier.worker.evaluation.table import Columns  # takes a second to import

        dropped = tuple(drop.split(",")) if drop else ()
        columns = Columns(label=label, normal_value=normal_value, time=time, drop=dropped)
        name, page = data.name.split(".")[0], _page_of_file(data, columns, recipe, header=not no_header)
    else:
        assert source is not None
        name, (version, page) = source, _page_of_source(source, version, rows)
    if output == Path("-"):
        sys.stdout.write(page)
        return
    path = output or Path(f"report-{name}.html")
    write_page(path, page)
    if as_json:
        print_json({"source": source, "version": version, "path": str(path), "n_bytes": len(page.encode())})
    else:
        of_version = f", version {version}" if version else ""
        console.print(
            f"{path} ({len(page.encode()) / 1e3:,.0f} kB{of_version})", highlight=False, soft_wrap=True
        )
    if show:
        webbrowser.open(path.resolve().as_uri())


def _page_of_source(source: str, version: int | None, rows: int) -> tuple[int, str]:
    runtime = open_runtime()
    from pgoutlier.worker.report import of_source

    with _drawing():
        if version is not None:
            return version, of_source.kept_page(runtime, source, version)
        return of_source.live_page(runtime, source, newest=rows)


def _page_of_file(path: Path, columns: Columns, recipe_name: str, *, header: bool) -> str:
    from pgoutlier.worker.evaluation import run, splits, table
    from pgoutlier.worker.report.of_evaluation import evaluation_page

    recipe = chosen_recipe(recipe_name)
    loaded = table.load(path, columns, header=header, keep_incomplete=recipe.missing == "median")
    with epoch_bar("fitting", recipe.name) as bar:
        evaluation = run.evaluate(loaded, recipe, splits.chosen(recipe), on_progress=bar)
    with _drawing():
        return evaluation_page(evaluation)


def write_evaluation(path: Path, evaluation: Evaluation) -> None:
    """Draw the report of an evaluation into a file. Raises ReportError if it cannot be written."""
    from pgoutlier.worker.report.of_evaluation import evaluation_page

    with _drawing():
        page = evaluation_page(evaluation)
    write_page(path, page)


def _drawing() -> AbstractContextManager[object]:
    return errors.status("drawing") if errors.is_terminal else nullcontext()


def write_page(path: Path, page: str) -> None:
    """The page into the file, whole or not at all. Raises ReportError if that cannot be."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(page, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise ReportError(
            f"The report cannot be written to {path}: {error.strerror}; name another --output."
        ) from None
