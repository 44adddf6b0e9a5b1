"""The SQL that reads the rows before: what is asked of each row, of which rows, and which index finds them."""

from __future__ import annotations

from functools import lru_cache
from typing import LiteralString

from psycopg import sql
from sqlalchemy import Connection

from pgoutlier.db.past import entries
from pgoutlier.db.source import catalog, labels
from pgoutlier.db.source.definition import Feature, SourceDefinition
from pgoutlier.db.sql.identifiers import display, identifier
from pgoutlier.db.sql.key_columns import KeyColumns
from pgoutlier.db.sql.statements import compose, in_one_piece

# Of a value by kind of column, but for what its text tells: equal numbers may be written in many ways (1.0, 1.00).
_HASHES: dict[str, LiteralString] = {
    "number": "hashtextextended(trim_scale({c})::text, 0)",
    "double": "hashfloat8extended({c}, 0)",
}


def asked(source: SourceDefinition) -> dict[str, sql.Composable]:
    """What is read of each row t so that `fill` finds those before it, by name; nothing without such features."""
    if not source.past_features:
        return {}
    columns = {"tag": _tag(source, "t"), "at": identifier("t", _time(source))}
    for n, column in enumerate(source.key.columns):
        columns[f"of_key{n}"] = identifier("t", column)
    for n, by in enumerate(entities_of(source)):
        if by is not None:
            columns[f"by{n}"] = identifier("t", by)
    return columns


@lru_cache(maxsize=64)
def statements_of(
    source: SourceDefinition, by: str | None, n: int
) -> tuple[tuple[str, ...], sql.SQL, sql.SQL | None]:
    """The columns that are read, the statement that reads an array of each, and where frauds are counted another of
    the verdicts on the same rows."""
    features = [f for _, f in source.past_features if f.past and f.past.by == by]
    window = max(f.past.reach_seconds if f.past else 0 for f in features)
    counts_frauds = any(f.past and f.past.function == "risk" for f in features)
    steps = max(f.past.rows_before if f.past else 0 for f in features)
    in_numbers = any(f.past and f.past.in_numbers for f in features)
    # The kernel tells exactly what is in a window, by doubles, which may be one where others than doubles are not.
    window += int(in_numbers and window > 0)
    time = _time(source)
    columns: dict[str, sql.Composable] = {
        # Negative before the first row that is asked for.
        "stretch": sql.SQL("(CASE WHEN h.at >= s.first THEN s.n ELSE -s.n END)::integer"),
        "at": sql.SQL("h.at::double precision" if in_numbers else "h.at"),
        "tag": sql.SQL("h.tag"),
    }
    read = {"tag": _tag(source, "h"), "at": identifier("h", time)}
    for (column, kind), name in value_names(source, by).items():
        feature = next(f for f in features if _takes(f) == (column, kind))
        value = feature.value("h") if kind == "value" else _code(feature)
        read[name] = compose(
            "coalesce({v}, {none})", v=value, none=sql.SQL("'NaN'" if kind == "value" else "-1")
        )
        columns[name] = identifier("h", name)
    if counts_frauds and source.label_column is not None:
        read["label"] = compose("coalesce({l}, false)", l=labels.by_column(source, "h"))
        columns["label"] = sql.SQL("h.label")
    stretches = compose(
        """
        WITH own AS (
            -- Of no rows of the table, so that texts are compared as they are there.
            SELECT {time} AS at, {entity} AS e, {their_keys} FROM {relation} h WHERE false
            UNION ALL
            SELECT o.at, {e}, {keys} FROM unnest({arrays}, %(open)s::boolean[]) AS o ({given}, is_open)
            WHERE o.is_open AND {known}
        ), parted AS (
            SELECT o.*, coalesce({since_own} > lag(o.at) OVER w, true) AS is_first,
                   coalesce(lead({since_own}) OVER w > o.at, true) AS is_last
            FROM own o WINDOW w AS (PARTITION BY o.e ORDER BY o.at, {keys})
        ), begun AS (
            SELECT p.*, max(p.at) FILTER (WHERE p.is_first) OVER (PARTITION BY p.e ORDER BY p.at, {keys}) AS first
            FROM parted p
        ), stretches AS MATERIALIZED (
            SELECT row_number() OVER () AS n, b.* FROM begun b WHERE b.is_last
        )
        """,
        time=identifier("h", time),
        entity=sql.SQL("true") if by is None else identifier("h", by),
        their_keys=sql.SQL(", ").join(
            compose("{c} AS {name}", c=identifier("h", column), name=identifier(name))
            for column, name in zip(source.key.columns, key_names(source), strict=True)
        ),
        relation=source.relation.sql(),
        e=sql.SQL("true" if by is None else "o.e"),
        keys=_keys(source),
        arrays=sql.SQL(", ").join(
            sql.Placeholder(name) for name in ("at", *(() if by is None else (f"by{n}",)), *key_names(source))
        ),
        given=sql.SQL(", ").join(
            identifier(name) for name in ("at", *(() if by is None else ("e",)), *key_names(source))
        ),
        known=sql.SQL(" AND ").join(
            [
                sql.SQL("o.at::double precision <> 'NaN'" if in_numbers else "o.at IS NOT NULL"),
                *([] if by is None else [sql.SQL("o.e IS NOT NULL")]),
            ]
        ),
        since_own=_before(sql.SQL("o.at"), window, in_numbers=in_numbers),
    )
    rows = compose(
        # Stretch by stretch, each in its own order: that of a nested loop, which is the one way to join them.
        "FROM stretches s CROSS JOIN LATERAL ({rows}) h",
        rows=_rows(source, by, read, window, steps, in_numbers=in_numbers),
    )
    gathered = sql.SQL(", ").join(compose("array_agg({v})", v=value) for value in columns.values())
    return (
        tuple(columns),
        in_one_piece(compose("{s} SELECT {g} {rows}", s=stretches, g=gathered, rows=rows)),
        in_one_piece(_of_verdicts(source, stretches, rows)) if counts_frauds else None,
    )


