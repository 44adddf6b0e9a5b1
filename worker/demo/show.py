"""The demo's last page: flagged rows, figures, and where to look further."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from pgoutlier.db.demo.demo_tables import TRUTH
from pgoutlier.worker.console import new_table, top_features_text
from pgoutlier.worker.demo.figures import Outcome


def show_outcome(console: Console, outcome: Outcome) -> None:
    """Tables for people, on the given console."""
    flagged = new_table(
        "Flagged live rows with the largest reconstruction errors", ["key", "error", "truth", "top features"]
    )
    for row in outcome.worst:
        flagged.add_row(
            f"{row.key}",
            f"{row.reconstruction_error:,.1f}",
            row.fraud_kind or "-",
            top_features_text(row.top_features),
        )
    if outcome.worst:
        console.print(flagged)
    _print_figures(
        console, "Detection, on the live rows (the model was not trained on them)", _detection(outcome)
    )
    _print_figures(console, "The main job", _job(outcome))
    for complaint in outcome.complaints:
        console.print(f"FAILED: {complaint}", style="bold red", highlight=False)
    if not outcome.complaints:
        console.print("Every row has exactly one score or stands in quarantine.", style="bold green")


def _detection(outcome: Outcome) -> list[tuple[str, str]]:
    found = outcome.detection
    if found.auroc is None:
        return [("truth", "not known: name the label column with --label to get figures")]
    return [
        ("frauds", f"{found.n_frauds:,} of {found.n_rows:,} rows (prevalence {found.prevalence:.4%})"),
        ("AUROC", f"{found.auroc:.4f}"),
        ("average precision", f"{found.average_precision:.4f} (chance: {found.prevalence:.4f})"),
        ("precision at the threshold", "-" if found.precision is None else f"{found.precision:.4f}"),
        ("recall at the threshold", f"{found.recall:.4f}"),
    ]


def _job(outcome: Outcome) -> list[tuple[str, str]]:
    totals, latency = outcome.totals, outcome.latency_ms
    times = "  ".join(f"{name} {value} ms" for name, value in latency.items())
    return [
        ("rows inserted", f"{totals.n_rows:,}"),
        ("scored", f"{totals.n_scored:,} (written twice: {totals.n_rewritten:,})"),
        ("quarantined", f"{totals.n_quarantined:,}"),
        ("flagged", f"{totals.n_flagged:,}"),
        ("commit to visible score", times),
        ("backlog drained at", f"{outcome.rows_per_second:,.0f} rows/s"),
        ("model version", str(outcome.model_version)),
    ]


def _print_figures(console: Console, title: str, rows: list[tuple[str, str]]) -> None:
    table = new_table(title, ["", ""])
    table.show_header = False
    for name, value in rows:
        table.add_row(name, value)
    console.print(table)


def show_commands(console: Console, data_dir: Path, source: str, *, kept: bool, has_truth: bool) -> None:
    """The exact commands to look further."""
    if not kept:
        console.print(
            "\nThe servers are stopped and their data is gone. Run it with --keep (make demo ARGS=--keep) to explore.",
            highlight=False,
        )
        return
    prefix = f"PGOUTLIER_DATA_DIR={data_dir} .venv/bin/pgoutlier"
    queries = [f"SELECT * FROM outlier.flagged_{source} ORDER BY scored_at DESC LIMIT 5"]  # noqa: S608 - printed, not run
    if has_truth:
        queries.append(
            f"SELECT fraud_kind, count(*), count(*) FILTER (WHERE flagged) AS flagged FROM outlier.scores_{source}"  # noqa: S608
            f" JOIN {TRUTH} ON id = key GROUP BY 1 ORDER BY 1"
        )
    console.print("\nThe servers go on running. Look further:", style="bold")
    for command in (
        f"{prefix} flagged {source}",
        f"{prefix} status",
        f"{prefix} models show {source} 1",
        f"{prefix} report {source}",
        *(f'{prefix} psql -c "{query}"' for query in queries),
        f"{prefix} up",
        f"{prefix} servers purge --yes",
    ):
        console.print(f"  {command}", highlight=False, soft_wrap=True)
