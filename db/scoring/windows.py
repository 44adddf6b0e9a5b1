"""Rows that are scored together with the rows before them, of the same entity, in order of (time, key).

Where correctness lives. A score of row r is right if its read saw the last committed state of every row of r's
window. Two rules make the score that stays the right one, whatever commits when and whoever scores:

1. A claim draws an id after it has seen its queue rows, and before it reads; all its scores carry that id, and of
   two scores for one key the one with the larger id stays (db.scoring.scores, db.scoring.quarantine).
2. In the transaction that scores a changed row x, the rows behind x whose windows hold x are queued again, as
   neighbours, which queue no further ones.

Let x be any row of r's window, committed at c(x), and r itself at c(r). A claim of x comes after c(x), since its
queue row is committed with it. If its search for rows behind x sees r, then r is queued again and claimed after that,
so after c(x). If it does not, r is committed only after that search, and r's own claim comes later still. Either way
there is a score of r whose claim, and therefore whose id, was drawn after c(x). The score that stays has an id at
least as large as each of these, so it was drawn after every c(x) and c(r); its read came after the draw, and saw them
all. Rows of the same claim need no queueing: their read comes after the draw as well. (Numbers come from one sequence,
which gives them out in order of time, in READ COMMITTED, where every statement sees what was committed before it.)
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from psycopg import sql
from sqlalchemy import Connection

from pgoutlier.db.errors import SourceError
from pgoutlier.db.scoring import lookups, unreadable
from pgoutlier.db.scoring.claimed_rows import longest_claimed_key
from pgoutlier.db.scoring.queue import KEYS_PER_QUEUE_ROW, NEIGHBOUR, Claim, wake
from pgoutlier.db.scoring.rows import ClaimedRows, History
from pgoutlier.db.source.definition import SourceDefinition
from pgoutlier.db.sql.identifiers import display, identifier, ours
from pgoutlier.db.sql.statements import compose, one

# A row is read with one number that says its place in the order and its run, the rows it shares a history with.
_RUN_BITS = 31
# What a place counts in this number, for reads in blocks of so many rows.
PLACE = 2**_RUN_BITS


def read_claimed(
    connection: Connection, source: SourceDefinition, claim: Claim, *, window: int, careful: bool = False
) -> ClaimedRows:
    """Every claimed row and its window - 1 predecessors, in one query, so in one state of the table.

    claim: one that drew the id that its scores are written under. window: 2 or more. careful: read around rows that
    cannot be read, see db.scoring.unreadable. Raises SourceError if the source has no time column.
    """
    if claim.change_id is None:
        raise AssertionError("a claim of a source with a time column has a change id")
    # Negative for a row that is there only for the sake of later ones.
    number = compose(
        "CASE WHEN w.claimed THEN 1 ELSE -1 END * {number}",
        number=numbered(sql.SQL("w.place"), sql.SQL("w.run")),
    )
    needed = _needed(source, window, lookups.joined(connection, source, source.relation, claim))
    numbers, rows = unreadable.read(
        connection,
        source,
        origin=compose(
            "FROM {needed} w JOIN {features} t ON {same}",
            needed=needed,
            features=source.feature_relation.sql(),
            same=source.key.is_of("t", "w"),
        ),
        chosen=compose("FROM {needed} w", needed=needed) if careful else None,
        params={"ids": claim.queue_ids},
        number=number,
        longest_key_bytes=longest_claimed_key(connection, source, claim),
    )
    in_order = np.argsort(np.abs(numbers))
    numbers, rows = numbers[in_order], rows.take(in_order)
    places = np.flatnonzero(numbers > 0)
    own = rows.take(places)
    return ClaimedRows(
        own.keys,
        own.matrix,
        own.problems,
        np.full(len(own), claim.change_id),
        History(rows, numbers > 0, run_numbers(np.abs(numbers)), places, window),
        refusals=rows.refusals,
        n_cut_short=rows.n_cut_short,
    )


def _needed(source: SourceDefinition, window: int, rows: sql.Composable) -> sql.Composable:
    """SQL of the claimed rows and their predecessors: key, claimed, place (in the order of all), run.

    rows: what db.scoring.lookups has of the queue rows and of the table.
    """
    order = _order(source)
    return compose(
        """
        (
            WITH claimed AS MATERIALIZED (
                SELECT DISTINCT {t_order} FROM {rows} WHERE q.id = ANY (%(ids)s)
            ), needed AS (
                SELECT {order}, true AS claimed FROM claimed
                UNION ALL
                SELECT p.*, false FROM claimed c CROSS JOIN LATERAL (
                    SELECT {p_order} FROM {relation} p WHERE {before}
                    ORDER BY {latest_first} LIMIT {n}
                ) p
            )
            SELECT {key}, bool_or(claimed) AS claimed, row_number() OVER (ORDER BY {order}) AS place,
                   dense_rank() OVER (ORDER BY {run}) AS run
            FROM needed GROUP BY {order}
        )
        """,
        t_order=_list(order, "t"),
        p_order=_list(order, "p"),
        order=_list(order),
        rows=rows,
        relation=source.relation.sql(),
        key=source.key.theirs_as_ours(),
        before=_beside(source, sql.SQL("<")),
        latest_first=_list(_places(source), "p", descending=True),
        n=sql.Literal(window - 1),
        run=sql.SQL(", ").join(
            run_of(
                identifier(source.entity_column) if source.entity_column else None,
                identifier(_time(source)),
                source.key.in_theirs(None).as_value(),
            )
        ),
    )


def queue_neighbours(
    connection: Connection, source: SourceDefinition, claim: Claim, rows: ClaimedRows
) -> int:
    """Queue the rows behind the changed ones among claimed rows whose windows hold them. Returns how many.

    Rows of the same claim are left out. rows: all of the claim; of those that have no history none is queued.
    """
    history, key = rows.history, source.key
    if history is None:
        return 0
    searched = history.rows.keys[_open_ended(history)]
    if len(searched) == 0:
        return 0
    n_queued = one(
        connection,
        compose(
            """
            WITH own AS MATERIALIZED (
                SELECT {key_of_k}, q.change_id IS DISTINCT FROM {neighbour} AS changed
                FROM {queue} q, {keys} WHERE q.id = ANY (%(ids)s)
            ), changed AS MATERIALIZED (
                SELECT DISTINCT {order} FROM {searched} JOIN {relation} t ON {same}
                WHERE ({key_of_g}) IN (SELECT {key} FROM own WHERE changed)
            ), behind AS (
                SELECT {key_of_p} FROM changed c CROSS JOIN LATERAL (
                    SELECT {found} FROM {relation} p WHERE {after}
                    ORDER BY {earliest_first} LIMIT {n}
                ) p
                EXCEPT SELECT {key} FROM own
            ), entered AS (
                INSERT INTO {queue} (change_id, {arrays}, n_keys, rescore)
                SELECT {neighbour}, {gathered}, count(*), true
                FROM (SELECT {key}, (row_number() OVER (ORDER BY {key}) - 1) / {chunk} AS chunk FROM behind) s
                GROUP BY chunk RETURNING n_keys
            )
            SELECT coalesce(sum(n_keys), 0)::bigint FROM entered
            """,
            order=_list(_order(source), "t"),
            queue=ours("queue", source.name),
            relation=source.relation.sql(),
            key=key.ours(),
            key_of_k=key.ours("k"),
            key_of_g=key.ours("g"),
            key_of_p=key.ours("p"),
            keys=key.unnested("q"),
            searched=key.given("g", sql.SQL("%(searched)s")),
            same=key.is_of("t", "g"),
            found=key.theirs_as_ours("p"),
            arrays=key.arrays(),
            gathered=key.gathered("s", ordered=True),
            neighbour=sql.Literal(NEIGHBOUR),
            after=_beside(source, sql.SQL(">")),
            earliest_first=_list(_places(source), "p"),
            n=sql.Literal(history.window - 1),
            chunk=sql.Literal(KEYS_PER_QUEUE_ROW),
        ),
        {"ids": claim.queue_ids, "searched": key.to_parameters(searched)},
    )
    if n_queued:
        wake(connection, source)
    return int(n_queued)


def _open_ended(history: History) -> npt.NDArray[np.bool_]:
    """Claimed rows that may have a row behind them, in whose window they are, that is not claimed, (m,).

    Of all others the next window - 1 rows here are claimed too. Each was read with the row right before it, so
    there are no rows between them that are not here.
    """
    claimed, runs = history.claimed, history.runs
    closed = np.ones(len(claimed), dtype=np.bool_)
    for step in range(1, history.window):
        behind = np.zeros(len(claimed), dtype=np.bool_)
        behind[:-step] = claimed[step:] & (runs[step:] == runs[:-step])
        closed &= behind
    return claimed & ~closed


def numbered(place: sql.Composable, run: sql.Composable) -> sql.Composable:
    """SQL of one bigint that orders by place and holds the run, both bigint and not negative."""
    return compose("({place} << {bits} | {run})", place=place, bits=sql.Literal(_RUN_BITS), run=run)


def run_numbers(numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The runs out of such numbers (n,)."""
    runs: npt.NDArray[np.int64] = numbers & (PLACE - 1)
    return runs


