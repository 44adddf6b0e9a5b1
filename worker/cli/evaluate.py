"""evaluate: recipes measured on a file, with no server."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from pgoutlier import detector
from pgoutlier.worker.cli.report import write_evaluation
from pgoutlier.worker.console import console, epoch_bar, new_table, print_json
from pgoutlier.worker.training.recipes import chosen_recipe


def evaluate(
    data: Annotated[Path, typer.Option(help="A CSV, CSV.gz, Parquet or NPZ file (X, and y as the label).")],
    recipe: Annotated[
        list[str],
        typer.Option(help=f"What to fit: {', '.join(detector.RECIPES)}. Repeat it to compare on one split."),
    ],
    label: Annotated[
        str | None,
        typer.Option(
            help="Column of 0 and 1 that says which rows are anomalies. Without it: error quantiles only."
        ),
    ] = None,
    normal_value: Annotated[int, typer.Option(help="The label value of a normal row: 0 or 1.")] = 0,
    time: Annotated[
        str | None, typer.Option(help="Column that orders the rows; not a feature then. Default: file order.")
    ] = None,
    drop: Annotated[str | None, typer.Option(help="Columns that are no features, comma-separated.")] = None,
    features: Annotated[
        str | None,
        typer.Option(
            help="The features, as of pgoutlier attach: amount,hour(at),z(amount, 30d) by card. Default: every column"
            " that is named in no other option."
        ),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            help="Keep only rows for which COLUMN OP NUMBER holds, such as 'Amount<1500'. Repeatable."
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="time: fit on the earliest rows, test on the latest. random: draw the test rows."
            " Default: the split of the (first) recipe, with its test size and seed."
        ),
    ] = None,
    test_size: Annotated[
        float | None,
        typer.Option(help="Share of the rows to test on. Default: the recipe's; with --split, 0.3."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the split and of the fit. Default: the recipe's.")
    ] = None,
    at: Annotated[
        list[float] | None,
        typer.Option(help="Also show precision and recall at this threshold. Repeatable."),
    ] = None,
    no_header: Annotated[
        bool, typer.Option("--no-header", help="The first line is a row; columns are named 0, 1, ...")
    ] = False,
    keep_duplicates: Annotated[
        bool,
        typer.Option(
            "--keep-duplicates", help="Leave exact duplicate rows in, as some published figures do."
        ),
    ] = False,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="OUT.html",
            help="Also write a page of pictures; with several recipes one each, OUT-RECIPE.html.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One line of JSON for each recipe instead of a table.")
    ] = False,
) -> None:
    """Fit recipes on one part of a file and measure how well they detect on the other. Needs no server.

    Only normal rows are fitted on, and every row of the test part is tested; the anomaly is the positive class. Exact
    duplicate rows are dropped first, and so are rows with NaN or infinity in a feature unless all recipes impute them;
    the output says how many.

    Example: pgoutlier evaluate --data creditcard.csv.gz --recipe default --label Class --time Time --split time
    """
    # These take a second to import, which other commands need not wait for.
    from pgoutlier.worker.evaluation import figures, run, splits
    from pgoutlier.worker.evaluation.table import Columns, EvaluationError, load

    recipes = [chosen_recipe(name) for name in recipe]
    chosen = splits.chosen(recipes[0], order=split, test_size=test_size, seed=seed)
    if normal_value not in (0, 1):
        raise EvaluationError(f"--normal-value {normal_value} must be 0 or 1.")
    if not all(map(math.isfinite, at or ())):
        raise EvaluationError("--at must be a finite number.")
    table = load(
        data,
        Columns(
            label=label,
            normal_value=normal_value,
            time=time,
            drop=tuple(drop.split(",")) if drop else (),
            features=features,
        ),
        header=not no_header,
        where=where or (),
        keep_duplicates=keep_duplicates,
        keep_incomplete=all(one.missing == "median" for one in recipes),
    )
    found = []
    for i, one in enumerate(recipes):
        with epoch_bar("fitting", one.name) as show:
            evaluation = run.evaluate(table, one, chosen, seed=seed, on_progress=show)
        found.append(figures.Figures.of(evaluation, at=at or ()))
        if report is not None:
            write_evaluation(report if len(recipes) == 1 else _with_recipe(report, one.name), evaluation)
        if as_json:
            print_json(figures.as_json(found[-1]))
            continue
        about = [figures.describe_table(table), figures.describe_parts(evaluation)] if i == 0 else []
        for line in (*about, *(f"Note: {few.sentence()}" for few in evaluation.decided_by_few if i == 0)):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    if not as_json:
        shown = new_table("", ["", *(one.name for one in recipes)])
        for row in figures.table_rows(found):
            shown.add_row(*row)
        console.print(shown)


def _with_recipe(path: Path, recipe: str) -> Path:
    return path.with_name(f"{path.stem}-{recipe}{path.suffix}")
