"""Reading the rows before: once for all rows of a block, entity by entity, by one index for each kind of entity.

The rows of an entity that are asked for are parted into stretches, where two of them lie further apart than the longest
window. Of each stretch PostgreSQL reads the rows from a window before its first row to its last one, newest first, and
so many at most; db.past.kernel makes the features of them. Rows that need more than came are asked for again.

Columns of the rows asked for (time, entity, key) travel as PostgreSQL sent them, and are not looked at here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from psycopg import sql
from sqlalchemy import Connection

from pgoutlier.db.past import entries, kernel
from pgoutlier.db.past.kernel import Known, Places, Rows, Vector
from pgoutlier.db.scoring.past_statements import entities_of, key_names, statements_of, value_names
from pgoutlier.db.source.definition import SourceDefinition
from pgoutlier.db.sql import wire
from pgoutlier.db.sql.statements import binary_rows, one
from pgoutlier.db.sql.wire import Received

_MICROSECONDS = 1_000_000
_DAY = 86_400 * _MICROSECONDS
# pg_type.oid of arrays of them.
_TIMESTAMPS, _DATES = (1115, 1185), 1182
# So far from either end of the range no sum overflows.
_FARTHEST = 2**61
# Of one stretch so many times what its last row needs at most.
_MOST_READ = 2


def fill(
    connection: Connection,
    source: SourceDefinition,
    block: dict[str, bytes],
    types: dict[str, int],
    matrix: Vector,
) -> int:
    """Put the features over the rows before into the matrix (n, d) of the rows of a block.

    Returns how many of them have more before them in a window than are looked at, of one kind of entity or another.

    block: what was read, of `past_statements.asked` at least; types: the pg_type.oid of each column of it.
    """
    tags = wire.elements(block["tag"], ">i8").astype(np.int64)
    own, which = np.unique(tags, return_inverse=True)
    is_cut_short = np.zeros(len(own), dtype=np.bool_)
    for n, by in enumerate(entities_of(source)):
        names = [name for name in ("at", f"by{n}", *key_names(source)) if name in block]
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
    names, statement, of_verdicts = statements_of(source, by, n)
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
    of_column = value_names(source, by)
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