def _of_verdicts(source: SourceDefinition, stretches: sql.Composable, rows: sql.Composable) -> sql.Composed:
    """The statement that reads the verdicts on the rows of the stretches."""
    columns = tuple(identifier("h", name) for name in key_names(source))
    return compose(
        "{stretches} SELECT array_agg(k.tag ORDER BY v.id), array_agg(v.created_at ORDER BY v.id),"
        " array_agg(CASE v.verdict WHEN 'fraud' THEN 1 WHEN 'normal' THEN 0 ELSE -1 END ORDER BY v.id)"
        ' FROM (SELECT h.tag, {text} COLLATE "C" AS key {rows}) k'
        " JOIN outlier.verdicts v ON v.source = {source} AND v.key = k.key",
        stretches=stretches,
        text=KeyColumns(columns, source.key.types, source.key.names).text(),
        rows=rows,
        source=sql.Literal(source.name),
    )


def _rows(
    source: SourceDefinition,
    by: str | None,
    read: dict[str, sql.Composable],
    window: int,
    steps: int,
    *,
    in_numbers: bool,
) -> sql.Composable:
    """SQL of the rows h of a stretch s: those of the windows, and so many before them."""
    time = identifier("h", _time(source))
    key = source.key.in_theirs("h")
    parts = {
        "columns": sql.SQL(", ").join(
            [
                *(compose("{v} AS {name}", v=value, name=identifier(name)) for name, value in read.items()),
                *(
                    compose("{c} AS {name}", c=column, name=identifier(name))
                    for column, name in zip(key.columns, key_names(source), strict=True)
                ),
            ]
        ),
        "relation": source.relation.sql(),
        "of_entity": sql.SQL("true") if by is None else compose("{e} = s.e", e=identifier("h", by)),
        "place": compose("({time}, {key})", time=time, key=key.listed()),
        "last": compose("(s.at, {key})", key=_keys(source, "s")),
        "since": compose(
            "{time} >= {first}",
            time=time,
            first=_before(sql.SQL("s.first"), window, in_numbers=in_numbers),
        ),
        "before": compose(
            "{time} < {first}",
            time=time,
            first=_before(sql.SQL("s.first"), window, in_numbers=in_numbers),
        ),
        "down": compose("{time} DESC, {key}", time=time, key=key.listed(descending=True)),
        "steps": sql.Literal(steps),
    }
    within = compose(
        "SELECT {columns} FROM {relation} h WHERE {of_entity} AND {since} AND {place} <= {last}"
        " ORDER BY {down} LIMIT %(most)s",
        **parts,
    )
    if not steps:
        return within
    further = compose(
        "SELECT {columns} FROM {relation} h WHERE {of_entity} AND {before} ORDER BY {down} LIMIT {steps}",
        **parts,
    )
    # Both parts come in order, the second after the first.
    return compose("({within}) UNION ALL ({further})", within=within, further=further)


