"""attach, detach, sources, sweep, quarantine."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Annotated

import typer

from pgoutlier import detector
from pgoutlier.db.source.definition import SourceDefinition
from pgoutlier.db.sources.attach import AttachRequest
from pgoutlier.detector import Recipe
from pgoutlier.worker import tasks
from pgoutlier.worker.cli import attached
from pgoutlier.worker.cli.arguments import AsJson, CommandOfKeys, SourceName
from pgoutlier.worker.cli.context import open_runtime
from pgoutlier.worker.console import console, new_bar, print_json, print_table
from pgoutlier.worker.runtime import Runtime
from pgoutlier.worker.sources import attaching, filling, indexing, listing
from pgoutlier.worker.sources.attaching import Attached
from pgoutlier.worker.training import recipes
from pgoutlier.worker.upkeep import maintenance


def attach(
    relation: Annotated[
        str, typer.Argument(help="The table: schema.table, odd names quoted: 's.\"My Table\"'.")
    ],
    key: Annotated[
        str | None,
        typer.Option(
            help="Its unique key: smallint, integer, bigint, uuid or text; or up to four columns, apart by commas, also"
            " timestamptz, timestamp and date. Default: its primary key."
        ),
    ] = None,
    features: Annotated[
        str | None,
        typer.Option(
            help="Columns, comma-separated; also hour(a_time), weekday(a_time), an_array[16], and of the rows before"
            " count(24h) by card, z(amount, 30d) by card: see the guide."
        ),
    ] = None,
    all_numeric_except: Annotated[
        str | None,
        typer.Option(help="Every numeric and boolean column but these (and key, time, entity, label)."),
    ] = None,
    feature_view: Annotated[
        str | None, typer.Option(help="A view with the same key column, to take the features from.")
    ] = None,
    time: Annotated[
        str | None, typer.Option(help="Event time column; training takes the newest rows by it.")
    ] = None,
    entity: Annotated[
        str | None, typer.Option(help="Column that says whose row it is (customer, card).")
    ] = None,
    label: Annotated[
        str | None, typer.Option(help="Column that says fraud where known; such rows are not trained on.")
    ] = None,
    recipe: Annotated[str, typer.Option(help=f"What to fit: {', '.join(detector.RECIPES)}.")] = "default",
    threshold: Annotated[
        str | None,
        typer.Option(help=f"Threshold policy in place of the recipe's: {detector.THRESHOLD_FORMS}."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the source; by default made of the table's.")
    ] = None,
    backfill: Annotated[
        bool,
        typer.Option(
            "--backfill", help="Score the rows that are there already, too: see pgoutlier backfill."
        ),
    ] = False,
    write_columns: Annotated[
        bool | None,
        typer.Option(
            "--write-columns/--no-write-columns",
            help="Add reconstruction_error and flagged to the table itself and keep them up to date, or take them"
            " away again. By default as it is.",
        ),
    ] = None,
    row_triggers: Annotated[
        bool | None,
        typer.Option(
            "--row-triggers/--no-row-triggers",
            help="Triggers that fire for each row that logical replication applies, which fires no others. By default"
            " made where a subscription writes the table, else as it is.",
        ),
    ] = None,
    late: Annotated[
        str | None,
        typer.Option(
            help="What becomes of the rows behind one that comes late, which saw too few rows before: leave (the"
            " default) or rescore, those in the windows, at most 1,000 a row."
        ),
    ] = None,
    make_indexes: Annotated[
        bool,
        typer.Option(
            "--make-indexes",
            help="Make the indexes that the source needs on the table, while it is written; else they are printed.",
        ),
    ] = False,
    suggest: Annotated[
        bool,
        typer.Option(
            "--suggest", help="Look at the table, print a list of features with reasons, and change nothing."
        ),
    ] = False,
    partition_scores: Annotated[
        str | None,
        typer.Option(
            help="Keep the scores in partitions by the time in the key: day, week, month or year. They are made ahead,"
            " and dropped with the rows of theirs. For a new source."
        ),
    ] = None,
    keep_scores: Annotated[
        str | None,
        typer.Option(
            help="How long scores are kept, by the time in the key or else --time: days such as 400d, or forever, which"
            " is until their row is gone. By default as it is."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the SQL and change nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Watch a table: from now on every new row is queued and scored, and re-scored when a feature changes.

    Safe to run again. The table itself gets two triggers, with --write-columns two columns, and is otherwise left as
    it is.

    Example: pgoutlier attach public.transactions --key id --features 'amount,hour(occurred_at)' --time occurred_at

    With the scores in the table: pgoutlier attach public.transactions --key id --features amount --write-columns
    """
    chosen = recipes.chosen_recipe(recipe, threshold=threshold)
    runtime = open_runtime()
    request = AttachRequest(
        relation=relation,
        key=key,
        features=features,
        all_numeric_except=all_numeric_except,
        feature_view=feature_view,
        time=time,
        entity=entity,
        label=label,
        name=name,
        write_columns=write_columns,
        row_triggers=row_triggers,
        late=late,
        partition_scores=partition_scores,
        keep_scores=keep_scores,
    )
    if suggest:
        attached.print_suggestion(attaching.suggest(runtime, request), as_json=as_json)
        return
    if dry_run:
        console.file.write(attaching.script(runtime, request, chosen))
        return
    done = attaching.attach(runtime, request, chosen, old_rows="backfilled" if backfill else "left")
    if done.job is not None:
        tasks.ask_for_work(done.job.id)
    n_copied = filling.fill(runtime, done.source.name)
    made = _make_indexes(runtime, done, chosen, as_json=as_json) if make_indexes else []
    if made:
        done = replace(done, indexes=indexing.lacking(runtime, done.source.definition, chosen))
    if as_json:
        print_json(attached.as_json_of(done, n_copied=n_copied, made=made))
    else:
        attached.print_attached(done, n_copied=n_copied, n_old=attached.n_old_rows(runtime, done))


