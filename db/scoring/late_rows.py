"""Rows behind one that came late: they were scored without it among the rows before them, and can be scored again."""

from __future__ import annotations

from psycopg import sql
from sqlalchemy import Connection

from pgoutlier.db.past import entries
from pgoutlier.db.scoring.queue import KEYS_PER_QUEUE_ROW, NEIGHBOUR, Claim, wake
from pgoutlier.db.source.definition import SourceDefinition
from pgoutlier.db.sql.identifiers import identifier, ours
from pgoutlier.db.sql.statements import compose, one

# So many are scored again for each row and kind of entity, those right behind it; the further ones keep their scores.
MOST_BEHIND = 1_000


def queue_behind(connection: Connection, source: SourceDefinition, claim: Claim) -> int:
    """Queue the rows that have a changed row of the claim in a window of theirs. Returns how many.

    They queue no further ones. Nothing where the source leaves such rows as they are.
    """
    if not source.rescores_late or source.time_column is None:
        return 0
    key = source.key
    pasts = [feature.past for _, feature in source.past_features if feature.past is not None]
    n_queued = one(
        connection,
        compose(
            """
            WITH own AS MATERIALIZED (
                SELECT {key_of_k}, q.change_id IS DISTINCT FROM {neighbour} AS changed
                FROM {queue} q, {keys} WHERE q.id = ANY (%(ids)s)
            ), changed AS MATERIALIZED (
                SELECT t.* FROM {relation} t JOIN own o ON {same} WHERE o.changed AND t.{time} IS NOT NULL
            ), behind AS (
                {behind}
                EXCEPT SELECT {key} FROM own
            ), entered AS (
                INSERT INTO {queue} (change_id, {arrays}, n_keys, rescore)
                SELECT {neighbour}, {gathered}, count(*), true
                FROM (SELECT {key}, (row_number() OVER (ORDER BY {key}) - 1) / {chunk} AS chunk FROM behind) s
                GROUP BY chunk RETURNING n_keys
            )
            SELECT coalesce(sum(n_keys), 0)::bigint FROM entered
            """,
            key_of_k=key.ours("k"),
            neighbour=sql.Literal(NEIGHBOUR),
            queue=ours("queue", source.name),
            keys=key.unnested("q"),
            relation=source.relation.sql(),
            same=key.is_of("t", "o"),
            time=identifier(source.time_column),
            behind=sql.SQL(" UNION ").join(
                _behind(source, by, [past for past in pasts if past.by == by])
                for by in entries.entities(pasts)
            ),
            key=key.ours(),
            arrays=key.arrays(),
            gathered=key.gathered("s", ordered=True),
            chunk=sql.Literal(KEYS_PER_QUEUE_ROW),
        ),
        {"ids": claim.queue_ids},
    )
    if n_queued:
        wake(connection, source)
    return int(n_queued)


def _behind(source: SourceDefinition, by: str | None, pasts: list[entries.Past]) -> sql.Composable:
    """SQL of the keys of rows p behind the changed rows c, of the same entity, whose features see these."""
    time, key = identifier(source.time_column or ""), source.key
    seconds = max(past.reach_seconds for past in pasts)
    steps = max(past.rows_before for past in pasts)
    reach = sql.Literal(seconds)
    until = compose(
        "c.{t} + {reach}::bigint" if pasts[0].in_numbers else "c.{t} + make_interval(secs => {reach})",
        t=time,
        reach=reach,
    )
    place = "({row}.{t}, {key})"
    ordered = compose(
        "SELECT {key} FROM {relation} p WHERE {entity} AND {here} > {there}",
        key=key.theirs_as_ours("p"),
        relation=source.relation.sql(),
        entity=sql.SQL("true") if by is None else compose("p.{e} = c.{e}", e=identifier(by)),
        here=sql.SQL(place).format(row=sql.SQL("p"), t=time, key=key.theirs("p")),
        there=sql.SQL(place).format(row=sql.SQL("c"), t=time, key=key.theirs("c")),
    )
    order = compose("ORDER BY p.{t}, {key}", t=time, key=key.theirs("p"))
    parts = []
    if seconds:
        parts.append(
            compose("({o} AND p.{t} <= {until} {order} LIMIT {most})", o=ordered, t=time, until=until, order=order,
                    most=sql.Literal(MOST_BEHIND))
        )  # fmt: skip
    if steps:
        parts.append(compose("({o} {order} LIMIT {steps})", o=ordered, order=order, steps=sql.Literal(steps)))
    return compose(
        "SELECT {key} FROM changed c CROSS JOIN LATERAL ({parts}) p",
        key=key.ours("p"),
        parts=sql.SQL(" UNION ").join(parts),
    )
