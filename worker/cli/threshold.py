"""threshold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import timedelta
from typing import Annotated

import typer

from pgoutlier.db.errors import ModelError, SourceError
from pgoutlier.worker.cli.arguments import AsJson, SourceName
from pgoutlier.worker.cli.context import open_runtime
from pgoutlier.worker.cli.status import parse_duration
from pgoutlier.worker.console import console, new_table, print_json
from pgoutlier.worker.thresholds import thresholds
from pgoutlier.worker.thresholds.thresholds import ChampionThreshold, ThresholdFigures

LONGEST = timedelta(days=36_525)


def threshold(
    source: SourceName,
    what_if: Annotated[
        bool, typer.Option("--what-if", help="Also what other thresholds would flag, from stored scores.")
    ] = False,
    at: Annotated[
        list[float] | None,
        typer.Option(help="A threshold to compare, in place of a range of them; may be repeated."),
    ] = None,
    window: Annotated[
        str, typer.Option(help="How far back from the newest row to count: 12h, 7d, or all.")
    ] = "30d",
    as_json: AsJson = False,
) -> None:
    """The champion's threshold: flags per day, and precision and recall where verdicts or labels are known.

    Counts the scores that the champion has stored; nothing is scored again and nothing is changed.

    Example: pgoutlier threshold payments --what-if --window 7d
    """
    if at and not all(math.isfinite(value) for value in at):
        raise ModelError("--at takes a finite number, such as --at 12.5.")
    others = list(dict.fromkeys(at)) if at else ([] if what_if else None)
    found = thresholds.describe(open_runtime(), source, window=parse_window(window), others=others)
    if as_json:
        print_json(
            {name: value for name, value in vars(found).items() if name != "what_if" or value is not None}
        )
        return
    _print_now(found)
    if found.what_if is not None and found.n_scores:
        _print_table(found, found.what_if)


def parse_window(text: str) -> timedelta | None:
    """How far back; None for all. Raises SourceError with the forms that are understood."""
    if text.strip() == "all":
        return None
    window = parse_duration(text)
    if window is None or not timedelta(0) < window <= LONGEST:
        raise SourceError(f"--window {text!r} is not a length of time; write 12h, 7d or all.")
    return window


def _print_now(found: ChampionThreshold) -> None:
    now = found.now
    name, version = found.source, found.version
    _say(f"Version {version} of {name} flags rows above {now.threshold:.6g} (policy {found.policy}).")
    if not found.n_scores:
        _say(f"No row of this time was scored by version {version}; look further back with --window all.")
        return
    flags = f"{now.flags:,} flagged ({now.share:.3%})"
    if found.days is None:
        _say(f"{found.n_scores:,} scores, {flags}; {found.time} covers too little time for flags a day.")
    else:
        _say(
            f"{found.n_scores:,} scores by {found.time} from {found.first:%Y-%m-%d %H:%M} to"
            f" {found.last:%Y-%m-%d %H:%M}: {flags}, {now.flags_per_day:,.1f} a day."
        )
    if found.counted_at is not None:
        _say(
            f"Most of them are counted as the sweep found them from {found.counted_at:%Y-%m-%d %H:%M} on, and flags"
            " between two of its steps of 4 % are estimated."
        )
    if _labelled(found):
        word = "verdict or label" if found.verdicts and found.label else "label"
        word = "verdict" if found.label is None else word
        _say(
            f"{found.n_labelled:,} of them have a {word}, {found.n_fraud:,} say fraud: precision"
            f" {_figure(now.precision)}, recall {_figure(now.recall)}. Rows without a {word} count as flags, not"
            " for precision and recall."
        )


def _labelled(found: ChampionThreshold) -> bool:
    return found.label is not None or found.verdicts


def _print_table(found: ChampionThreshold, cuts: Sequence[ThresholdFigures]) -> None:
    labelled = _labelled(found)
    table = new_table("", ["threshold", "flags", "a day", "share"])
    for name in ("precision", "recall", "F1") if labelled else ():
        table.add_column(name)
    table.add_column("")
    for cut in cuts:
        per_day = cut.flags_per_day
        figures = [_figure(getattr(cut, name)) for name in ("precision", "recall", "f1")] if labelled else []
        table.add_row(
            f"{cut.threshold:.6g}",
            f"{cut.flags:,}",
            "-" if per_day is None else f"{per_day:,.1f}",
            f"{cut.share:.3%}",
            *figures,
            "now" if cut.present else "",
        )
    console.print(table)
    _say(
        f"To use one of them: pgoutlier reflag {found.source} --threshold X. From then on rows above it are"
        " flagged, and those scored before are flagged anew."
    )


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _say(text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