def _before(moment: sql.Composable, seconds: int, *, in_numbers: bool) -> sql.Composable:
    """SQL of the moment so many seconds earlier."""
    if seconds == 0:
        return moment
    if in_numbers:
        return compose("{m} - {s}::bigint", m=moment, s=sql.Literal(seconds))
    return compose("{m} - make_interval(secs => {s})", m=moment, s=sql.Literal(seconds))


def missing_indexes(connection: Connection, source: SourceDefinition) -> list[str]:
    """The CREATE INDEX for each kind of entity whose rows no index finds by time, with what is read of them in it."""
    if not source.past_features:
        return []
    leading = catalog.indexed_columns(connection, source.relation)
    partitioned = catalog.inspect(connection, source.relation).kind == "p"
    found = []
    for by in entities_of(source):
        order = list(dict.fromkeys(filter(None, (by, _time(source), *source.key.columns))))
        needed = 1 if by is None else 2
        if any(columns[:needed] == order[:needed] for columns in leading):
            continue
        beside = [column for column, _ in value_names(source, by) if column not in order]
        found.append(
            # PostgreSQL makes none on a partitioned table without its writers waiting.
            f"CREATE INDEX{'' if partitioned else ' CONCURRENTLY'} ON {source.relation}"
            f" ({', '.join(map(display, order))})"
            + (f" INCLUDE ({', '.join(map(display, dict.fromkeys(beside)))});" if beside else ";")
        )
    return found


def value_names(source: SourceDefinition, by: str | None) -> dict[tuple[str, str], str]:
    """What is read of the rows before: (column, "value" or "code"), and its name in the statement."""
    found: dict[tuple[str, str], str] = {}
    for _, feature in source.past_features:
        takes = _takes(feature)
        if feature.past is not None and feature.past.by == by and takes is not None:
            found.setdefault(takes, f"{takes[1]}{len(found)}")
    return found


def _takes(feature: Feature) -> tuple[str, str] | None:
    """What of the rows before it is made of, as in `_value_names`; None where it takes no column."""
    past = feature.past
    if past is None or not (past.takes_number or past.takes_any_value):
        return None
    return feature.column, "value" if past.takes_number else "code"


def _code(feature: Feature) -> sql.Composable:
    """SQL of a number, not negative, that is the same where the values of the column are; NULL where it holds none."""
    column = identifier("h", feature.column)
    hashed = compose(_HASHES.get(feature.kind, "hashtextextended({c}::text, 0)"), c=column)
    return compose("({h} & {mask})", h=hashed, mask=sql.Literal(2**63 - 1))


def _tag(source: SourceDefinition, table: str) -> sql.Composable:
    """SQL of a bigint that tells a row from others: its key if that is a whole number, else a hash of it."""
    key = source.key
    if key.is_counted:
        return compose("{k}::bigint", k=key.theirs(table))
    return compose("hash_record_extended(ROW({k}), 0)", k=key.theirs(table))


def entities_of(source: SourceDefinition) -> list[str | None]:
    return entries.entities([feature.past for _, feature in source.past_features if feature.past])


def key_names(source: SourceDefinition) -> list[str]:
    return [f"of_key{n}" for n in range(len(source.key.columns))]


def _keys(source: SourceDefinition, table: str | None = None, *, descending: bool = False) -> sql.Composable:
    names = [identifier(*([table] if table else []), name) for name in key_names(source)]
    suffix = sql.SQL(" DESC" if descending else "")
    return sql.SQL(", ").join(compose("{n}{s}", n=name, s=suffix) for name in names)


def _time(source: SourceDefinition) -> str:
    if source.time_column is None:
        raise AssertionError("attach refuses features over the rows before without a time column")
    return source.time_column
