"""The challenger's scores of a source: how they are written without harm, compared, and removed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection

from pgoutlier.db.source.definition import Source, SourceDefinition
from pgoutlier.db.sql.identifiers import identifier, ours
from pgoutlier.db.sql.statements import compose, one, run, run_dicts
from pgoutlier.db.versions.aliases import CHALLENGER, CHAMPION

# Scoring waits no longer than this for a lock, or for any one statement, for the challenger's sake.
_LOCK_TIMEOUT = "200ms"
_STATEMENT_TIMEOUT = "10s"


@contextmanager
def bounded(connection: Connection) -> Iterator[None]:
    """Bound how long statements wait and run. After an error the caller's savepoint takes the bounds back."""
    before = run(
        connection,
        "WITH before AS MATERIALIZED (SELECT current_setting('lock_timeout'), current_setting('statement_timeout'))"
        " SELECT before.*, set_config('lock_timeout', %s, true), set_config('statement_timeout', %s, true) FROM before",
        (_LOCK_TIMEOUT, _STATEMENT_TIMEOUT),
    ).fetchone()
    yield
    run(
        connection,
        "SELECT set_config('lock_timeout', %s, true), set_config('statement_timeout', %s, true)",
        before[:2] if before else ("0", "0"),
    )


def comparison(connection: Connection, source: SourceDefinition) -> dict[str, Any] | None:
    """The row of the source's view comparison, or None if there is nothing to compare yet."""
    rows = run_dicts(connection, compose("SELECT * FROM {view}", view=ours("comparison", source.name)))
    return rows[0] if rows else None


def n_missing(connection: Connection, source: Source) -> int:
    """Scores that the champion has written since both aliases stand as they do, without one of the challenger's."""
    return int(
        one(
            connection,
            compose(
                """
                SELECT count(*) FROM {scores} s
                JOIN outlier.model_aliases champion ON champion.source_id = %(source_id)s
                 AND champion.alias = %(champion)s AND champion.version = s.model_version
                JOIN outlier.model_aliases challenger ON challenger.source_id = %(source_id)s
                 AND challenger.alias = %(challenger)s
                WHERE s.scored_at > greatest(champion.moved_at, challenger.moved_at)
                  AND NOT EXISTS (SELECT FROM {shadow} h WHERE h.key = s.key AND h.change_id = s.change_id
                                  AND h.model_version = challenger.version)
                """,
                scores=ours("scores", source.name),
                shadow=ours("shadow_scores", source.name),
            ),
            {"source_id": source.id, "champion": CHAMPION, "challenger": CHALLENGER},
        )
    )


def disagreements(connection: Connection, source: SourceDefinition, *, limit: int) -> list[dict[str, Any]]:
    """Rows that only one of the two flags, the last ones scored first: key, both errors, both flags, scored_at."""
    return run_dicts(
        connection,
        compose(
            "SELECT {key} AS key, reconstruction_error, flagged, challenger_error, would_flag, scored_at"
            " FROM {view} WHERE flagged <> would_flag ORDER BY scored_at DESC, {key} DESC LIMIT %s",
            key=identifier(source.key_column),
            view=ours("compared", source.name),
        ),
        (limit,),
    )


def prune(connection: Connection, source: Source) -> int:
    """Remove shadow scores without a score, and those of other versions once there is a new challenger.

    Returns how many. Until a new one is set, those of the last challenger stay to be looked at.
    """
    return run(
        connection,
        compose(
            # By ctid: a score that is written anew meanwhile has moved, and stays.
            "DELETE FROM {shadow} h USING (SELECT o.ctid AS place FROM {shadow} o"
            " LEFT JOIN outlier.model_aliases a ON a.source_id = %s AND a.alias = %s"
            " WHERE o.model_version <> a.version OR NOT EXISTS (SELECT FROM {scores} s WHERE s.key = o.key)) gone"
            " WHERE h.ctid = gone.place",
            shadow=ours("shadow_scores", source.name),
            scores=ours("scores", source.name),
        ),
        (source.id, CHALLENGER),
    ).rowcount
