"""Ranges of a job: cut, claimed, worked and marked as finished.

The last three are one transaction, so that a killed worker leaves a range as it was. All that is written stays right
whatever live scoring does meanwhile: a score is written under the id of the change that the row was read at (see
db.scoring.queue), so that one of a later change stays. Rows to be scored go through a row of the source's queue that is
made and removed in the same transaction, which nobody else ever sees.
"""

from __future__ import annotations

from typing import Any

from psycopg import sql
from sqlalchemy import Connection

from pgoutlier.db.ddl.notice_objects import QUIET_SETTING
from pgoutlier.db.jobs.jobs import BACKFILL, REFLAG, RESCORE, Job
from pgoutlier.db.scoring import queue
from pgoutlier.db.scoring.queue import NEIGHBOUR, Claim, next_id
from pgoutlier.db.source import expiry
from pgoutlier.db.source.definition import Source, SourceDefinition
from pgoutlier.db.sql import key_ranges
from pgoutlier.db.sql.identifiers import ours
from pgoutlier.db.sql.key_columns import KeyColumns
from pgoutlier.db.sql.key_ranges import KeyRange
from pgoutlier.db.sql.statements import compose, one, run
from pgoutlier.db.versions.version_rows import SAME_ERRORS


def cut(connection: Connection, source: Source, job: Job, *, at_most: int) -> None:
    """Make the ranges of the rows that there are to do now, so many in each."""
    run(
        connection,
        key_ranges.plan(
            source.definition.key,
            _key(job.kind, source.definition),
            _to_do(connection, source, job.kind),
        ),
        {**_params(source, job.version), "job": job.id, "size": at_most},
    )


def n_left_out(connection: Connection, source: Source, kind: str) -> int:
    """Rows of the table that a job of this kind leaves out since they are too old to have a score."""
    if kind != BACKFILL or source.definition.keep_scores_days is None:
        return 0
    return int(
        one(
            connection,
            compose(
                "SELECT count(*) FROM {relation} t WHERE NOT {kept}",
                relation=source.definition.relation.sql(),
                kept=expiry.kept(connection, source.definition, "t"),
            ),
        )
    )


def prepare(connection: Connection) -> None:
    """Set this transaction up for one range."""
    queue.prepare(connection)
    # Nobody is told of old rows as if they were new.
    run(connection, "SELECT set_config(%s, 'on', true)", (QUIET_SETTING,))


def claim_range(connection: Connection, job_id: int) -> KeyRange | None:
    """Lock the first range that is due and that nobody else holds; None if there is none, or the job is not running."""
    row = run(
        connection,
        "SELECT r.number, r.first_key, r.last_key, r.attempts FROM outlier.job_ranges r"
        " WHERE r.job_id = %(job)s AND r.finished_at IS NULL AND (r.not_before IS NULL OR r.not_before <= now())"
        " AND EXISTS (SELECT FROM outlier.jobs j WHERE j.id = %(job)s AND j.status = 'running')"
        " ORDER BY r.number LIMIT 1 FOR UPDATE OF r SKIP LOCKED",
        {"job": job_id},
    ).fetchone()
    return None if row is None else KeyRange(job_id, *row)


def lock_range(connection: Connection, keys: KeyRange) -> bool:
    """Whether a range is still to be done and nobody else is at it; then it is locked."""
    return bool(
        run(
            connection,
            "SELECT FROM outlier.job_ranges WHERE job_id = %s AND number = %s AND finished_at IS NULL"
            " FOR UPDATE SKIP LOCKED",
            (keys.job_id, keys.number),
        ).rowcount
    )


def claim_rows(connection: Connection, source: Source, job: Job, keys: KeyRange) -> Claim:
    """The rows of a range that are still to be scored, as a claim of this transaction; empty if there are none.

    The claim's scores are written under change 0, those of a rescore under the id of the score that is there.
    """
    definition = source.definition
    row = run(
        connection,
        compose(
            "INSERT INTO {queue} (change_id, {arrays}, n_keys, rescore)"
            " SELECT {change}, {gathered}, count(*), {rescore} FROM (SELECT {key} FROM {to_do} AND {within}) k"
            " HAVING count(*) > 0 RETURNING id, n_keys",
            arrays=definition.key.arrays(),
            gathered=definition.key.gathered("k", ordered=True),
            queue=ours("queue", source.name),
            # Nothing changed, so the rows behind these need no new score.
            change=sql.Literal(NEIGHBOUR if definition.time_column else 0),
            key=_key(job.kind, definition).as_ours(),
            rescore=sql.Literal(job.kind == RESCORE),
            to_do=_to_do(connection, source, job.kind),
            within=key_ranges.within(_key(job.kind, definition)),
        ),
        {**_params(source, job.version), **keys.params},
    ).fetchone()
    if row is None:
        return Claim([], 0, 0, rescore=False)
    # Drawn before the rows are read, see db.scoring.windows.
    change_id = (
        one(connection, compose("SELECT {id}", id=next_id(definition))) if definition.time_column else None
    )
    return Claim([row[0]], row[1], keys.attempts, rescore=job.kind == RESCORE, change_id=change_id)


