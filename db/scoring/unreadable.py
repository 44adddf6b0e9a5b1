"""Reading rows of which some cannot be read: a number too large for a double, a division by zero in a feature view.

All rows are read at once, as ever, in a savepoint. Only if PostgreSQL refuses that, with an error that values of rows
may be to blame for, they are read by their keys in blocks, and a block that it refuses is tried row by row: by a
statement on the server that catches the error of each row, which takes some 20 microseconds a row where the view
answers by key, and goes through its plan once. Halving the block until the row stands alone would take a round trip
for each half, and several for each row where one in ten is to blame.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import psycopg
from psycopg import sql
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from pgoutlier.db.scoring import features
from pgoutlier.db.scoring.rows import UNREADABLE, FeatureRows
from pgoutlier.db.source.definition import SourceDefinition
from pgoutlier.db.sql import key_types, search_path
from pgoutlier.db.sql.statements import blames_rows, compose, dollar_quote, run, sqlstate

_Numbered = list[tuple[Any, int]]
_ROWS_PER_BLOCK = 10_000
# Tried in one statement, after which there is a look at the time.
_ROWS_PER_TRIAL = 1_000
# A view that does not answer by key goes through all its rows for each: then the first error is what is said.
_LONGEST_SEARCH_SECONDS = 300.0
# Rows that became unreadable between a trial and the reading after it.
_MOST_TRIALS = 3
# Settings by which a statement without parameters or rows is told what to try, and tells what came of it.
_KEYS, _REFUSED = "outlier.tried", "outlier.refused"


def read(
    connection: Connection,
    source: SourceDefinition,
    *,
    origin: sql.Composable,
    chosen: sql.Composable | None,
    params: dict[str, Any],
    number: sql.Composable,
    longest_key_bytes: int,
    rows_per_block: int | None = None,
) -> tuple[npt.NDArray[np.int64], FeatureRows]:
    """As `features.read`; a row that PostgreSQL refuses to read is UNREADABLE, and all its features NaN.

    chosen: FROM clause and all that follows of the same rows w (with a `key`) without their features, from which
    `number` can be told as well; None where one row that cannot be read shall raise as there. Raises the first error
    also if no row by itself is to blame, if all are, or if the search for them takes too long.
    """

    def at_once() -> tuple[npt.NDArray[np.int64], FeatureRows]:
        return features.read(
            connection,
            source,
            origin=origin,
            params=params,
            number=number,
            longest_key_bytes=longest_key_bytes,
            rows_per_block=rows_per_block,
        )

    if chosen is None:
        return at_once()
    try:
        with connection.begin_nested():
            return at_once()
    except (psycopg.Error, DBAPIError) as error:
        if not blames_rows(sqlstate(error)):
            raise
        numbered: _Numbered = run(
            connection,
            compose(
                "SELECT {key}, ({number})::bigint {chosen}",
                key=source.key.in_ours("w").as_value(),
                number=number,
                chosen=chosen,
            ),
            params,
        ).fetchall()
        found = _ByKey(connection, source, longest_key_bytes, error).read(numbered)
        if found is None:
            raise
        return found


class _ByKey:
    """Reads rows by key. refusals: what PostgreSQL said of those that it cannot read, by key."""

    def __init__(
        self, connection: Connection, source: SourceDefinition, longest_key_bytes: int, first_error: Exception
    ) -> None:
        self._connection, self._source, self._longest = connection, source, longest_key_bytes
        self._first_error = first_error
        self._give_up_at = time.monotonic() + _LONGEST_SEARCH_SECONDS
        self._refusals: dict[Any, str] = {}

    def read(self, numbered: _Numbered) -> tuple[npt.NDArray[np.int64], FeatureRows] | None:
        """All of them, or None if it is not some of them that cannot be read."""
        blocks = (numbered[n : n + _ROWS_PER_BLOCK] for n in range(0, len(numbered), _ROWS_PER_BLOCK))
        parts = [self._block(block) for block in blocks]
        refused = [(key, number) for key, number in numbered if key in self._refusals]
        if len(refused) in (0, len(numbered)):
            return None
        parts.append(self._read(refused, blank=True))
        numbers = np.concatenate([numbers for numbers, _ in parts])
        rows = FeatureRows.together([rows for _, rows in parts])
        rows.problems[len(numbers) - len(refused) :] = UNREADABLE
        return numbers, replace(rows, refusals={str(key): said for key, said in self._refusals.items()})

    def _block(self, block: _Numbered) -> tuple[npt.NDArray[np.int64], FeatureRows]:
        for _ in range(_MOST_TRIALS):
            try:
                return self._read(block)
            except (psycopg.Error, DBAPIError) as error:
                if not blames_rows(sqlstate(error)):
                    raise
            self._try_each([key for key, _ in block])
            block = [(key, number) for key, number in block if key not in self._refusals]
        return self._read(block)

    def _read(self, rows: _Numbered, *, blank: bool = False) -> tuple[npt.NDArray[np.int64], FeatureRows]:
        key = self._source.key
        # The keys are said twice: a view that groups its rows takes them from a condition alone.
        features_of = (
            "CROSS JOIN LATERAL (SELECT {as_theirs}) t"
            if blank
            else "JOIN {relation} t ON {same} WHERE {those}"
        )
        keys = sql.SQL("%(keys)s")
        with self._connection.begin_nested():
            return features.read(
                self._connection,
                self._source,
                origin=compose(
                    "FROM {given} {features}",
                    given=key.given("w", keys, {"place": sql.SQL("%(numbers)s::bigint[]")}),
                    features=compose(
                        features_of,
                        relation=self._source.feature_relation.sql(),
                        as_theirs=key.ours_as_theirs("w"),
                        same=key.is_of("t", "w"),
                        those=key.are_among("t", keys),
                    ),
                ),
                params={"keys": [key for key, _ in rows], "numbers": [number for _, number in rows]},
                number=sql.SQL("w.place"),
                longest_key_bytes=self._longest,
                blank=blank,
            )

    def _try_each(self, keys: Sequence[Any]) -> None:
        """Note the refusals among the rows with these keys. Raises the first error if that takes too long."""
        for first in range(0, len(keys), _ROWS_PER_TRIAL):
            left = self._give_up_at - time.monotonic()
            if left <= 0:
                raise self._first_error
            trial = self._connection.begin_nested()
            try:
                self._refusals |= self._refused(keys[first : first + _ROWS_PER_TRIAL], seconds=left)
            except psycopg.errors.QueryCanceled:
                raise self._first_error from None
            finally:
                trial.rollback()  # and with it what was set

    def _refused(self, keys: Sequence[Any], *, seconds: float) -> dict[Any, str]:
        """PostgreSQL's sentence on each of these rows that it cannot read. Raises QueryCanceled if it takes longer."""
        run(
            self._connection,
            "SELECT set_config(%s, (%s::text[])::text, true), set_config('statement_timeout', %s, true)",
            (_KEYS, [str(key) for key in keys], str(int(seconds * 1000) + 1)),
        )
        with search_path.of_the_role(self._connection):
            run(self._connection, _trial(self._source))
        said = run(self._connection, "SELECT unnest(current_setting(%s)::text[])", (_REFUSED,)).fetchall()
        by_text = {str(key): key for key in keys}
        refused = {}
        for (each,) in said:
            key, state, sentence = json.loads(each)
            if not blames_rows(state):
                raise self._first_error
            refused[by_text[key]] = f"{_class_of(state)}: {sentence}"
        return refused


