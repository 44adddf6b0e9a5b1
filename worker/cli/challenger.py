"""models challenge, models compare."""

from __future__ import annotations

from typing import Annotated

import typer

from pgoutlier.db.errors import ModelError
from pgoutlier.worker.cli.arguments import AsJson, Reason, SourceName
from pgoutlier.worker.cli.context import open_runtime
from pgoutlier.worker.console import console, identity, print_json, print_table
from pgoutlier.worker.versions import comparing, versions
from pgoutlier.worker.versions.comparing import Comparison


def challenge(
    source: SourceName,
    version: Annotated[
        str | None, typer.Argument(help="Number of the version; left out with --clear.")
    ] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Have no challenger any more.")] = False,
    reason: Reason = "command line",
    as_json: AsJson = False,
) -> None:
    """Let a second version score the same rows in the shadow: its scores are kept, and flag nothing.

    From the next batch on every row is scored by the champion and by the challenger, in one transaction. What the
    challenger does never stops the champion. To see how far the two agree: pgoutlier models compare SOURCE.

    Example: pgoutlier models challenge payments 3 --reason 'trained on March'
    """
    if clear == (version is not None):
        raise ModelError(
            f"Name the version that shall be the challenger, or none with --clear; see: pgoutlier models list {source}"
        )
    runtime = open_runtime()
    if version is None:
        cleared = versions.clear_challenger(runtime, source, reason=reason)
        if as_json:
            print_json({"source": source, "challenger": None, "moved": cleared is not None, "from": cleared})
        elif cleared is None:
            _say(f"{source} has no challenger.")
        else:
            _say(f"Version {cleared} is the challenger of {source} no more; its shadow scores stay for now.")
        return
    number = versions.number(runtime, source, version)
    moved = versions.challenge(runtime, source, number, reason=reason)
    advice = versions.challenger_advice(runtime, source)
    if as_json:
        print_json({"source": source, "challenger": number, "moved": moved, "index_advice": advice})
        return
    _say(f"Version {number} is {'now' if moved else 'already'} the challenger of {source}.")
    if advice:
        _say(f"To find the rows before each quickly, run: {advice}")
    _say(f"When rows have been scored: pgoutlier models compare {source}")


def compare(
    source: SourceName,
    rows: Annotated[
        int, typer.Option("--rows", min=0, help="Also show the last rows that only one of the two flags.")
    ] = 0,
    as_json: AsJson = False,
) -> None:
    """Hold the challenger against the champion: agreement, rows only one of them flags, how errors are spread.

    Counts rows that both as they are now have scored since the challenger was set. The same figures in SQL:
    the view outlier.comparison_SOURCE, row by row outlier.compared_SOURCE.

    Example: pgoutlier models compare payments --rows 10
    """
    found = comparing.compare(open_runtime(), source, limit=rows)
    if as_json:
        print_json(found)
    else:
        _print(found)


def _print(found: Comparison) -> None:
    champion, challenger = found.champion, found.challenger
    if found.problem:
        _say(f"The challenger did not score the last batch: {found.problem}")
    if not found.rows:
        _say(
            f"No row has been scored by version {champion} (champion) and version {challenger} (challenger) yet."
        )
        return
    _say(
        f"{found.rows:,} rows of {found.source} scored by both: version {champion} (champion) and"
        f" {challenger} (challenger) agree on {found.agreement:.3%} of them."
    )
    if found.n_missing:
        _say(f"{found.n_missing:,} rows were scored meanwhile without the challenger.")
    print_table(
        "",
        ["flagged by", "rows", "share"],
        [
            (name, getattr(found, field), f"{getattr(found, field) / found.rows:.3%}")
            for name, field in (
                ("both", "flagged_by_both"),
                ("the champion alone", "only_champion"),
                ("the challenger alone", "only_challenger"),
            )
        ],
    )
    print_table(
        "reconstruction errors",
        ["share of rows below", f"version {champion}", f"version {challenger}"],
        [
            *((f"{entry.level:.1%}", entry.champion, entry.challenger) for entry in found.quantiles),
            ("threshold", found.champion_threshold, found.challenger_threshold),
        ],
    )
    if found.disagreements:
        print_table(
            "flagged by one alone, the last scored first",
            ["key", f"version {champion}", f"version {challenger}", "flagged by", "scored at"],
            [
                (
                    identity(row.key),
                    row.reconstruction_error,
                    row.challenger_error,
                    "challenger" if row.would_flag else "champion",
                    row.scored_at,
                )
                for row in found.disagreements
            ],
        )


def _say(text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
