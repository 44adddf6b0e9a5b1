"""train, and the models commands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer

from pgoutlier import detector
from pgoutlier.db.versions.version_care import VersionEvent
from pgoutlier.detector.far import FarValues
from pgoutlier.worker.cli.arguments import AsJson, Reason, SourceName, Version
from pgoutlier.worker.cli.context import open_runtime
from pgoutlier.worker.console import console, epoch_bar, print_json, print_table
from pgoutlier.worker.sources import listing
from pgoutlier.worker.training import gate, training
from pgoutlier.worker.versions import versions

models = typer.Typer(no_args_is_help=True, help="Versions of a source's model, and which one scores.")


def train(
    source: SourceName,
    promote: Annotated[
        bool | None,
        typer.Option(
            "--promote/--no-promote",
            help="Whether it scores at once. Default: the first one does; of others `pgoutlier models policy` says.",
        ),
    ] = None,
    recipe: Annotated[str | None, typer.Option(help="Another recipe than the one attached, by name.")] = None,
    threshold: Annotated[
        str | None,
        typer.Option(help=f"Another threshold policy, for this version: {detector.THRESHOLD_FORMS}."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the fit; the same seed gives the same model.")
    ] = None,
    queue: Annotated[
        bool, typer.Option("--queue", help="Leave it to the train worker and return at once.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Fit a new version on the newest normal rows, with progress."""
    runtime = open_runtime()
    if queue:
        from pgoutlier.worker import tasks

        training.plan(runtime, source, recipe_name=recipe, threshold=threshold)
        tasks.train.apply_async(
            (source,), {"promote": promote, "seed": seed, "recipe": recipe, "threshold": threshold}
        )
        console.print(
            f"Queued. Watch it: pgoutlier status; then: pgoutlier models list {source}", highlight=False
        )
        return
    with epoch_bar("training", source) as show:
        made = training.train(
            runtime,
            source,
            promote=promote,
            recipe_name=recipe,
            threshold=threshold,
            seed=seed,
            on_progress=show,
        )
    if as_json:
        print_json(asdict(made))
        return
    for sentence in made.sentences():
        console.print(sentence, highlight=False)