def _trial(source: SourceDefinition) -> sql.Composed:
    """A statement that reads each row of the keys in _KEYS, and leaves in _REFUSED what PostgreSQL refused.

    Every name in it is qualified: it is run with the search_path of the role.
    """
    body = compose(
        """
        <<trial>>
        DECLARE
            tried {tried};
            state text;
            sentence text;
            refused text[] := '{{}}';
        BEGIN
            FOREACH tried IN ARRAY pg_catalog.current_setting({keys})::{all_tried} LOOP
                BEGIN
                    PERFORM {values} FROM {relation} t WHERE {same};
                EXCEPTION WHEN OTHERS THEN
                    GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, sentence = MESSAGE_TEXT;
                    refused := pg_catalog.array_append(
                        refused, pg_catalog.jsonb_build_array(trial.tried::text, state, sentence)::text);
                END;
            END LOOP;
            PERFORM pg_catalog.set_config({refused}, refused::text, true);
        END
        """,
        tried=key_types.scalar_type(source.key_type if source.key.is_single else "text"),
        all_tried=source.key.parameter_type(),
        keys=sql.Literal(_KEYS),
        refused=sql.Literal(_REFUSED),
        values=sql.SQL(", ").join(features.values(source).values()),
        relation=source.feature_relation.sql(),
        same=source.key.is_text_of("t", sql.SQL("trial.tried")),
    )
    quote = dollar_quote(body.as_string(None))
    return compose("DO LANGUAGE plpgsql {quote}{body}{quote}", quote=quote, body=body)


def _class_of(state: str) -> str:
    """What the driver calls an error of this SQLSTATE."""
    try:
        return psycopg.errors.lookup(state).__name__
    except KeyError:
        return state
