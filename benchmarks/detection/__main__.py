"""python -m benchmarks.detection: fits and scores, then prints a table for each set."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.detection.measure import Measured, measure_all
from benchmarks.detection.methods import Method, methods
from benchmarks.detection.sets import GROUPS, QUICK, SETS, MissingData, Split, chosen, load
from benchmarks.detection.tables import grids, markdown, mean_ranks, rich_table
from pgoutlier.worker.console import print_json

BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"
SEEDS = (0, 1, 2)
VERSIONS = ("pgoutlier", "tensorflow-cpu", "scikit-learn", "pyod", "torch", "numpy")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def compare(
    *,
    data_dir: Annotated[
        Path, typer.Option(help="Folder of creditcard.csv.gz, ecg5000.csv.gz and adbench/.")
    ] = Path("../shared/data"),
    only: Annotated[
        list[str] | None,
        typer.Option(
            help=f"A set to measure, again for more: {', '.join((*GROUPS, *SETS))}. Without it, all."
        ),
    ] = None,
    chosen_methods: Annotated[
        list[str] | None,
        typer.Option(
            "--methods", help="A method to measure, again for more, named as in the tables. Without it, all."
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help=f"Only {' and '.join(QUICK)}, one seed: a trial run.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="One line of JSON instead of tables.")] = False,
    markdown_file: Annotated[
        Path | None,
        typer.Option("--markdown", help=f"A page whose part between {BEGIN} and {END} is written anew."),
    ] = None,
) -> None:
    """Fit and score our recipes and their peers on the same splits, in one run.

    Each method runs in a process of its own, one after the other. On two cores the whole run takes tens of minutes,
    most of them PyOD's AutoEncoder and the published systems on the credit card table; --quick takes a minute or two.

    Progress goes to standard error.
    """
    page = None if markdown_file is None else _page(markdown_file)
    set_names = _sets(QUICK if quick and not only else only or ())
    selected = _methods(chosen_methods or ())
    try:
        splits = list(load(set_names, data_dir, seeds=SEEDS[:1] if quick else SEEDS))
    except MissingData as error:
        raise _refused(str(error)) from None
    started = time.perf_counter()
    measured = [result for method in selected for result in _measured(method, splits)]
    seconds = time.perf_counter() - started
    if page is not None and markdown_file is not None:
        tables = "\n".join(markdown(grid) for grid in grids(measured))
        markdown_file.write_text(f"{page[0]}{BEGIN}\n{_about(seconds)}\n\n{tables}{END}{page[1]}")
    if json:
        adbench = [m for m in measured if m.set_name in GROUPS["adbench"]]
        print_json(
            {
                "versions": _versions(),
                "seconds": seconds,
                "settings": {method.name: method.settings for method in selected},
                "results": [asdict(result) for result in measured],
                "adbench_mean_ranks": mean_ranks(adbench),
            }
        )
        return
    console = Console()
    for grid in grids(measured):
        console.print(rich_table(grid))
    console.print(_about(seconds))


def _measured(method: Method, splits: Sequence[Split]) -> list[Measured]:
    results = []
    for result in measure_all(method, [split for split in splits if split.set_name in method.sets]):
        if result.error:
            shown = result.error
        else:
            shown = f"AUROC {result.auroc:.4f}, average precision {result.average_precision:.4f}"
            shown += f", fit {result.fit_seconds:.1f} s"
        sys.stderr.write(f"{method.name} on {result.set_name}, seed {result.seed}: {shown}\n")
        results.append(result)
    return results


def _sets(only: Sequence[str]) -> tuple[str, ...]:
    try:
        return chosen(only)
    except KeyError as error:
        raise _refused(
            f"There is no set {error.args[0]!r}; choose from {', '.join((*GROUPS, *SETS))}."
        ) from None


def _methods(names: Sequence[str]) -> list[Method]:
    known = methods()
    if unknown := [name for name in names if name not in known]:
        raise _refused(f"There is no method {unknown[0]!r}; choose from {', '.join(known)}.")
    selected = [method for name, method in known.items() if not names or name in names]
    if any(method.missing_package() == "pyod" for method in selected):
        raise _refused(
            "PyOD is not installed in this environment; `make bench-detection` sets up one that has it, "
            "or name with --methods what to measure without it."
        )
    return selected


def _page(path: Path) -> tuple[str, str]:
    """What stands before and after the tables of the page."""
    text = path.read_text() if path.is_file() else ""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise _refused(f"{path} has no lines {BEGIN} and {END}; the tables go between them.")
    return before, after


def _refused(why: str) -> typer.Exit:
    sys.stderr.write(f"{why}\n")
    return typer.Exit(2)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _about(seconds: float) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in _versions().items())
    return f"Measured in {seconds / 60:.1f} minutes with {versions}."


if __name__ == "__main__":
    app()