@models.command("policy")
def models_policy(
    source: SourceName,
    promotion: Annotated[
        str | None, typer.Argument(help="manual, if_better or always; without it the present one is shown.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """What becomes of versions when they have been trained.

    manual: an administrator promotes them. if_better: a tenth of the rows, the newest, are held out of the
    training; the version is promoted if it does better on them than the champion, by average precision and the
    precision of the top rows where 5 or more are known to be fraud, else if its flag rate, its errors and its features
    are sound. always: it is promoted unless it is refused, for too few rows or too many flags. Whatever is decided,
    the reason is kept with the version: pgoutlier models show.
    """
    runtime = open_runtime()
    changed = promotion is not None and gate.set_promotion(runtime, source, promotion)
    present = listing.find(runtime, source).promotion
    if as_json:
        print_json({"source": source, "promotion": present, "changed": changed})
    else:
        console.print(f"Promotion of {source}: {present}{' (set now)' if changed else ''}.", highlight=False)


@models.command("list")
def models_list(source: SourceName, as_json: AsJson = False) -> None:
    """All versions, the newest first."""
    rows = versions.listed(open_runtime(), source)
    if as_json:
        print_json([{k: v for k, v in vars(row).items() if k not in {"metrics", "recipe"}} for row in rows])
        return
    if not rows:
        console.print(f"No version yet. Make one: pgoutlier train {source}", highlight=False)
        return
    tagged = any(row.tags for row in rows)
    print_table(
        "",
        [
            *("version", "alias", *(["tags"] if tagged else [])),
            *("recipe", "rows", "threshold", "flag rate", "trained", "by"),
        ],
        [
            (
                row.version,
                ", ".join(row.aliases or []) or None,
                *([", ".join(row.tags or []) or None] if tagged else []),
                row.recipe_name,
                row.n_training_rows,
                row.threshold,
                row.metrics.get("calibration_flag_rate"),
                row.created_at,
                row.created_by,
            )
            for row in rows
        ],
    )


@models.command("show")
def models_show(source: SourceName, version: Version, as_json: AsJson = False) -> None:
    """One version: recipe, threshold, training window, metrics, tags; and when it was champion or challenger."""
    runtime = open_runtime()
    number = versions.number(runtime, source, version)
    row = versions.described(runtime, source, number)
    history = [
        event
        for event in versions.history(runtime, source)
        if event.alias and number in {event.from_version, event.version}
    ]
    if as_json:
        print_json({**vars(row), "alias_events": history})
        return
    facts = [(k, v) for k, v in vars(row).items() if k not in {"metrics", "recipe"} and v is not None]
    if unreadable := row.metrics.get("unreadable"):
        facts.append(("unreadable", "{n_rows:,} rows, such as key {key}: {error}".format(**unreadable)))
    print_table(f"version {number} of {source}", ["what", "value"], facts)
    shown_elsewhere = {"history", "gate", "unreadable", "decided_by_few"}
    figures = [(k, v) for k, v in row.metrics.items() if k not in shown_elsewhere]
    print_table("metrics", ["metric", "value"], sorted(figures))
    recipe = [(k, v) for k, v in row.recipe.items() if v not in (None, [], {})]
    print_table("recipe", ["field", "value"], recipe)
    for found in row.metrics.get("decided_by_few", ()):
        console.print(f"Note: {FarValues(**found).sentence()}", highlight=False, markup=False, soft_wrap=True)
    if judged := row.metrics.get("gate"):
        _print_gate(judged)
    if history:
        print_history("champion and challenger", history)


def _print_gate(judged: dict[str, Any]) -> None:
    """What became of the version when it had been trained, and the figures on held-out rows if there were any."""
    did = "promoted" if judged["promoted"] else "not promoted"
    console.print(
        f"By its training it was {did} (promotion {judged['promotion']}): {judged['reason']}.",
        highlight=False,
        soft_wrap=True,
    )
    if "n_held_out" not in judged:
        return
    sides = ("new", "champion", "baseline")
    names = sorted({name for side in sides for name in judged[side] or {}})
    print_table(
        f"gate: {judged['n_held_out']:,} held-out rows, {judged['n_fraud']:,} known to be fraud; top rows: "
        f"{judged['budget']:,}",
        ["figure", *sides],
        [(name.replace("_", " "), *((judged[side] or {}).get(name) for side in sides)) for name in names],
    )
    if judged["note"]:
        console.print(f"Note: {judged['note']}.", highlight=False, soft_wrap=True)
    if judged["champion_not_measured"]:
        console.print(
            f"The champion was not measured: {judged['champion_not_measured']}.",
            highlight=False,
            soft_wrap=True,
        )


def print_history(title: str, events: Sequence[VersionEvent]) -> None:
    """What was done with versions, a line each."""
    print_table(
        title,
        ["when", "what", "alias", "from", "version", "why", "by"],
        [
            [
                getattr(e, c)
                for c in ("created_at", "action", "alias", "from_version", "version", "detail", "created_by")
            ]
            for e in events
        ],
    )


@models.command("promote")
def models_promote(
    source: SourceName, version: Version, reason: Reason = "command line", as_json: AsJson = False
) -> None:
    """Make a version the champion. Workers see it with their next batch. A challenger is then none any more."""
    runtime = open_runtime()
    number = versions.number(runtime, source, version)
    moved = versions.promote(runtime, source, number, reason=reason)
    if as_json:
        print_json({"source": source, "champion": number, "moved": moved})
    else:
        console.print(
            f"Version {number} is {'now' if moved else 'already'} the champion of {source}.", highlight=False
        )


@models.command("rollback")
def models_rollback(source: SourceName, reason: Reason = "command line", as_json: AsJson = False) -> None:
    """Back to the champion before this one; once more goes one further back."""
    before, after = versions.rollback(open_runtime(), source, reason=reason)
    if as_json:
        print_json({"source": source, "from": before, "champion": after})
    else:
        console.print(f"{source} is back on version {after} (was {before}).", highlight=False)
