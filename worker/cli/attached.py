"""What attach and adopt say of what they did."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict

from pgoutlier.db.source.definition import WRITTEN_COLUMNS, SourceDefinition
from pgoutlier.db.sources.suggesting import Suggestion
from pgoutlier.worker.cli.jobs import left_out_text
from pgoutlier.worker.console import console, print_json, print_table
from pgoutlier.worker.jobs import job_control
from pgoutlier.worker.runtime import Runtime
from pgoutlier.worker.sources.attaching import Attached


def print_suggestion(found: Suggestion, *, as_json: bool) -> None:
    """The list of features, why each, and the command that takes them."""
    if as_json:
        print_json(
            {
                **asdict(found),
                "features": found.entries,
                "why": dict(found.features),
                "command": shlex.join(found.command),
            }
        )
        return
    print_table(f"features for {found.relation}", ["entry", "why"], found.features)
    if found.left_out:
        console.print(
            f"Left out: {', '.join(found.left_out)}.", highlight=False, markup=False, soft_wrap=True
        )
    console.print(
        f"To attach it so: {shlex.join(found.command)}", highlight=False, markup=False, soft_wrap=True
    )


def as_json_of(done: Attached, *, n_copied: int, made: Sequence[str] = ()) -> dict[str, object]:
    """What --json prints. n_copied: scores copied into the table's columns; made: indexes, as statements."""
    return {
        "source": done.source.name,
        "attached": done.made,
        "features": done.source.definition.feature_names,
        "left_out": done.left_out,
        "label_values": done.labels,
        "backfill_job": done.job.id if done.job else None,
        "n_left_out": done.job.n_left_out if done.job else None,
        "score_partitions": done.source.definition.score_partitions,
        "keep_scores_days": done.source.definition.keep_scores_days,
        "write_columns": done.source.definition.write_columns,
        "n_scores_copied": n_copied,
        "index_advice": done.indexes.before_each,
        "time_index_advice": done.indexes.newest,
        "past_index_advice": done.indexes.past,
        "indexes_made": made,
        "workers_without_table": done.workers_without_table,
        "analysts_without_rows": done.analysts_without_rows,
    }


def n_old_rows(runtime: Runtime, done: Attached) -> int | None:
    """Rows that the backfill has before it."""
    return job_control.described(runtime, done.job.id).n_rows if done.job else None


def print_attached(done: Attached, *, n_copied: int, n_old: int | None) -> None:
    """The same for people. n_old: rows that the backfill has before it."""
    definition = done.source.definition
    word = "Attached" if done.made else "Already attached:"
    console.print(
        f"{word} {definition.describe()}, as source [bold]{definition.name}[/bold].", highlight=False
    )
    if done.left_out:
        named = ", ".join(f"{name} ({kind})" for name, kind in done.left_out.items())
        console.print(f"Left out of the features: {named}.", highlight=False, markup=False, soft_wrap=True)
    if done.labels:
        said = {True: "fraud", False: "normal", None: "unknown"}
        named = ", ".join(
            f"{'NULL' if v.value is None else repr(v.value)} is {said[v.is_fraud]} ({v.n:,} rows)"
            for v in done.labels
        )
        console.print(
            f"Label {definition.label_column}: {named}.", highlight=False, markup=False, soft_wrap=True
        )
    if done.job is not None:
        console.print(
            f"Job {done.job.id} scores the {n_old:,} rows that were there already, once there is a champion: pgoutlier"
            f" jobs watch {done.job.id}",
            highlight=False,
            soft_wrap=True,
        )
    _print_kept(done)
    if definition.write_columns:
        console.print(
            f"{definition.relation} has the scores in its columns {' and '.join(WRITTEN_COLUMNS)}"
            f" ({n_copied:,} copied now). Worker roles need: pgoutlier db grant ROLE --as worker. To take the columns"
            " away again, attach with --no-write-columns.",
            highlight=False,
        )
    elif done.columns_taken_out:
        console.print(
            f"The columns {' and '.join(WRITTEN_COLUMNS)} were taken out of {definition.relation}.",
            highlight=False,
        )
    _print_indexes(done)
    for roles, what in (
        (done.workers_without_table, " --as worker"),
        (done.analysts_without_rows, ""),
    ):
        for role in roles:
            console.print(
                f"{role} may not read {definition.relation} yet: pgoutlier db grant {role}{what}",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )
    if done.made:
        console.print(f"Next: pgoutlier train {definition.name}", highlight=False)


def _print_kept(done: Attached) -> None:
    definition = done.source.definition
    if done.job is not None and done.job.n_left_out:
        console.print(left_out_text(done.job), highlight=False, soft_wrap=True)
    if definition.score_partitions or definition.keep_scores_days:
        console.print(f"Scores are kept {scores_text(definition)}.", highlight=False, soft_wrap=True)


def scores_text(definition: SourceDefinition) -> str:
    """How long scores are kept, and in which partitions."""
    days = definition.keep_scores_days
    kept = "until their row is gone" if days is None else f"{days:,} days by {definition.expires_by}"
    return kept + (f", in partitions by {definition.score_partitions}" if definition.score_partitions else "")


def _print_indexes(done: Attached) -> None:
    for why, index in (
        ("To find the rows before each quickly", done.indexes.before_each),
        *(("For the features over the rows before", statement) for statement in done.indexes.past),
        ("To find the newest rows of a large table quickly", done.indexes.newest),
    ):
        if index:
            console.print(f"{why}, first run: {index}", highlight=False, markup=False, soft_wrap=True)