def unbroken(runs: npt.NDArray[np.int64], usable: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """The runs (n,) of the usable rows, parted where an unusable row lies between two of a run.

    Rows of one run stand in order, however they are mixed with others. Returns one number for each usable row.
    """
    order = np.argsort(runs, kind="stable")
    parted = np.empty(len(runs), dtype=np.int64)
    parted[order] = runs[order] * (len(runs) + 1) + np.cumsum(~usable[order])
    return parted[usable]


def run_of(
    entity: sql.Composable | None, moment: sql.Composable, key: sql.Composable
) -> tuple[sql.Composable, sql.Composable]:
    """SQL of two values that tell runs apart: the entity, and the key of a row that has no place in the order.

    That is a row without a time, or without an entity: it is a run of its own.
    """
    columns = [moment] if entity is None else [entity, moment]
    missing = sql.SQL(" OR ").join(compose("{c} IS NULL", c=column) for column in columns)
    alone = compose("CASE WHEN {missing} THEN {key} END", missing=missing, key=key)
    return sql.SQL("NULL::integer") if entity is None else entity, alone


def missing_index(connection: Connection, source: SourceDefinition) -> str | None:
    """The CREATE INDEX that finds neighbours quickly, or None if there is such an index already."""
    columns = _order(source)
    found = one(
        connection,
        "SELECT EXISTS (SELECT FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid"
        " JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_class x ON x.oid = i.indexrelid"
        " JOIN pg_am m ON m.oid = x.relam"
        " WHERE n.nspname = %(schema)s AND c.relname = %(name)s AND m.amname = 'btree' AND i.indisvalid"
        " AND i.indpred IS NULL AND %(columns)s::text[] = ARRAY("
        "SELECT a.attname::text FROM unnest(i.indkey[0 : cardinality(%(columns)s::text[]) - 1])"
        " WITH ORDINALITY k (attnum, position)"
        " JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum ORDER BY k.position))",
        {"schema": source.relation_schema, "name": source.relation_name, "columns": columns},
    )
    if found:
        return None
    return f"CREATE INDEX ON {source.relation} ({', '.join(map(display, columns))});"


def _order(source: SourceDefinition) -> list[str]:
    """The columns that order rows: the entity if there is one, the time, those of the key; each once."""
    return list(dict.fromkeys(filter(None, (source.entity_column, _time(source), *source.key.columns))))


def _places(source: SourceDefinition) -> list[str]:
    """Those that order the rows of one entity."""
    return [column for column in _order(source) if column != source.entity_column]


def _time(source: SourceDefinition) -> str:
    if source.time_column is None:
        raise SourceError(
            f"{source.name} has no time column, so the order of its rows is not known; detach it, and attach it"
            " again with --time COLUMN."
        )
    return source.time_column


def _list(columns: list[str], table: str | None = None, *, descending: bool = False) -> sql.Composable:
    prefix = sql.SQL("") if table is None else compose("{t}.", t=identifier(table))
    suffix = sql.SQL(" DESC" if descending else "")
    return sql.SQL(", ").join(
        compose("{prefix}{c}{suffix}", prefix=prefix, c=identifier(column), suffix=suffix)
        for column in columns
    )


def _beside(source: SourceDefinition, comparison: sql.SQL) -> sql.Composable:
    """Rows p of c's entity before (<) or behind (>) it, in a form that an index answers."""
    places = compose(
        "({p}) {comparison} ({c})",
        p=_list(_places(source), "p"),
        comparison=comparison,
        c=_list(_places(source), "c"),
    )
    if source.entity_column is None:
        return places
    return compose("p.{e} = c.{e} AND {places}", e=identifier(source.entity_column), places=places)
