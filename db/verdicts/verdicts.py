"""The log of verdicts: adding to it, and reading it. What they mean for scores and training is in db.source.labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from psycopg import sql
from sqlalchemy import Connection

from pgoutlier.db.ddl import source_views
from pgoutlier.db.errors import VerdictError
from pgoutlier.db.source import catalog
from pgoutlier.db.source.definition import SourceDefinition
from pgoutlier.db.sql.identifiers import ours
from pgoutlier.db.sql.keys import Key
from pgoutlier.db.sql.statements import compose, one, records, run, show_what_policies_allow

VERDICTS = ("fraud", "normal", "withdrawn")


@dataclass(frozen=True)
class Verdict:
    """What is said of one row. verdict: one of VERDICTS. line: of the file that it is from, 0 without a file."""

    key: str
    verdict: str
    note: str | None = None
    line: int = 0


@dataclass(frozen=True)
class GivenVerdict:
    """An entry of the log: what was said of one row, by whom and when. verdict: one of VERDICTS."""

    key: str
    verdict: str
    note: str | None
    created_by: str
    created_at: datetime


def named(text: str) -> str:
    """One of VERDICTS, in any case and with spaces around it. Raises VerdictError for another word."""
    word = text.strip().lower()
    if word not in VERDICTS:
        raise VerdictError(f"{text!r} is no verdict; write {', '.join(VERDICTS[:-1])} or {VERDICTS[-1]}.")
    return word


def give(
    connection: Connection, source: SourceDefinition, given: Sequence[Verdict], *, by: str | None = None
) -> int:
    """Add verdicts to the log, in this order; returns how many. What says nothing new is left out.

    Keys are as `db.sql.keys.Key.canonical` gives them, each once. by: who gives them, where it is not the session's
    own user; only roles that may write the whole table can say so. Nothing new is the verdict of the same person
    with the same note or none, and taking back what is not there.
    """
    column, value = (
        (sql.SQL(""), sql.SQL("")) if by is None else (sql.SQL(", created_by"), sql.SQL(", %(by)s"))
    )
    return run(
        connection,
        compose(
            "INSERT INTO outlier.verdicts (source, key, verdict, note{column})"
            " SELECT %(source)s, g.key, g.verdict, g.note{value}"
            " FROM unnest(%(keys)s::text[], %(verdicts)s::text[], %(notes)s::text[])"
            " WITH ORDINALITY g (key, verdict, note, place)"
            " LEFT JOIN LATERAL (SELECT v.verdict, v.note, v.created_by FROM outlier.verdict_log v"
            " WHERE v.source = %(source)s AND v.key = g.key ORDER BY v.id DESC LIMIT 1) last ON true"
            " WHERE CASE WHEN g.verdict = 'withdrawn' THEN coalesce(last.verdict, 'withdrawn') <> 'withdrawn'"
            " ELSE (last.verdict, last.created_by, last.note) IS DISTINCT FROM"
            " (g.verdict, coalesce(%(by)s::text, session_user::text), coalesce(g.note, last.note)) END"
            " ORDER BY g.place",
            column=column,
            value=value,
        ),
        {
            "source": source.name,
            "keys": [verdict.key for verdict in given],
            "verdicts": [verdict.verdict for verdict in given],
            "notes": [verdict.note for verdict in given],
            "by": by,
        },
    ).rowcount


@dataclass(frozen=True)
class VisibleRows:
    """Where it is looked whether there is a row with a key. scored_only: rows without a score cannot be seen there."""

    relation: sql.Composable
    key: Key
    scored_only: bool

    @classmethod
    def of(cls, connection: Connection, source: SourceDefinition) -> VisibleRows:
        """The table itself if the session may read it, else the view that analysts read."""
        if catalog.readable(connection, source.relation):
            return cls(source.relation.sql(), source.key, False)
        columns = tuple(catalog.inspect(connection, source.relation).columns)
        shown_as = tuple(
            source_views.alias(column, columns, beside=source_views.ours_beside(source))
            for column in source.key.columns
        )
        return cls(ours("scored", source.name), Key(shown_as, source.key.types), True)


def first_without_row(connection: Connection, rows: VisibleRows, keys: Sequence[str]) -> int | None:
    """The place of the first of these keys that no row has, or None. Keys as for `give`."""
    found = one(
        connection,
        compose(
            "SELECT k.place - 1 FROM {keys}"
            " WHERE NOT EXISTS (SELECT FROM {relation} t WHERE {same}) ORDER BY k.place LIMIT 1",
            keys=rows.key.given("k", sql.SQL("%(keys)s"), numbered=True),
            relation=rows.relation,
            same=rows.key.is_of("t", "k"),
        ),
        {"keys": list(keys)},
    )
    return None if found is None else int(found)


def listed(
    connection: Connection, source_name: str, *, history: bool, key: str | None, limit: int
) -> list[GivenVerdict]:
    """Verdicts of a source, the newest first: those that hold now, or with history all that were ever given; of the
    rows that the role may see."""
    show_what_policies_allow(connection)
    log = sql.SQL("outlier.verdict_log" if history else "outlier.current_verdicts")
    return records(
        connection,
        GivenVerdict,
        compose(
            "SELECT key, verdict, note, created_by, created_at FROM {log} WHERE source = %(source)s"
            " AND (%(key)s::text IS NULL OR key = %(key)s) ORDER BY id DESC LIMIT %(limit)s",
            log=log,
        ),
        {"source": source_name, "key": key, "limit": limit},
    )


def any_given(connection: Connection, source_name: str) -> bool:
    """Whether a verdict was ever given on a row of the source."""
    return bool(
        one(connection, "SELECT EXISTS (SELECT FROM outlier.verdicts WHERE source = %s)", (source_name,))
    )


def any_fraud(connection: Connection, source_name: str) -> bool:
    """Whether a verdict that holds now says fraud."""
    return bool(
        one(
            connection,
            "SELECT EXISTS (SELECT FROM outlier.current_verdicts WHERE source = %s AND verdict = 'fraud')",
            (source_name,),
        )
    )
