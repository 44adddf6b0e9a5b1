"""The challenger's scores of a source: how they are written without harm, compared, and removed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection

from pgoutlier.db.ddl import challenger_objects
from pgoutlier.db.source.definition import Source, SourceDefinition
from pgoutlier.db.sql.identifiers import ours
from pgoutlier.db.sql.statements import compose, one, records, run, run_dicts
from pgoutlier.db.versions.aliases import CHALLENGER, CHAMPION

# Scoring waits no longer than this for a lock, or for any one statement, for the challenger's sake.
_LOCK_TIMEOUT = "200ms"
_STATEMENT_TIMEOUT = "10s"


@dataclass(frozen=True)
class Quantile:
    """level: the share of the rows that are below. champion, challenger: the errors there."""

    level: float
    champion: float
    challenger: float


@dataclass(frozen=True)
class Agreement:
    """How far both agree on the rows that both have scored.

    rows, flagged_by_both, only_champion, only_challenger: counts of rows. agreement: the share that both flag or both
    do not, None without rows. quantiles: of both errors, one a level; empty without rows.
    """

    rows: int = 0
    flagged_by_both: int = 0
    only_champion: int = 0
    only_challenger: int = 0
    agreement: float | None = None
    quantiles: tuple[Quantile, ...] = ()


@dataclass(frozen=True)
class Disagreement:
    """A row that only one of the two flags. key: of the source's type, of several columns as text."""

    key: int | str | UUID
    reconstruction_error: float
    flagged: bool
    challenger_error: float
    would_flag: bool
    scored_at: datetime


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


def comparison(connection: Connection, source: SourceDefinition) -> Agreement:
    """The row of the source's view comparison."""
    rows = run_dicts(connection, compose("SELECT * FROM {view}", view=ours("comparison", source.name)))
    if not rows:
        return Agreement()
    row = rows[0]
    return Agreement(
        rows=row["rows"],
        flagged_by_both=row["flagged_by_both"],
        only_champion=row["only_champion"],
        only_challenger=row["only_challenger"],
        agreement=row["agreement"],
        quantiles=tuple(
            Quantile(level, row[f"champion_{name}"], row[f"challenger_{name}"])
            for name, level in challenger_objects.QUANTILES.items()
        ),
    )


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
                  AND NOT EXISTS (SELECT FROM {challenger_scores} h WHERE {same} AND h.change_id = s.change_id
                                  AND h.model_version = challenger.version)
                """,
                scores=ours("scores", source.name),
                challenger_scores=ours("shadow_scores", source.name),
                same=source.definition.key.same("h", "s"),
            ),
            {"source_id": source.id, "champion": CHAMPION, "challenger": CHALLENGER},
        )
    )


def disagreements(connection: Connection, source: SourceDefinition, *, limit: int) -> list[Disagreement]:
    """Rows that only one of the two flags, the last ones scored first."""
    return records(
        connection,
        Disagreement,
        compose(
            "SELECT {key} AS key, reconstruction_error, flagged, challenger_error, would_flag, scored_at"
            " FROM {view} WHERE flagged <> would_flag ORDER BY scored_at DESC, {last_first} LIMIT %s",
            key=source.key.in_theirs(None).as_value(),
            last_first=source.key.in_theirs(None).listed(descending=True),
            view=ours("compared", source.name),
        ),
        (limit,),
    )