def waiting(connection: Connection, source: Source, claim: Claim) -> list[Any]:
    """Keys of a claim of `claim_rows` that live scoring has yet to score; asked after their rows were read.

    A change that the read saw and that is not among them has been scored and committed, so that its score outranks
    the job's. INTERSECT, whose time does not depend on what the planner takes the length of arrays for.
    """
    return [
        row[0]
        for row in run(
            connection,
            compose(
                "SELECT {key} FROM (SELECT {columns} FROM {queue} q, {keys} WHERE q.id = ANY (%(ids)s)"
                " INTERSECT SELECT {columns} FROM {queue} q, {keys} WHERE q.id <> ALL (%(ids)s)) w",
                key=source.definition.key.in_ours("w").as_value(),
                columns=source.definition.key.ours("k"),
                queue=ours("queue", source.name),
                keys=source.definition.key.unnested("q"),
            ),
            {"ids": claim.queue_ids},
        ).fetchall()
    ]


def reflag(connection: Connection, source: Source, job: Job, keys: KeyRange) -> tuple[int, int]:
    """Flag the scores of a range by the threshold of the job's version. Returns (how many, how many are flagged).

    Those of versions with the same errors, see model_versions.errors_of. A flag is what `detector.exceeds` says.
    """
    row = run(
        connection,
        compose(
            # Locked in the order in which workers write scores, so that none waits for another in a circle.
            "WITH place AS MATERIALIZED (SELECT {key} FROM {to_do} AND {within} ORDER BY {in_order}"
            " FOR UPDATE OF s), written AS (UPDATE {scores} s"
            " SET flagged = s.reconstruction_error > v.threshold, model_version = v.version"
            " FROM place p, outlier.model_versions v WHERE {same} AND v.source_id = %(source)s"
            " AND v.version = %(version)s RETURNING s.flagged)"
            " SELECT count(*), count(*) FILTER (WHERE flagged) FROM written",
            to_do=_to_do(connection, source, REFLAG),
            key=source.definition.key.ours("s"),
            same=source.definition.key.same("s", "p"),
            within=key_ranges.within(_key(REFLAG, source.definition)),
            in_order=source.definition.key.in_writing_order("s"),
            scores=ours("scores", source.name),
        ),
        {**_params(source, job.version), **keys.params},
    ).fetchone()
    return (0, 0) if row is None else (row[0], row[1])


def finish_range(
    connection: Connection, keys: KeyRange, *, n_done: int, n_flagged: int, n_quarantined: int
) -> None:
    """Mark a range as done; with what it wrote in the same transaction, it is done once."""
    run(
        connection,
        "UPDATE outlier.job_ranges SET n_done = %s, n_flagged = %s, n_quarantined = %s,"
        " finished_at = clock_timestamp(), last_error = NULL WHERE job_id = %s AND number = %s",
        (n_done, n_flagged, n_quarantined, keys.job_id, keys.number),
    )


def postpone_range(connection: Connection, keys: KeyRange, *, error: str, delay_seconds: float) -> None:
    """Put a range off after a failure."""
    run(
        connection,
        "UPDATE outlier.job_ranges SET attempts = attempts + 1, last_error = %s,"
        " not_before = now() + make_interval(secs => %s) WHERE job_id = %s AND number = %s AND finished_at IS NULL",
        (error, delay_seconds, keys.job_id, keys.number),
    )


def _key(kind: str, source: SourceDefinition) -> KeyColumns:
    """The key of what `_to_do` has."""
    return source.key.in_theirs("t") if kind == BACKFILL else source.key.in_ours("s")


def _to_do(connection: Connection, source: Source, kind: str) -> sql.Composable:
    """FROM and WHERE of the rows that a job of this kind has to do, whatever it has done already."""
    scores = ours("scores", source.name)
    if kind == BACKFILL:
        return compose(
            "{relation} t WHERE {known} AND {kept} AND NOT EXISTS (SELECT FROM {scores} s WHERE {same})"
            " AND NOT EXISTS (SELECT FROM outlier.quarantine h WHERE h.source_id = %(source)s AND h.key = {text})",
            relation=source.definition.relation.sql(),
            known=source.definition.key.in_theirs("t").are_known(),
            kept=expiry.kept(connection, source.definition, "t"),
            same=source.definition.key.is_of("t", "s"),
            text=source.definition.key.text_of_row("t"),
            scores=scores,
        )
    if kind == RESCORE:
        return compose("{scores} s WHERE s.model_version <> %(version)s", scores=scores)
    return compose(
        "{scores} s WHERE s.model_version <> %(version)s AND s.model_version IN (SELECT k.version"
        " FROM outlier.model_versions k JOIN outlier.model_versions v ON v.source_id = k.source_id"
        " AND {same_errors} WHERE v.source_id = %(source)s AND v.version = %(version)s)",
        scores=scores,
        same_errors=SAME_ERRORS,
    )


def _params(source: Source, version: int | None) -> dict[str, int | None]:
    return {"source": source.id, "version": version}
