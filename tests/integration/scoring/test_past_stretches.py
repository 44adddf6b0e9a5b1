"""Rows of one entity that are read in several stretches, or in several goes, have the values of the whole of them."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from pgoutlier.db.past import entries
from pgoutlier.db.scoring import claimed_rows, queue
from pgoutlier.worker.runtime import Runtime
from tests.support import Connection, Table, attach_table

# Keys and seconds: two rows far from the others, and many close together.
_SECONDS = (0, 1, *range(1_000, 1_020))


def values(table: Table) -> dict[str, list[float]]:
    """What the detector gets of the queued rows, by key."""
    definition = table.source.definition
    with table.runtime.engine.begin() as connection:
        claim = queue.claim(connection, definition, at_most=1_000, whole_batch_attempts=3)
        rows = claimed_rows.read_claimed(connection, definition, claim)
    return dict(zip(definition.key.to_texts(rows.keys), rows.matrix.tolist(), strict=True))


def test_rows_further_back_do_not_stand_for_those_that_were_not_read(
    user: Connection, runtime: Runtime, monkeypatch: Any
) -> None:
    """lag reads rows before the window, behind the end of what is read of the window."""
    monkeypatch.setattr(entries, "MOST_ROWS", 3)
    user.execute("CREATE TABLE seen (id bigint PRIMARY KEY, at integer, card text)")
    table = attach_table(
        user, runtime, relation="seen", features="count(100s) by card, lag(at, 2) by card", time="at"
    )
    for number, seconds in enumerate(_SECONDS):
        user.execute("INSERT INTO seen VALUES (%s, %s, 'a')", (number, seconds))
    found = values(table)
    for number, seconds in enumerate(_SECONDS):
        n_before = sum(seconds - 100 <= other < seconds for other in _SECONDS)
        two_before = _SECONDS[number - 2] if number >= 2 else seconds
        assert found[str(number)] == [min(n_before, 3), two_before]


def test_entities_that_their_collation_takes_for_one_are_one(user: Connection, runtime: Runtime) -> None:
    try:
        user.execute(
            "CREATE COLLATION any_case (provider = icu, locale = 'und-u-ks-level2', deterministic = false)"
        )
    except psycopg.errors.FeatureNotSupported:
        pytest.skip("this PostgreSQL has no ICU")
    user.execute("CREATE TABLE seen (id bigint PRIMARY KEY, at integer, card text COLLATE any_case)")
    table = attach_table(
        user, runtime, relation="seen", features="count(5s) by card, since_last by card", time="at"
    )
    # Whichever of the two ways to write it comes first in order, the last row is read with a part of the others.
    written = "AAAa" + "bbbB"
    for number, card in enumerate(written):
        user.execute("INSERT INTO seen VALUES (%s, %s, %s)", (number, (0, 2, 4, 8)[number % 4], card))
    longest = 30 * 86_400
    of_each = [[0, longest], [1, 2], [2, 2], [1, 4]]
    assert values(table) == {str(number): of_each[number % 4] for number in range(len(written))}


def test_a_column_is_read_as_a_value_and_as_a_number(user: Connection, runtime: Runtime) -> None:
    user.execute('CREATE TABLE seen (id bigint PRIMARY KEY, at integer, "a) by b" text, online boolean)')
    features = ", ".join(
        f'{entry} by "a) by b"' for entry in ("is_new(online, 9s)", "mean(online, 9s)", "count(9s)")
    )
    table = attach_table(user, runtime, relation="seen", features=features, time="at")
    user.execute("INSERT INTO seen VALUES (1, 1, 'x', true), (2, 2, 'x', false), (3, 3, 'x', false)")
    assert values(table) == {"1": [1, 1, 0], "2": [1, 1, 1], "3": [0, 0.5, 2]}
