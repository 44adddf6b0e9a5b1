"""A champion that scores each row with the rows before it: in bulk, late, at once, and with gaps."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import psycopg
import pytest

from pgoutlier.db.engine import driver_connection
from pgoutlier.db.errors import ModelError
from pgoutlier.db.scoring import windows
from pgoutlier.db.scoring.queue import Claim
from pgoutlier.db.training import training_rows
from pgoutlier.detector.recipes import Recurrent
from pgoutlier.worker.runtime import Runtime
from pgoutlier.worker.scoring.batches import open_batch, score_batch
from pgoutlier.worker.scoring.sequences import index_advice, require_order
from pgoutlier.worker.training import training
from pgoutlier.worker.upkeep import maintenance
from tests.conftest import Connect
from tests.readings import READINGS, SEQUENCE_RECIPE, WINDOW, attach_readings, insert, offline
from tests.support import Table, attach_table, make_detector, plain_recipe

User = psycopg.Connection[Any]


@pytest.fixture
def readings(user: User, runtime: Runtime) -> Table:
    """Readings of machines in order of time, scored by a sequence champion."""
    user.execute(READINGS)
    return attach_readings(user, runtime)


def assert_as_offline(table: Table) -> None:
    assert table.queued() == []
    assert table.errors() == pytest.approx(offline(table), rel=1e-6)


def changes(table: Table) -> dict[int, int]:
    return dict(table.rows("SELECT key, change_id FROM outlier.scores_{source}"))


def test_rows_in_any_order_and_batch_are_scored_as_the_whole_table_is_offline(readings: Table) -> None:
    """Equal times are ordered by key; most rows come before those that precede them."""
    random = np.random.default_rng(0)
    ids = random.permutation(600).tolist()
    for start in range(0, 600, 150):
        insert(readings, *((i, f"m{i % 7}", i // 20) for i in ids[start : start + 150]))
    small = readings.with_settings(batch_rows=100)
    small.drain_all()
    assert_as_offline(readings)


def test_a_score_depends_on_the_rows_before_of_the_same_entity_and_on_no_others(readings: Table) -> None:
    insert(readings, (1, "left", 1), (2, "left", 2), (3, "left", 3), (4, "left", 4))
    readings.drain()
    alone = readings.errors()
    insert(readings, *((10 + i, "right", i * 0.5) for i in range(10)))
    readings.drain()
    assert {key: readings.errors()[key] for key in alone} == alone
    assert len(set(alone.values())) == 4
    readings.user.execute("UPDATE readings SET a = 5 WHERE id = 1")
    readings.drain()
    after = readings.errors()
    assert [key for key in alone if after[key] != alone[key]] == [1, 2, 3]


def test_with_too_few_rows_before_it_the_earliest_stands_in_their_place(readings: Table) -> None:
    insert(readings, (1, "m", 1), (2, "m", 2))
    readings.drain()
    first, second = ([float(np.sin(i)), float(np.cos(i * 0.7))] for i in (1, 2))
    windows = np.array([[first, first, first], [first, first, second]])
    expected = make_detector(("a", "b"), recipe=SEQUENCE_RECIPE).numpy_score(windows).reconstruction_error
    assert readings.errors() == pytest.approx({1: expected[0], 2: expected[1]}, rel=1e-6)


def test_a_row_without_time_or_entity_stands_alone(readings: Table) -> None:
    insert(readings, (1, "m", 1), (2, "m", None), (3, "m", 3), (4, None, 1), (5, None, 2), (6, "m", None))
    readings.drain()
    errors = readings.errors()
    windows = np.array([[[np.sin(i), np.cos(i * 0.7)]] * WINDOW for i in (1, 2, 4, 5, 6)])
    expected = make_detector(("a", "b"), recipe=SEQUENCE_RECIPE).numpy_score(windows).reconstruction_error
    assert [errors[i] for i in (1, 2, 4, 5, 6)] == pytest.approx(expected.tolist(), rel=1e-6)
    assert errors[3] == pytest.approx(
        make_detector(("a", "b"), recipe=SEQUENCE_RECIPE)
        .numpy_score(np.array([[[np.sin(i), np.cos(i * 0.7)] for i in (1, 1, 3)]]))
        .reconstruction_error[0],
        rel=1e-6,
    )


def test_a_late_row_scores_again_just_the_rows_whose_windows_it_changes(readings: Table) -> None:
    insert(readings, *((i, f"m{i % 2}", i) for i in range(1, 21)))
    readings.drain_all()
    before = changes(readings)
    insert(readings, (100, "m0", 7))
    readings.drain_all()
    after = changes(readings)
    assert sorted(key for key in after if after[key] != before.get(key)) == [8, 10, 100]
    assert_as_offline(readings)


def test_an_update_that_moves_a_row_scores_the_rows_behind_its_new_place(readings: Table) -> None:
    insert(readings, *((i, "m", i) for i in range(1, 11)))
    readings.drain_all()
    readings.user.execute("UPDATE readings SET taken_at = taken_at - interval '7.5 seconds' WHERE id = 10")
    readings.drain_all()
    assert_as_offline(readings)


@pytest.mark.parametrize("late_first", [True, False])
def test_neighbours_that_two_workers_score_without_seeing_each_other_end_as_offline(
    readings: Table, connect: Connect, late_first: bool
) -> None:
    """The later row is read while the earlier one is not committed yet, and written before or after it."""
    insert(readings, (1, "m", 1), (2, "m", 2))
    readings.drain_all()
    earlier = connect(autocommit=False)
    insert(readings, (3, "m", 3), user=earlier)
    insert(readings, (4, "m", 4))
    of_later = open_batch(readings.runtime, readings.source)
    earlier.commit()
    of_earlier = open_batch(readings.runtime, readings.source)
    assert of_later is not None
    assert of_earlier is not None
    batches = [of_earlier, of_later] if late_first else [of_later, of_earlier]
    for batch in batches:
        score_batch(readings.runtime, readings.source, batch)
    readings.drain_all()
    assert_as_offline(readings)


def test_a_score_made_again_from_old_values_does_not_outlast_an_update_committed_later(
    readings: Table, connect: Connect
) -> None:
    insert(readings, (1, "m", 1), (3, "m", 3))
    readings.drain_all()
    updating = connect(autocommit=False)
    updating.execute("UPDATE readings SET a = 7 WHERE id = 3")
    insert(readings, (2, "m", 2))
    readings.drain_all()
    updating.commit()
    readings.drain_all()
    assert_as_offline(readings)


def test_writers_and_workers_at_once_leave_the_scores_of_the_whole_table(
    readings: Table, connect: Connect
) -> None:
    """Rows of few machines, in an order of their own for each writer, while three workers drain."""
    random = np.random.default_rng(1)
    parts = np.array_split(random.permutation(240), 3)

    def write(part: np.ndarray) -> None:
        mine = connect(autocommit=False)
        for chunk in np.array_split(part, 16):
            insert(readings, *((int(i), f"m{i % 3}", float(i)) for i in chunk), user=mine)
            mine.execute("UPDATE readings SET a = a + 1 WHERE id = %s", (int(chunk[0]),))
            mine.commit()

    small = readings.with_settings(batch_rows=8)
    with ThreadPoolExecutor(6) as pool:
        writers = [pool.submit(write, part) for part in parts]
        while not all(writer.done() for writer in writers):
            for drained in [pool.submit(small.drain) for _ in range(3)]:
                drained.result()
        for writer in writers:
            writer.result()
    small.drain_all()
    assert_as_offline(readings)


def test_a_row_in_quarantine_ends_the_history_until_it_is_mended(readings: Table) -> None:
    insert(readings, *((i, "m", i) for i in range(1, 8)))
    readings.user.execute("UPDATE readings SET b = NULL WHERE id = 4")
    readings.drain_all()
    assert readings.quarantined() == {"4": ("null", "b")}
    sound = [[[np.sin(i), np.cos(i * 0.7)] for i in rows] for rows in [(5, 5, 5), (5, 5, 6), (5, 6, 7)]]
    expected = (
        make_detector(("a", "b"), recipe=SEQUENCE_RECIPE).numpy_score(np.array(sound)).reconstruction_error
    )
    assert [readings.errors()[i] for i in (5, 6, 7)] == pytest.approx(expected.tolist(), rel=1e-6)
    readings.user.execute("UPDATE readings SET b = 1 WHERE id = 4")
    readings.drain_all()
    assert readings.quarantined() == {}
    assert_as_offline(readings)


def test_a_row_that_fails_takes_no_neighbour_into_quarantine(user: User, runtime: Runtime) -> None:
    user.execute("CREATE TABLE t (id int PRIMARY KEY, at int, a numeric)")
    table = attach_table(user, runtime, relation="t", key="id", features="a", time="at")
    recipe = SEQUENCE_RECIPE.model_copy(update={"recurrent": Recurrent(window=2, encoder=(2,), decoder=(2,))})
    table.promote(make_detector(("a",), recipe=recipe))
    user.execute("INSERT INTO t SELECT i, i, i FROM generate_series(1, 3) i")
    user.execute("INSERT INTO t VALUES (4, 4, 1e400)")
    table.with_settings(max_attempts=1).drain_all()
    assert table.scored() == [1, 2, 3]
    assert table.quarantined() == {"4": ("error", None)}


def test_promotions_between_a_plain_and_a_sequence_champion_count_from_the_next_batch(
    readings: Table,
) -> None:
    insert(readings, *((i, "m", i) for i in range(1, 6)))
    readings.drain_all()
    plain = make_detector(("a", "b"), recipe=plain_recipe())
    opened = []
    for first in (6, 11, 16):
        insert(readings, *((i, "m", i) for i in range(first, first + 5)))
        batch = open_batch(readings.runtime, readings.source)
        opened.append(batch)
        assert batch is not None
        # The batch was read for the champion before.
        readings.promote(plain if first != 11 else make_detector(("a", "b"), recipe=SEQUENCE_RECIPE))
        score_batch(readings.runtime, readings.source, batch)
        readings.drain_all()
    by_row, by_window = offline(readings, detector=plain), offline(readings)
    errors = readings.errors()
    assert {i: errors[i] for i in range(11, 16)} == pytest.approx({i: by_window[i] for i in range(11, 16)})
    for rows in (range(6, 11), range(16, 21)):
        assert {i: errors[i] for i in rows} == pytest.approx({i: by_row[i] for i in rows})


def test_rows_that_the_triggers_missed_are_swept_up_with_their_histories(readings: Table) -> None:
    insert(readings, *((i, f"m{i % 3}", i) for i in range(0, 60, 2)))
    readings.drain_all()
    readings.user.execute("SET session_replication_role = replica")
    insert(readings, *((i, f"m{i % 3}", i) for i in range(1, 60, 2)))
    readings.user.execute("SET session_replication_role = origin")
    assert maintenance.sweep(readings.runtime, readings.source_name) == 30
    readings.drain_all()
    assert_as_offline(readings)


def test_text_keys_and_no_entity(user: User, runtime: Runtime) -> None:
    user.execute("CREATE TABLE t (k text PRIMARY KEY, at timestamp, a float8, b float8)")
    table = attach_table(user, runtime, relation="t", key="k", features="a,b", time="at")
    detector = make_detector(("a", "b"), recipe=SEQUENCE_RECIPE)
    table.promote(detector)
    matrix = np.random.default_rng(3).normal(size=(40, 2))
    keys = [("key" * (i % 5) + f" {i}") for i in range(40)]
    with user.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO t VALUES (%s, timestamp '2026-01-01' + %s * interval '1 s', %s, %s)",
            [(keys[i], i, *matrix[i].tolist()) for i in reversed(range(40))],
        )
        table.with_settings(batch_rows=7).drain_all()
    expected = detector.numpy_score(matrix).reconstruction_error
    assert table.errors() == pytest.approx(dict(zip(keys, expected.tolist(), strict=True)), rel=1e-6)


def test_training_rows_come_in_runs_that_a_flagged_or_incomplete_row_ends(readings: Table) -> None:
    readings.promote(make_detector(("a", "b"), recipe=SEQUENCE_RECIPE, threshold=-1.0))
    insert(readings, (4, "m", 4))
    readings.drain_all()
    readings.promote(make_detector(("a", "b"), recipe=SEQUENCE_RECIPE))
    insert(
        readings,
        *((i, "mn"[i > 8], i) for i in (*range(1, 4), *range(5, 12))),
        (12, None, 1),
        (13, "m", None),
    )
    readings.user.execute("UPDATE readings SET a = NULL WHERE id = 7")
    with readings.runtime.engine.begin() as connection:
        rows = training_rows.read(connection, readings.source, newest=100, in_runs=True)
    assert rows.runs is not None
    ids = [1, 12, 2, 3, 5, 6, 8, 9, 10, 11, 13]
    np.testing.assert_allclose(rows.matrix[:, 0], np.sin(ids))
    by_run: dict[int, set[int]] = {}
    for run, key in zip(rows.runs.tolist(), ids, strict=True):
        by_run.setdefault(run, set()).add(key)
    assert sorted(map(sorted, by_run.values())) == [[1, 2, 3], [5, 6], [8], [9, 10, 11], [12], [13]]


def test_a_sequence_recipe_without_a_time_column_is_refused(user: User, runtime: Runtime) -> None:
    user.execute("CREATE TABLE t (id int PRIMARY KEY, a float8)")
    table = attach_table(user, runtime, relation="t", key="id", features="a")
    with pytest.raises(ModelError, match=r"no time column.*--time COLUMN"):
        training.train(runtime, table.source_name, recipe_name="iforest-lstm-32-16")
    with pytest.raises(ModelError, match="the 2 rows before it"):
        require_order(SEQUENCE_RECIPE, table.source.definition)
    table.promote(make_detector(("a",), recipe=SEQUENCE_RECIPE))
    user.execute("INSERT INTO t VALUES (1, 1)")
    table.drain()
    assert table.queued() == [1]
    assert "no time column" in (table.source.last_problem or "")


def test_the_advice_names_the_index_that_is_missing(readings: Table) -> None:
    definition = readings.source.definition

    def advice() -> str | None:
        with readings.runtime.engine.begin() as connection:
            return index_advice(connection, definition, [SEQUENCE_RECIPE])

    assert advice() is None
    readings.user.execute("DROP INDEX readings_order")
    statement = advice()
    assert statement == "CREATE INDEX ON public.readings (machine, taken_at, id);"
    readings.user.execute(statement)
    assert advice() is None


def test_the_rows_before_and_behind_are_found_by_index(readings: Table) -> None:
    insert(readings, *((i, f"m{i % 200}", i) for i in range(20_000)))
    readings.user.execute("DELETE FROM outlier.queue_readings")
    readings.user.execute("VACUUM ANALYZE readings")
    insert(readings, (30_000, "m7", 30_000.0), (30_001, "m8", 30_000.0))
    definition = readings.source.definition
    plans: list[str] = []
    with readings.runtime.engine.begin() as connection:
        queue_ids = [row[0] for row in readings.rows("SELECT id FROM outlier.queue_readings")]
        claim = Claim(queue_ids, n_keys=2, attempts=0, rescore=False, change_id=max(queue_ids) + 1)
        connection.exec_driver_sql("LOAD 'auto_explain'")
        connection.exec_driver_sql("SET LOCAL auto_explain.log_min_duration = 0")
        connection.exec_driver_sql("SET LOCAL client_min_messages = log")
        driver_connection(connection).add_notice_handler(lambda n: plans.append(n.message_primary or ""))
        found = windows.read_claimed(connection, definition, claim, window=WINDOW)
        windows.queue_neighbours(connection, definition, claim, found)
    assert found.history is not None
    assert found.history.claimed.tolist() == [False, False, True, False, False, True]
    read, search = [plan for plan in plans if "LATERAL" in plan and "on readings p" in plan]
    for plan in (read, search):
        assert "using readings_order on readings p" in plan
        assert "Seq Scan on readings" not in plan
