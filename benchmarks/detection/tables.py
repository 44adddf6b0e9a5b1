"""Means and ranks of what was measured, and the tables that show them, on a terminal or in Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from rich.table import Table
from rich.text import Text
from scipy.stats import rankdata

from benchmarks.detection.measure import Measured
from benchmarks.detection.sets import ADBENCH, CARDS, ECG, SETS
from pgoutlier.worker.console import new_table


@dataclass(frozen=True)
class Column:
    """One figure: how it is headed, read from a row's mean and written; larger, smaller or neither is best."""

    head: str
    figure: str
    digits: int
    best: Callable[[Iterable[float]], float] | None = max

    def best_of(self, numbers: Iterable[float | None]) -> float | None:
        known = [number for number in numbers if number is not None]
        return self.best(known) if self.best and known else None


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A table before it is drawn: rows of (method, a number for each column or None)."""

    title: str
    columns: tuple[Column, ...]
    rows: list[tuple[str, list[float | None]]]
    notes: list[str]

    def cells(self) -> Iterable[tuple[str, list[tuple[str, bool]]]]:
        """Each method with its numbers as text, and whether each is the best of its column."""
        by_column = zip(*(numbers for _, numbers in self.rows), strict=True)
        best = [column.best_of(numbers) for column, numbers in zip(self.columns, by_column, strict=True)]
        for method, numbers in self.rows:
            yield (
                method,
                [
                    ("-", False) if n is None else (f"{n:,.{column.digits}f}", n == top)
                    for n, column, top in zip(numbers, self.columns, best, strict=True)
                ],
            )


FIGURES = (
    Column("AUROC", "auroc", 4),
    Column("average precision", "average_precision", 4),
    Column("precision at 100", "precision_at_100", 3),
)
SECONDS = (Column("fit s", "fit_seconds", 2, None), Column("score s", "score_seconds", 2, None))
ACCURACY = Column("accuracy at the recipe's threshold", "accuracy", 4)
OF_CARDS = (
    Column("card precision at 100 a day", "card_precision", 3),
    *(Column(f"recall of kind {kind} in the top 1 %", f"recall_{kind}", 2) for kind in (1, 2, 3)),
)
RANKS = (
    Column("mean rank by AUROC", "auroc_rank", 2, min),
    Column("mean rank by average precision", "average_precision_rank", 2, min),
    Column("mean AUROC", "auroc", 4),
    Column("mean average precision", "average_precision", 4),
)


def grids(measured: Sequence[Measured]) -> list[Grid]:
    """One for each set, and one of the ranks where ADBench sets were measured."""
    found = [_set_grid([m for m in measured if m.set_name == name]) for name in SETS if _has(measured, name)]
    adbench = [m for m in measured if m.set_name in ADBENCH]
    return [*found, _rank_grid(adbench)] if adbench else found


def mean_ranks(measured: Sequence[Measured]) -> dict[str, dict[str, float]]:
    """By method, the mean over all sets and seeds of its rank by AUROC and by average precision.

    Rank 1 is the best; equal figures share the mean of their ranks. A method that failed on a split takes the
    last rank there. One that was measured on no split at all, or not on all sets, is left out.
    """
    splits = sorted({(m.set_name, m.seed) for m in measured})
    names = list(dict.fromkeys(m.method for m in measured))
    by_key = {(m.method, m.set_name, m.seed): m for m in measured}
    names = [
        name
        for name in names
        if all((name, *split) in by_key for split in splits)
        and any(by_key[name, *split].error is None for split in splits)
    ]
    ranks: dict[str, dict[str, float]] = {name: {} for name in names}
    for figure in ("auroc", "average_precision"):
        rows = []
        for split in splits:
            values = [getattr(by_key[name, *split], figure) for name in names]
            rows.append(rankdata([np.inf if value is None else -value for value in values]))
        for name, rank in zip(names, np.mean(rows, axis=0) if names else [], strict=True):
            ranks[name][f"{figure}_rank"] = float(rank)
    return ranks


def rich_table(grid: Grid) -> Table:
    """The grid for a terminal, the best of each column in bold."""
    table = new_table(grid.title, ["method", *(column.head for column in grid.columns)])
    table.columns[0].no_wrap = True
    for column in table.columns[1:]:
        column.justify = "right"
    for method, cells in grid.cells():
        table.add_row(Text(method), *(Text(text, style="bold" if best else "") for text, best in cells))
    if grid.notes:
        table.caption = Text("\n".join(grid.notes))
    return table


def markdown(grid: Grid) -> str:
    """The grid as Markdown, a bold line for its title, the best of each column in bold."""
    lines = [f"**{grid.title}**", "", f"| method | {' | '.join(column.head for column in grid.columns)} |"]
    lines.append("|---|" + "---:|" * len(grid.columns))
    for method, cells in grid.cells():
        texts = (f"**{text}**" if best else text for text, best in cells)
        lines.append(f"| {method} | {' | '.join(texts)} |")
    return "\n".join([*lines, *(f"\n{note}" for note in grid.notes), ""])


def _has(measured: Sequence[Measured], set_name: str) -> bool:
    return any(m.set_name == set_name for m in measured)


def _set_grid(measured: Sequence[Measured]) -> Grid:
    first = measured[0]
    columns = (
        *FIGURES,
        *((ACCURACY,) if first.set_name == ECG else ()),
        *(OF_CARDS if first.set_name == CARDS else ()),
        *SECONDS,
    )
    n_seeds = len({m.seed for m in measured})
    rows = f"fitted on {first.n_fit:,} rows, tested on {first.n_test:,}, {first.n_anomalies:,} anomalies"
    return Grid(
        title=f"{first.set_name}: {rows}" + (f"; mean of {n_seeds} seeds" if n_seeds > 1 else ""),
        columns=columns,
        rows=[
            (name, [_mean(some, column.figure) for column in columns]) for name, some in _by_method(measured)
        ],
        notes=_notes(measured),
    )


def _rank_grid(measured: Sequence[Measured]) -> Grid:
    ranks = mean_ranks(measured)
    rows: list[tuple[str, list[float | None]]] = [
        (
            name,
            [
                ranks[name][column.figure] if column.figure.endswith("_rank") else _mean(some, column.figure)
                for column in RANKS
            ],
        )
        for name, some in _by_method(measured)
        if name in ranks
    ]
    n_sets, n_splits = len({m.set_name for m in measured}), len({(m.set_name, m.seed) for m in measured})
    return Grid(
        title=f"ADBench: mean ranks of {len(rows)} methods over {n_sets} sets, {n_splits} splits",
        columns=RANKS,
        rows=sorted(rows, key=lambda row: row[1][0] or 0),
        notes=[f"{name} was not measured." for name, _ in _by_method(measured) if name not in ranks],
    )


def _by_method(measured: Sequence[Measured]) -> list[tuple[str, list[Measured]]]:
    names = dict.fromkeys(m.method for m in measured)
    return [(name, [m for m in measured if m.method == name]) for name in names]


def _mean(measured: Sequence[Measured], figure: str) -> float | None:
    """None where one lacks the figure: the mean of the others would be of other splits than its neighbours'."""
    values = [getattr(m, figure) for m in measured]
    return None if None in values else fmean(values)


def _notes(measured: Sequence[Measured]) -> list[str]:
    n_splits = len({m.seed for m in measured})
    counts = Counter((m.method, m.error) for m in measured if m.error)
    return [
        f"{method}: not measured on {count} of {n_splits} splits: {error}."
        for (method, error), count in counts.items()
    ]