def _make_indexes(runtime: Runtime, done: Attached, recipe: Recipe, *, as_json: bool) -> list[str]:
    made = []
    for statement in indexing.make(runtime, done.source.definition, recipe):
        if not as_json:
            console.print(f"Making: {statement}", highlight=False, markup=False, soft_wrap=True)
        made.append(statement)
    return made


def adopt(
    source: SourceName,
    key: Annotated[
        str | None,
        typer.Option(help="Its key, where that is another one now; several columns apart by commas."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Go on with another table of the same name, after a swap by rename say: all of its rows are scored anew.

    Scores, queue and quarantine of the table before are dropped; model versions, verdicts and rights on the views stay.

    Example: pgoutlier adopt payments
    """
    runtime = open_runtime()
    relation = listing.find(runtime, source).definition.relation
    if not yes:
        typer.confirm(f"Drop the scores of {source}, and score all rows of {relation} anew?", abort=True)
    done = attaching.adopt(runtime, source, key=key)
    if done.job is not None:
        tasks.ask_for_work(done.job.id)
    if as_json:
        print_json(attached.as_json_of(done, n_copied=0))
    else:
        attached.print_attached(done, n_copied=0, n_old=attached.n_old_rows(runtime, done))


def detach(
    source: SourceName,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Stop watching a table: drops its triggers, written columns, queue, scores, views, verdicts, notices, jobs and
    model versions."""
    runtime = open_runtime()
    relation = listing.find(runtime, source).definition.relation
    if not yes:
        typer.confirm(
            f"Drop the scores, verdicts and all model versions of {source} ({relation})?",
            abort=True,
        )
    left = attaching.detach(runtime, source)
    if left:
        console.print(
            f"Detached {source}; its two columns are left, which an owner has to drop: {left}",
            highlight=False,
        )
        return
    console.print(f"Detached {source}; {relation} is as it was before.", highlight=False)


def sources(as_json: AsJson = False) -> None:
    """List the watched tables."""
    found = listing.every(open_runtime())
    if as_json:
        print_json([{**s.definition.model_dump(mode="json"), "recipe": s.recipe["name"]} for s in found])
        return
    if not found:
        console.print("No table is attached yet. Start with: pgoutlier attach --help")
        return
    print_table(
        "",
        ["source", "table", "key", "features", "time", "label", "recipe", "columns", "scores"],
        [
            (
                s.name,
                s.definition.relation,
                f"{s.definition.key.shown} ({', '.join(s.definition.key.types)})",
                s.definition.n_features,
                s.definition.time_column,
                s.definition.label_column,
                s.recipe["name"],
                "written" if s.definition.write_columns else None,
                _shortly(s.definition),
            )
            for s in found
        ],
    )


def _shortly(definition: SourceDefinition) -> str | None:
    """What is particular about its scores."""
    days, period = definition.keep_scores_days, definition.score_partitions
    return (
        ", ".join(filter(None, (f"{days} days" if days else None, f"by {period}" if period else None)))
        or None
    )


def sweep(
    source: SourceName,
    whole: Annotated[
        bool,
        typer.Option(
            "--all", help="Look at all rows at once, with a bar, and not at those whose turn it is."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Queue the rows that got past the triggers (disabled triggers, logical replication, COPY into a partition).

    Looks at what is new since the last sweep, and at a part of all rows: within PGOUTLIER_UPKEEP_TURN_SECONDS, a day,
    at every one.

    Rows from before attach are left alone until a backfill has been through them: pgoutlier backfill SOURCE
    """
    runtime = open_runtime()
    if whole:
        with new_bar("{task.completed:,} of about {task.total:,} rows") as bar:
            task = bar.add_task(f"looking through {source}", total=None)
            n_found = maintenance.sweep(
                runtime, source, whole=True, on_progress=lambda n, of: bar.update(task, completed=n, total=of)
            )
    else:
        n_found = maintenance.sweep(runtime, source)
    if as_json:
        print_json({"source": source, "n_found": n_found})
    else:
        console.print(f"{n_found:,} rows queued.", highlight=False)


quarantine = typer.Typer(no_args_is_help=True, help="Rows that could not be scored, with the reason.")


@quarantine.command("list")
def quarantine_list(
    source: SourceName,
    limit: Annotated[int, typer.Option(min=1, help="At most this many, the newest first.")] = 50,
    as_json: AsJson = False,
) -> None:
    """Show quarantined rows. A row leaves by itself when an UPDATE mends its features."""
    entries = maintenance.quarantined(open_runtime(), source, limit=limit)
    if as_json:
        print_json([asdict(entry) for entry in entries])
    elif not entries:
        console.print("Nothing is in quarantine.")
    else:
        columns = ["key", "reason", "column_name", "detail", "quarantined_at"]
        print_table("", columns, [[getattr(entry, c) for c in columns] for entry in entries])


@quarantine.command("retry", cls=CommandOfKeys)
def quarantine_retry(
    source: SourceName,
    keys: Annotated[
        list[str] | None, typer.Argument(help="Only these keys; without any, all of them.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Queue quarantined rows again, for instance after mending the feature view."""
    n_moved = maintenance.retry_quarantine(open_runtime(), source, keys or None)
    if as_json:
        print_json({"source": source, "n_retried": n_moved})
    else:
        console.print(f"{n_moved:,} rows queued again.", highlight=False)
