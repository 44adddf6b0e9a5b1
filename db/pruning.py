"""Removing what belongs to rows of the user's that are gone."""

from __future__ import annotations

from sqlalchemy import Connection

from db import jobs, quarantine, score_history, shadow, source_objects
from db.identifiers import identifier, ours
from db.sources import Source
from db.statements import compose, run


def prune(
    connection: Connection,
    source: Source,
    *,
    keep_training_runs: int,
    keep_drift_reports: int,
    keep_history_days: int,
    keep_jobs: int,
) -> int:
    """Delete scores and quarantine entries without a row, shadow scores that say nothing any more, earlier scores that
    are older than that, and all but the newest jobs, training runs and drift reports."""
    orphans = run(
        connection,
        compose(
            # By ctid: a score that is written anew meanwhile has moved, and stays.
            "DELETE FROM {scores} s USING (SELECT o.ctid AS place FROM {scores} o"
            " WHERE NOT EXISTS (SELECT FROM {relation} t WHERE t.{key} = o.key)) orphan WHERE s.ctid = orphan.place",
            scores=ours("scores", source.name),
            relation=source.definition.relation.sql(),
            key=identifier(source.definition.key_column),
        ),
    ).rowcount
    shadows = (
        0
        if "shadow_scores" in source_objects.lacks_of_shadow(connection, source.definition)
        else shadow.prune(connection, source)
    )
    old_runs = run(
        connection,
        "DELETE FROM outlier.training_runs WHERE source_id = %(source_id)s AND status <> 'running' AND id NOT IN"
        " (SELECT id FROM outlier.training_runs WHERE source_id = %(source_id)s ORDER BY id DESC LIMIT %(keep)s)",
        {"source_id": source.id, "keep": keep_training_runs},
    ).rowcount
    old_drift = run(
        connection,
        "DELETE FROM outlier.drift_reports WHERE source_id = %(source_id)s AND id NOT IN"
        " (SELECT id FROM outlier.drift_reports WHERE source_id = %(source_id)s ORDER BY id DESC LIMIT %(keep)s)",
        {"source_id": source.id, "keep": keep_drift_reports},
    ).rowcount
    old_jobs = jobs.prune(connection, source.id, keep=keep_jobs)
    earlier = score_history.prune(connection, source.definition, days=keep_history_days)
    entries = quarantine.prune(connection, source.definition, source.id)
    return orphans + shadows + old_runs + old_drift + old_jobs + earlier + entries
