"""Which rows of a source are trained on, and reading them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from psycopg import sql
from sqlalchemy import Connection

from db import features, sequences
from db.definition import SourceDefinition
from db.identifiers import identifier, ours
from db.statements import compose, one, run_dicts

# Far below the 1 GB of one array, however many features there are.
_ROWS_PER_BLOCK = 10_000
# How a label column says fraud; anything else, NULL too, counts as not known to be fraud.
FRAUD_LABELS = ("1", "1.0", "t", "true", "y", "yes", "fraud", "anomaly")


@dataclass(frozen=True)
class TrainingRows:
    """matrix (n, d) float64, the oldest row first; left_out: rows passed over, by reason.

    first, last: event time (or key) of the oldest and the newest row, as text. runs (n,): where rows are scored
    with those before them, rows of one run are of one entity, with none left out between them.
    """

    matrix: npt.NDArray[np.float64]
    left_out: dict[str, int]
    first: str | None
    last: str | None
    runs: npt.NDArray[np.int64] | None = None


def read(
    connection: Connection,
    source: SourceDefinition,
    source_id: int,
    *,
    newest: int,
    imputes: bool = False,
    in_runs: bool = False,
) -> TrainingRows:
    """The newest rows that are neither flagged, nor labelled fraud, nor in quarantine, nor incomplete.

    imputes: the recipe fills gaps, so a row with some is not incomplete. in_runs: tell whose history each row is
    in; the source has a time column.
    """
    window = _window(source, newest)
    reason = _reason(source)
    params: dict[str, Any] = {"source_id": source_id, "fraud": list(FRAUD_LABELS)}
    counted = run_dicts(
        connection,
        compose(
            "SELECT {reason} AS reason, count(*) AS n, min({moment})::text AS first, max({moment})::text AS last"
            " FROM ({window}) w GROUP BY 1",
            reason=reason,
            window=window,
            moment=_comparable_moment(source),
        ),
        params,
    )
    kept = next((row for row in counted if row["reason"] is None), None)
    origin = compose(
        "FROM {window} w JOIN {relation} t ON t.{key} = w.key WHERE w.reason IS NULL",
        window=_in_runs(window, reason)
        if in_runs
        else compose("(SELECT w.*, {reason} AS reason FROM ({window}) w)", reason=reason, window=window),
        relation=source.feature_relation.sql(),
        key=identifier(source.key_column),
    )
    place = sql.SQL("row_number() OVER (ORDER BY w.moment, w.key)")
    longest = _longest_key(connection, source) if source.key_type == "text" else 0
    batch = features.read(
        connection,
        source,
        origin=origin,
        params=params,
        order=sequences.numbered(place, sql.SQL("w.run")) if in_runs else place,
        longest_key_bytes=longest,
        rows_per_block=_ROWS_PER_BLOCK * sequences.PLACE if in_runs else _ROWS_PER_BLOCK,
    )
    batch = batch.take(np.argsort(batch.change_ids))
    complete = batch.problems >= 0
    if not imputes:
        complete &= np.isfinite(batch.matrix).all(axis=1)
    left_out = {row["reason"]: int(row["n"]) for row in counted if row["reason"] is not None}
    if not complete.all():
        left_out["incomplete"] = int((~complete).sum())
    return TrainingRows(
        matrix=batch.matrix[complete],
        left_out=left_out,
        first=kept["first"] if kept else None,
        last=kept["last"] if kept else None,
        runs=sequences.unbroken(sequences.run_numbers(batch.change_ids), complete) if in_runs else None,
    )


def _in_runs(window: sql.Composable, reason: sql.Composable) -> sql.Composable:
    """The window's rows with the reason to leave each out, and its run: a row that is left out ends one."""
    entity, alone = sequences.run_of(sql.SQL("w.entity"), sql.SQL("w.moment"), sql.SQL("w.key"))
    return compose(
        "(SELECT w.*, dense_rank() OVER (ORDER BY {entity}, {alone}, w.n_left_out) AS run FROM (SELECT w.*,"
        " count(w.reason) OVER (PARTITION BY w.entity ORDER BY w.moment, w.key) AS n_left_out"
        " FROM (SELECT w.*, {reason} AS reason FROM ({window}) w) w) w)",
        entity=entity,
        alone=alone,
        reason=reason,
        window=window,
    )


def _window(source: SourceDefinition, newest: int) -> sql.Composable:
    moment = identifier(source.time_column or source.key_column)
    label = (
        compose("lower(b.{label}::text)", label=identifier(source.label_column))
        if source.label_column
        else sql.SQL("NULL::text")
    )
    return compose(
        "SELECT b.{key} AS key, b.{moment} AS moment, {entity} AS entity, {label} AS label FROM {relation} b"
        " ORDER BY b.{moment} DESC NULLS LAST LIMIT {newest}",
        key=identifier(source.key_column),
        moment=moment,
        # One entity for all, where there is no column that tells them apart.
        entity=compose("b.{e}", e=identifier(source.entity_column)) if source.entity_column else sql.SQL("0"),
        label=label,
        relation=source.relation.sql(),
        newest=sql.Literal(newest),
    )


def _comparable_moment(source: SourceDefinition) -> sql.Composable:
    """There is no min(uuid); as text a uuid has the same order."""
    by_uuid = source.time_column is None and source.key_type == "uuid"
    return sql.SQL("w.moment::text" if by_uuid else "w.moment")


def _reason(source: SourceDefinition) -> sql.Composable:
    """SQL for why a row of the window is left out, NULL if it is trained on."""
    return compose(
        "CASE WHEN w.label = ANY (%(fraud)s) THEN 'labelled_fraud'"
        " WHEN EXISTS (SELECT FROM {scores} s WHERE s.key = w.key AND s.flagged) THEN 'flagged'"
        " WHEN EXISTS (SELECT FROM outlier.quarantine h WHERE h.source_id = %(source_id)s"
        " AND h.key = w.key::text) THEN 'quarantined' END",
        scores=ours("scores", source.name),
    )


def _longest_key(connection: Connection, source: SourceDefinition) -> int:
    statement = compose(
        "SELECT coalesce(max(octet_length(convert_to({key}::text, 'UTF8'))), 0) FROM {relation}",
        key=identifier(source.key_column),
        relation=source.relation.sql(),
    )
    return int(one(connection, statement))
