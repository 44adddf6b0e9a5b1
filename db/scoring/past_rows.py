"""Reading the rows before: once for all rows of a block, entity by entity, by one index for each kind of entity.

The rows of an entity that are asked for are parted into stretches, where two of them lie further apart than the longest
window. Of each stretch PostgreSQL reads the rows from a window before its first row to its last one, newest first, and
so many at most; db.past.kernel makes the features of them. Rows that need more than came are asked for again.

Columns of the rows asked for (time, entity, key) travel as PostgreSQL sent them, and are not looked at here.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any, LiteralString

import numpy as np
import numpy.typing as npt
from psycopg import sql
from sqlalchemy import Connection

from pgoutlier.db.past import entries, kernel
from pgoutlier.db.past.kernel import Known, Places, Rows, Vector
from pgoutlier.db.source import catalog, labels
from pgoutlier.db.source.definition import Feature, SourceDefinition
from pgoutlier.db.sql import wire
from pgoutlier.db.sql.identifiers import display, identifier
from pgoutlier.db.sql.key_columns import KeyColumns
from pgoutlier.db.sql.statements import binary_rows, compose, in_one_piece, one
from pgoutlier.db.sql.wire import Received

_MICROSECONDS = 1_000_000
_DAY = 86_400 * _MICROSECONDS
# pg_type.oid of arrays of them.
_TIMESTAMPS, _DATES = (1115, 1185), 1182
# So far from either end of the range no sum overflows.
_FARTHEST = 2**61
# Of a value by kind of column, but for what its text tells: equal numbers may be written in many ways (1.0, 1.00).
_HASHES: dict[str, LiteralString] = {
    "number": "hashtextextended(trim_scale({c})::text, 0)",
    "double": "hashfloat8extended({c}, 0)",
}
# Of one stretch so many times what its last row needs at most.
_MOST_READ = 2


def asked(source: SourceDefinition) -> dict[str, sql.Composable]:
    """What is read of each row t so that `fill` finds those before it, by name; nothing without such features."""
    if not source.past_features:
        return {}
    columns = {"tag": _tag(source, "t"), "at": identifier("t", _time(source))}
    for n, column in enumerate(source.key.columns):
        columns[f"of_key{n}"] = identifier("t", column)
    for n, by in enumerate(_entities(source)):
        if by is not None:
            columns[f"by{n}"] = identifier("t", by)
    return columns


def fill(
    connection: Connection,
    source: SourceDefinition,
    block: dict[str, bytes],
    types: dict[str, int],
    matrix: Vector,
) -> int:
    """Put the features over the rows before into the matrix (n, d) of the rows of a block.

    Returns how many of them have more before them in a window than are looked at, of one kind of entity or another.

    block: what was read, of `asked` at least; types: the pg_type.oid of each column of it.
    """
    tags = wire.elements(block["tag"], ">i8").astype(np.int64)
    own, which = np.unique(tags, return_inverse=True)
    is_cut_short = np.zeros(len(own), dtype=np.bool_)
    for n, by in enumerate(_entities(source)):
        names = [name for name in ("at", f"by{n}", *_key_names(source)) if name in block]
        given = {name: Received(types[name], block[name]) for name in names}
        is_cut_short |= _fill_of(connection, source, n, by, given, own, which, matrix)
    return int(is_cut_short.sum())


def _fill_of(
    connection: Connection,
    source: SourceDefinition,
    n: int,
    by: str | None,
    given: dict[str, Received],
    own: Places,
    which: Places,
    matrix: Vector,
) -> npt.NDArray[np.bool_]:
    """The same of the features of one kind of entity: which rows they are, by the tags in `own`."""
    places, features = zip(
        *((place, f) for place, f in source.past_features if f.past and f.past.by == by), strict=True
    )
    wanted = [(feature.past, feature.column) for feature in features]
    found = np.empty((len(own), len(wanted)))
    is_open = np.ones(len(own), dtype=np.bool_)
    is_cut_short = np.zeros(len(own), dtype=np.bool_)
    most = entries.MOST_ROWS
    while is_open.any():
        params = {**given, "open": wire.Array(16, is_open[which]), "most": _MOST_READ * most}
        rows, positions, is_whole = _read(connection, source, by, n, params, own, most)
        # A row that was not found is gone by now, or has no time or entity: its stretch tells nothing of it.
        done = is_open & is_whole
        if not done.any():
            break
        found[done], is_cut_short[done] = kernel.compute(wanted, rows, positions[done])
        is_open &= ~done
    lonely = is_open[which]
    for column, (past, _), values in zip(places, wanted, found.T, strict=True):
        # The matrix has their own values still.
        nothing = kernel.of_no_rows(past, matrix[:, column]) if lonely.any() else values
        matrix[:, column] = np.where(lonely, nothing, values[which])
    return is_cut_short


def _read(
    connection: Connection,
    source: SourceDefinition,
    by: str | None,
    n: int,
    params: dict[str, Any],
    own: Places,
    most: int,
) -> tuple[Rows, Places, npt.NDArray[np.bool_]]:
    """The rows of all stretches, where among them the rows with these tags (k,) are (k,), -1 where they are not, and
    whether all that these look at is there, or `most` rows (k,)."""
    names, statement, of_verdicts = _statement(source, by, n)
    found, types = binary_rows(connection, statement, params)
    if found[0][0] is None:
        nothing = np.empty(0, np.int64)
        return Rows(nothing, nothing, 1), np.full(len(own), -1), np.zeros(len(own), np.bool_)
    block = dict(zip(names, found[0], strict=True))
    oids = dict(zip(names, types, strict=True))

    def column(name: str, kind: str) -> npt.NDArray[Any]:
        """Turned round: each stretch comes newest first."""
        return wire.elements(block[name], kind)[::-1]

    stretch = column("stretch", ">i4").astype(np.int64)
    is_asked, stretch = stretch > 0, np.abs(stretch)
    stretch = stretch[0] - stretch
    times, units = _times(column, oids["at"])
    values = {name: column(name, ">f8").astype(np.float64) for name in names if name.startswith("value")}
    codes = {name: column(name, ">i8").astype(np.int64) for name in names if name.startswith("code")}
    of_column = _value_names(source, by)
    rows = Rows(
        stretch,
        times,
        units,
        {column: values[name] for (column, kind), name in of_column.items() if kind == "value"},
        {column: codes[name] for (column, kind), name in of_column.items() if kind == "code"},
    )
    if (stretch[1:] < stretch[:-1]).any() or ((times[1:] < times[:-1]) & (stretch[1:] == stretch[:-1])).any():
        raise AssertionError("PostgreSQL has not kept the rows of a stretch together, or not in order")
    tags = column("tag", ">i8").astype(np.int64)
    if of_verdicts is not None:
        is_fraud = column("label", "?") if "label" in block else np.zeros(len(tags), np.bool_)
        told = (
            _verdicts(connection, source, of_verdicts, params) if _has_verdicts(connection, source) else None
        )
        rows = replace(rows, known=_known(rows, tags, is_fraud, told))
    return rows, *_found(own, tags, stretch, is_asked, most)


def _found(
    own: Places, tags: Places, stretch: Places, is_asked: npt.NDArray[np.bool_], most: int
) -> tuple[Places, npt.NDArray[np.bool_]]:
    """Where the rows with these tags `own` are, -1 where they are not, and whether all that they look at is there, or
    `most` rows, (k,) each.

    A row may lie in several stretches, before the first row asked for in some: there its own window is not whole.
    """
    sizes = np.bincount(stretch)
    n_read = _MOST_READ * most
    is_cut = sizes >= n_read
    # Of one that was cut short the rows further down do not go on where the others end.
    begins = np.cumsum(sizes) - sizes + np.where(is_cut, sizes - n_read, 0)
    at = np.minimum(np.searchsorted(own, tags), len(own) - 1)
    hit = np.flatnonzero((own[at] == tags) & is_asked)
    n_before = hit - begins[stretch[hit]]
    is_whole = ~is_cut[stretch[hit]] | (n_before >= most)
    # That in which most is before it is taken.
    order = np.lexsort((n_before, is_whole))
    positions, whole = np.full(len(own), -1), np.zeros(len(own), np.bool_)
    positions[at[hit[order]]] = hit[order]
    whole[at[hit[order]]] = is_whole[order]
    return positions, whole


def _has_verdicts(connection: Connection, source: SourceDefinition) -> bool:
    return bool(
        one(connection, "SELECT EXISTS (SELECT FROM outlier.verdicts WHERE source = %s)", (source.name,))
    )


def _verdicts(
    connection: Connection, source: SourceDefinition, statement: sql.SQL, params: dict[str, Any]
) -> tuple[Places, Places, Places]:
    """Of each verdict on these rows the row's tag, when it was given, in microseconds, and 1 fraud, 0 normal, -1
    withdrawn; in the order in which they were given."""
    block, _ = binary_rows(connection, statement, params)
    if block[0][0] is None:
        return (np.empty(0, np.int64),) * 3
    tags, at, said = (
        wire.elements(array, kind).astype(np.int64)
        for array, kind in zip(block[0], (">i8", ">i8", ">i4"), strict=True)
    )
    return tags, at, said


def _known(
    rows: Rows, tags: Places, is_fraud: npt.NDArray[np.bool_], told: tuple[Places, Places, Places] | None
) -> Known:
    """Which rows were known to be fraud from when on. A verdict holds until the next, and over the label."""
    labelled = Known.of_labels(is_fraud, rows.times.dtype)
    if told is None or not len(told[0]):
        return labelled
    order = np.argsort(tags, kind="stable")
    found = np.minimum(np.searchsorted(tags[order], told[0]), len(tags) - 1)
    is_here = tags[order][found] == told[0]
    places, since, said = order[found][is_here], told[1][is_here], told[2][is_here]
    in_turn = np.lexsort((np.arange(len(places)), places))
    places, since, said = places[in_turn], since[in_turn], said[in_turn]
    holds = np.where(said < 0, is_fraud[places], said)
    is_first = np.diff(places, prepend=-1) != 0
    before = np.where(is_first, is_fraud[places], np.roll(holds, 1))
    # One given earlier by the clock than the one before it holds from then on.
    since = _rising_within(since, is_first)
    every = np.concatenate([labelled.places, places])
    by_place = np.argsort(every, kind="stable")
    return Known(
        every[by_place],
        np.concatenate([labelled.since, since])[by_place],
        np.concatenate([labelled.changes, (holds - before).astype(np.float64)])[by_place],
    )


def _rising_within(values: Places, is_first: npt.NDArray[np.bool_]) -> Places:
    """The largest so far, begun anew at each first one."""
    group = np.cumsum(is_first)
    # Ranks do not overflow where they are told apart by group.
    ranks = np.searchsorted(unique := np.unique(values), values) + group * len(unique)
    found: Places = unique[np.maximum.accumulate(ranks) - group * len(unique)]
    return found


def _times(column: Any, oid: int) -> tuple[npt.NDArray[Any], int]:
    if oid in _TIMESTAMPS:
        return np.clip(column("at", ">i8").astype(np.int64), -_FARTHEST, _FARTHEST), _MICROSECONDS
    if oid == _DATES:
        days = column("at", ">i4").astype(np.int64)
        return np.clip(days, -(_FARTHEST // _DAY), _FARTHEST // _DAY) * _DAY, _MICROSECONDS
    # Infinity less itself is no number.
    return np.nan_to_num(column("at", ">f8").astype(np.float64)), 1


@lru_cache(maxsize=64)
def _statement(
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
    for (column, kind), name in _value_names(source, by).items():
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
            for column, name in zip(source.key.columns, _key_names(source), strict=True)
        ),
        relation=source.relation.sql(),
        e=sql.SQL("true" if by is None else "o.e"),
        keys=_keys(source),
        arrays=sql.SQL(", ").join(
            sql.Placeholder(name)
            for name in ("at", *(() if by is None else (f"by{n}",)), *_key_names(source))
        ),
        given=sql.SQL(", ").join(
            identifier(name) for name in ("at", *(() if by is None else ("e",)), *_key_names(source))
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
    columns = tuple(identifier("h", name) for name in _key_names(source))
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
                    for column, name in zip(key.columns, _key_names(source), strict=True)
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
    for by in _entities(source):
        order = list(dict.fromkeys(filter(None, (by, _time(source), *source.key.columns))))
        needed = 1 if by is None else 2
        if any(columns[:needed] == order[:needed] for columns in leading):
            continue
        beside = [column for column, _ in _value_names(source, by) if column not in order]
        found.append(
            # PostgreSQL makes none on a partitioned table without its writers waiting.
            f"CREATE INDEX{'' if partitioned else ' CONCURRENTLY'} ON {source.relation}"
            f" ({', '.join(map(display, order))})"
            + (f" INCLUDE ({', '.join(map(display, dict.fromkeys(beside)))});" if beside else ";")
        )
    return found


def _value_names(source: SourceDefinition, by: str | None) -> dict[tuple[str, str], str]:
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


def _entities(source: SourceDefinition) -> list[str | None]:
    return entries.entities([feature.past for _, feature in source.past_features if feature.past])


def _key_names(source: SourceDefinition) -> list[str]:
    return [f"of_key{n}" for n in range(len(source.key.columns))]


def _keys(source: SourceDefinition, table: str | None = None, *, descending: bool = False) -> sql.Composable:
    names = [identifier(*([table] if table else []), name) for name in _key_names(source)]
    suffix = sql.SQL(" DESC" if descending else "")
    return sql.SQL(", ").join(compose("{n}{s}", n=name, s=suffix) for name in names)


def _time(source: SourceDefinition) -> str:
    if source.time_column is None:
        raise AssertionError("attach refuses features over the rows before without a time column")
    return source.time_column
