"""Removing what belongs to rows of the user's that are gone."""

from __future__ import annotations

from psycopg import sql
from sqlalchemy import Connection

from pgoutlier.db.ddl import installation
from pgoutlier.db.history import score_history
from pgoutlier.db.scoring import quarantine
from pgoutlier.db.source import identity
from pgoutlier.db.source.definition import Source
from pgoutlier.db.sql.identifiers import SCHEMA, identifier, ours
from pgoutlier.db.sql.statements import compose, run
from pgoutlier.db.versions import challenger_scores

_ENDED = sql.SQL("status <> 'running'")


def prune(
    connection: Connection,
    source: Source,
    *,
    keep_training_runs: int,
    keep_drift_reports: int,
    keep_history_days: int,
    keep_jobs: int,
) -> int:
    """Delete scores and quarantine entries without a row, scores of challengers that say nothing any more, earlier
    scores that are older than that, and all but the newest jobs, training runs and drift reports.

    Raises TableReplaced if it was another table that was read.
    """
    orphans = run(
        connection,
        compose(
            # By ctid: a score that is written anew meanwhile has moved, and stays.
            "DELETE FROM {scores} s USING (SELECT o.ctid AS place FROM {scores} o"
            " WHERE NOT EXISTS (SELECT FROM {relation} t WHERE {same})) orphan WHERE s.ctid = orphan.place",
            scores=ours("scores", source.name),
            relation=source.definition.relation.sql(),
            same=source.definition.key.is_of("t", "o"),
        ),
    ).rowcount
    of_challengers = (
        0
        if "shadow_scores" in installation.lacks_for_challenger(connection, source.definition)
        else challenger_scores.prune(connection, source)
    )
    old = sum(
        _all_but_newest(connection, table, source.id, keep, which=which)
        for table, keep, which in (
            ("training_runs", keep_training_runs, _ENDED),
            ("jobs", keep_jobs, _ENDED),
            ("drift_reports", keep_drift_reports, sql.SQL("true")),
        )
    )
    earlier = score_history.prune(connection, source.definition, days=keep_history_days)
    entries = quarantine.prune(connection, source)
    identity.check(connection, source)
    return orphans + of_challengers + old + earlier + entries


def _all_but_newest(
    connection: Connection, table: str, source_id: int, keep: int, *, which: sql.Composable
) -> int:
    """Delete what is none of the source's newest, of those to which the condition applies. Returns how many."""
    return run(
        connection,
        compose(
            "DELETE FROM {table} WHERE source_id = %(source_id)s AND {which} AND id NOT IN"
            " (SELECT id FROM {table} WHERE source_id = %(source_id)s ORDER BY id DESC LIMIT %(keep)s)",
            table=identifier(SCHEMA, table),
            which=which,
        ),
        {"source_id": source_id, "keep": keep},
    ).rowcount
