"""A challenger: what is kept of it, what it never does, and what becomes of it when aliases move."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import psycopg
import pytest

from pgoutlier.db.ddl import installation
from pgoutlier.db.engine import driver_connection
from pgoutlier.db.errors import MissingPrivilege, ModelError
from pgoutlier.db.sources import sources
from pgoutlier.db.sql.statements import run
from pgoutlier.db.status import overview
from pgoutlier.db.versions import aliases
from pgoutlier.detector import Detector
from pgoutlier.detector.recipes import Recurrent
from pgoutlier.worker.cli.status import note
from pgoutlier.worker.roles import granting
from pgoutlier.worker.runtime import Runtime, make_runtime
from pgoutlier.worker.scoring.batches import open_batch, score_batch
from pgoutlier.worker.upkeep import maintenance
from pgoutlier.worker.versions import comparing, versions
from tests.conftest import Connect
from tests.support import (
    FEATURES,
    HUNG_SECONDS,
    Table,
    attach_table,
    make_detector,
    plain_recipe,
    register,
    until,
)

User = psycopg.Connection[Any]


def windows_of(n: int) -> Any:
    return plain_recipe(
        name=f"window{n}",
        layers=(),
        recurrent=Recurrent(window=n, encoder=(4,), decoder=(4,), activation="linear"),
    )


def challenge(table: Table, detector: Detector | None = None, **changes: Any) -> int:
    """Register a detector and make it the challenger. Returns its version."""
    names = table.source.definition.feature_names
    version = register(table.runtime, table.source, detector or make_detector(names, seed=7, **changes))
    assert versions.challenge(table.runtime, table.source_name, version, reason="test")
    return version


def challenger_scores(table: Table) -> dict[Any, tuple[float, int, bool]]:
    """(error, version, would be flagged) by key."""
    found = table.rows(
        "SELECT key, reconstruction_error, model_version, would_flag FROM outlier.shadow_scores_{source}"
    )
    return {row[0]: row[1:] for row in found}


def state(table: Table) -> aliases.Challenger | None:
    with table.runtime.engine.begin() as connection:
        return aliases.both(connection, table.source.id).challenger


def end_pause(table: Table) -> None:
    table.user.execute("UPDATE outlier.model_aliases SET paused_until = NULL")


def features_of(keys: range) -> np.ndarray:
    """What Table.insert writes."""
    return np.array([[key * 0.5, key % 24, math.sqrt(key)] for key in keys])


def failing(table: Table, factor: float = 1e300) -> Detector:
    """A detector all of whose errors are infinite."""
    names = table.source.definition.feature_names
    detector = make_detector(names, recipe=plain_recipe(preprocessing=(), error_metric="mahalanobis"))
    arrays = {**detector.arrays, "residual.whitening": np.eye(len(names)) * factor}
    return Detector(detector.recipe, names, arrays, 1.0)


# -- what is kept


@pytest.mark.parametrize("n_rows", [30, 5_000])
def test_each_row_is_scored_by_both_and_only_the_champion_flags(transactions: Table, n_rows: int) -> None:
    champion = make_detector(FEATURES, seed=1)
    transactions.promote(champion)
    challenger = make_detector(FEATURES, seed=2, threshold=-1.0)
    assert challenge(transactions, challenger) == 2
    transactions.insert(1, n_rows)
    assert transactions.drain().n_flagged == 0
    matrix = features_of(range(1, n_rows + 1))
    expected = champion.score(matrix).reconstruction_error
    assert transactions.errors() == pytest.approx(dict(enumerate(expected, start=1)), rel=1e-6)
    expected = challenger.score(matrix).reconstruction_error
    found = challenger_scores(transactions)
    assert {key: row[0] for key, row in found.items()} == pytest.approx(
        dict(enumerate(expected, start=1)), rel=1e-6
    )
    assert {row[1:] for row in found.values()} == {(2, True)}
    assert transactions.rows("SELECT * FROM outlier.flagged_{source}") == []


@pytest.mark.parametrize("key_type", ["uuid", "text"])
def test_keys_of_every_form_have_scores_of_the_challenger(
    user: User, runtime: Runtime, key_type: str
) -> None:
    user.execute(f"CREATE TABLE t (k {key_type} PRIMARY KEY, x float8)")  # type: ignore[arg-type]
    table = attach_table(user, runtime, relation="t", key="k", features="x")
    table.promote()
    challenge(table)
    key = "md5(i::text)::uuid" if key_type == "uuid" else "repeat('ü', i % 5) || i"
    user.execute(f"INSERT INTO t SELECT {key}, nullif(i, 7) FROM generate_series(1, 50) i")  # type: ignore[arg-type]
    table.drain()
    user.execute("UPDATE t SET x = x + 1")
    table.drain()
    assert len(table.scored()) == 49
    assert sorted(challenger_scores(table)) == table.scored()
    assert comparing.compare(runtime, "t").rows == 49


def test_without_a_challenger_nothing_is_sent_that_was_not_sent_before(transactions: Table) -> None:
    transactions.promote()
    sent = []
    for _ in range(2):
        transactions.user.execute("TRUNCATE outlier.scores_transactions")
        transactions.insert(len(sent) + 1)
        batch = open_batch(transactions.runtime, transactions.source)
        assert batch is not None
        statements: list[str] = []
        driver = driver_connection(batch.connection)
        driver.add_notice_handler(lambda notice, into=statements: into.append(notice.message_primary or ""))
        run(batch.connection, "SET LOCAL log_min_duration_statement = 0")
        run(batch.connection, "SET LOCAL client_min_messages = log")
        score_batch(transactions.runtime, transactions.source, batch)
        sent.append([text for text in statements if "set_config" in text or "shadow" in text])
        if len(sent) == 1:
            challenge(transactions)
    assert sent[0] == []
    assert sent[1]
    assert sorted(challenger_scores(transactions)) == [2]


def test_a_row_that_changes_has_both_scores_made_again(transactions: Table) -> None:
    transactions.promote()
    challenge(transactions)
    transactions.insert(1, 5)
    transactions.drain()
    before = challenger_scores(transactions)
    transactions.user.execute("UPDATE transactions SET amount = 1000 WHERE id = 3")
    transactions.drain()
    after = challenger_scores(transactions)
    assert [key for key in after if after[key] != before[key]] == [3]
    pairs = "SELECT count(*) FROM outlier.scores_{source} JOIN outlier.shadow_scores_{source} USING (key, change_id)"
    assert transactions.keys(pairs) == [5]


def test_rows_without_a_score_of_the_champion_have_none_of_the_challenger(transactions: Table) -> None:
    transactions.promote()
    challenge(transactions, recipe=plain_recipe(missing="median"))
    transactions.insert(1, 2)
    transactions.user.execute("INSERT INTO transactions VALUES (3, NULL, 1, 1)")
    transactions.drain()
    assert sorted(challenger_scores(transactions)) == [1, 2]
    assert transactions.quarantined() == {"3": ("null", "amount")}


def test_rows_that_the_challenger_cannot_score_have_the_champion_s_score_alone(transactions: Table) -> None:
    transactions.promote(make_detector(FEATURES, recipe=plain_recipe(missing="median")))
    challenge(transactions)
    transactions.insert(1, 2)
    transactions.user.execute("INSERT INTO transactions VALUES (3, NULL, 1, 1)")
    transactions.drain()
    assert transactions.scored() == [1, 2, 3]
    assert sorted(challenger_scores(transactions)) == [1, 2]
    assert comparing.compare(transactions.runtime, "transactions").n_missing == 1


def test_scores_of_the_challenger_go_with_the_scores(transactions: Table) -> None:
    transactions.promote()
    version = challenge(transactions)
    transactions.insert(1, 6)
    transactions.drain()
    transactions.user.execute("DELETE FROM transactions WHERE id < 3")
    assert maintenance.prune_all(transactions.runtime) == {"transactions": 4}
    assert sorted(challenger_scores(transactions)) == [3, 4, 5, 6]
    versions.clear_challenger(transactions.runtime, "transactions", reason="test")
    assert maintenance.prune_all(transactions.runtime) == {"transactions": 0}
    assert {row[1] for row in challenger_scores(transactions).values()} == {version}
    challenge(transactions)
    assert maintenance.prune_all(transactions.runtime) == {"transactions": 4}
    assert challenger_scores(transactions) == {}


# -- windows


@pytest.mark.parametrize(
    ("champion", "challenger"), [(1, 3), (3, 1), (2, 4), (4, 2)], ids=lambda n: f"window{n}"
)
def test_recipes_with_and_without_windows_challenge_each_other(
    user: User, runtime: Runtime, champion: int, challenger: int
) -> None:
    user.execute("CREATE TABLE t (id int PRIMARY KEY, card text, at timestamptz, a float8, b float8)")
    table = attach_table(user, runtime, relation="t", key="id", features="a,b", time="at", entity="card")
    first, second = (
        make_detector(("a", "b"), recipe=windows_of(n) if n > 1 else plain_recipe(), seed=n)
        for n in (champion, challenger)
    )
    table.promote(first)
    challenge(table, second)
    rows = np.random.default_rng(0).normal(size=(60, 2))
    rows[11] = np.nan
    for part in np.array_split(np.arange(60), 5):
        with user.cursor() as cursor, user.transaction():
            cursor.executemany(
                "INSERT INTO t VALUES (%s, %s, timestamptz '2026-01-01' + %s * interval '1 s', %s, %s)",
                [(int(i), "xyz"[i % 3], int(i), *rows[i].tolist()) for i in part],
            )
        table.drain()
    table.drain_all()
    assert set(table.quarantined()) == {"11"}
    sound = np.delete(np.arange(60), 11)
    # The row in quarantine ends the history of those behind it.
    groups = np.array(["xyz"[i % 3] + ("'" if i % 3 == 2 and i > 11 else "") for i in sound])
    for detector, found in (
        (first, table.errors()),
        (second, {k: v[0] for k, v in challenger_scores(table).items()}),
    ):
        expected = detector.numpy_score(
            rows[sound], groups=groups if detector.recipe.window > 1 else None
        ).reconstruction_error
        assert found == pytest.approx(dict(zip(sound.tolist(), expected.tolist(), strict=True)), rel=1e-6)
    assert comparing.compare(runtime, "t").rows == 59


def test_a_row_that_only_the_challenger_wants_to_read_does_not_fail_the_champion_s_batch(
    user: User, runtime: Runtime
) -> None:
    user.execute("CREATE TABLE t (id int PRIMARY KEY, at int, a numeric)")
    table = attach_table(user, runtime, relation="t", key="id", features="a", time="at")
    table.promote()
    challenge(table, make_detector(("a",), recipe=windows_of(2)))
    user.execute("INSERT INTO t VALUES (1, 1, 1e400)")
    table.with_settings(max_attempts=1).drain_all()
    end_pause(table)
    user.execute("INSERT INTO t VALUES (2, 2, 2), (3, 3, 3)")
    assert table.drain().n_failed_batches == 0
    assert table.scored() == [2, 3]
    assert set(table.quarantined()) == {"1"}
    assert "NumericValueOutOfRange" in (state(table).problem or "")  # type: ignore[union-attr]


def test_a_window_without_an_order_is_refused_when_it_is_set(transactions: Table) -> None:
    transactions.promote()
    version = register(
        transactions.runtime, transactions.source, make_detector(FEATURES, recipe=windows_of(3))
    )
    with pytest.raises(ModelError, match=r"no time column.*--time COLUMN"):
        versions.challenge(transactions.runtime, "transactions", version, reason="test")
    assert state(transactions) is None


# -- a challenger that fails


def scored_without_it(table: Table, first: int) -> None:
    """The next rows have their champion's score, once, and none of the challenger's."""
    table.insert(first, first + 2)
    result = table.drain()
    assert (result.n_scored, result.n_failed_batches, result.n_quarantined) == (3, 0, 0)
    assert set(range(first, first + 3)) <= set(table.scored())
    assert not set(range(first, first + 3)) & set(challenger_scores(table))
    assert table.source.last_problem is None


def test_a_challenger_that_is_refused_is_noted_and_left_alone(
    transactions: Table, capsys: pytest.CaptureFixture[str]
) -> None:
    transactions.promote()
    version = challenge(transactions)
    transactions.user.execute(
        "UPDATE outlier.model_versions SET artifact = 'rubbish' WHERE version = %s", (version,)
    )
    scored_without_it(transactions, 1)
    found = state(transactions)
    assert found is not None
    assert found.paused
    assert f"version {version} of transactions is refused" in (found.problem or "")
    with transactions.runtime.engine.begin() as connection:
        [row] = overview.describe(connection, sources.every(connection))
    assert row.challenger == version
    assert "challenger: ArtifactRefused: version 2" in note(row)
    end_pause(transactions)
    scored_without_it(transactions, 11)
    logged = capsys.readouterr()
    assert (logged.out + logged.err).count("challenger_failed") == 1


def test_errors_that_are_not_finite_are_left_out_and_noted(transactions: Table) -> None:
    transactions.promote()
    challenge(transactions, failing(transactions))
    scored_without_it(transactions, 1)
    found = state(transactions)
    assert found is not None
    assert not found.paused
    assert "not finite" in (found.problem or "")


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        ("DROP TABLE outlier.shadow_scores_transactions CASCADE", "UndefinedTable"),
        ("ALTER TABLE outlier.shadow_scores_transactions ADD CHECK (key < 0)", "CheckViolation"),
        ("ALTER TABLE outlier.shadow_scores_transactions RENAME would_flag TO other", "UndefinedColumn"),
    ],
)
def test_a_table_that_takes_no_scores_of_the_challenger_stops_no_score(
    transactions: Table, harm: str, says: str
) -> None:
    transactions.promote()
    challenge(transactions)
    transactions.user.execute(harm)  # type: ignore[arg-type]
    transactions.insert(1, 3)
    assert transactions.drain().n_scored == 3
    assert transactions.scored() == [1, 2, 3]
    assert says in (state(transactions).problem or "")  # type: ignore[union-attr]
    assert transactions.queued() == []


def test_a_lock_on_the_challenger_s_scores_holds_up_no_score(transactions: Table, connect: Connect) -> None:
    transactions.promote()
    challenge(transactions)
    locker = connect(autocommit=False)
    locker.execute("LOCK TABLE outlier.shadow_scores_transactions")
    transactions.insert(1, 3)
    assert transactions.drain().n_scored == 3
    assert "LockNotAvailable" in (state(transactions).problem or "")  # type: ignore[union-attr]
    transactions.insert(4, 6)
    assert transactions.drain().n_scored == 3
    locker.rollback()
    end_pause(transactions)
    transactions.insert(7, 9)
    transactions.drain()
    assert sorted(challenger_scores(transactions)) == [7, 8, 9]
    found = state(transactions)
    assert found is not None
    assert (found.problem, found.paused) == (None, False)


def test_the_bounds_on_waiting_are_the_challenger_s_alone(transactions: Table) -> None:
    transactions.promote()
    challenge(transactions)
    transactions.insert(1)
    batch = open_batch(transactions.runtime, transactions.source)
    assert batch is not None
    run(batch.connection, "SET LOCAL lock_timeout = '7s'")
    seen: list[str] = []
    commit = batch.transaction.commit

    def look_and_commit() -> None:
        seen.extend(run(batch.connection, "SHOW lock_timeout").fetchone() or ())
        commit()

    object.__setattr__(batch, "transaction", type("T", (), {"commit": staticmethod(look_and_commit)}))
    score_batch(transactions.runtime, transactions.source, batch)
    assert seen == ["7s"]
    assert sorted(challenger_scores(transactions)) == [1]


# -- at once


def test_workers_at_once_write_every_score_and_every_score_of_the_challenger_once(
    transactions: Table,
) -> None:
    transactions.promote()
    challenge(transactions)
    transactions.user.execute(
        """
        CREATE TABLE written (what text, key bigint);
        CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN INSERT INTO written SELECT TG_TABLE_NAME, n.key FROM new_rows n; RETURN NULL; END';
        CREATE TRIGGER i AFTER INSERT ON outlier.scores_transactions
            REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION note();
        CREATE TRIGGER i AFTER INSERT ON outlier.shadow_scores_transactions
            REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION note();
        """
    )
    for start in range(1, 601, 20):
        transactions.insert(start, start + 19)
    small = transactions.with_settings(batch_rows=40)
    with ThreadPoolExecutor(4) as pool:
        for drained in [pool.submit(small.drain) for _ in range(4)]:
            drained.result()
    assert transactions.queued() == []
    for table in ("scores_transactions", "shadow_scores_transactions"):
        assert transactions.keys("SELECT key FROM written WHERE what = %s ORDER BY key", table) == list(
            range(1, 601)
        )


def test_workers_with_changes_of_the_same_rows_leave_pairs_and_no_deadlock(transactions: Table) -> None:
    transactions.promote()
    challenge(transactions)
    transactions.insert(1, 200)
    small = transactions.with_settings(batch_rows=150)
    with ThreadPoolExecutor(3) as pool:
        for turn in range(6):
            for start in range(1, 201, 50):
                transactions.user.execute(
                    "UPDATE transactions SET amount = amount + %s WHERE id BETWEEN %s AND %s",
                    (turn + 1, start, start + 99),
                )
            for drained in [pool.submit(small.drain) for _ in range(3)]:
                assert drained.result().n_failed_batches == 0
    transactions.drain_all()
    rows = transactions.rows("SELECT id, amount, hour, distance FROM transactions ORDER BY id")
    matrix = np.array([row[1:] for row in rows])
    expected = make_detector(FEATURES, seed=7).score(matrix).reconstruction_error
    assert {key: row[0] for key, row in challenger_scores(transactions).items()} == pytest.approx(
        dict(zip([row[0] for row in rows], expected.tolist(), strict=True)), rel=1e-6
    )
    assert comparing.compare(transactions.runtime, "transactions").rows == 200
    assert state(transactions).problem is None  # type: ignore[union-attr]


def test_a_batch_that_is_killed_leaves_neither_score(transactions: Table, connect: Connect) -> None:
    transactions.promote()
    challenge(transactions)
    transactions.user.execute(
        "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN PERFORM pg_advisory_xact_lock(4711); RETURN NULL; END';"
        "CREATE CONSTRAINT TRIGGER wait AFTER INSERT ON outlier.shadow_scores_transactions"
        " DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION wait()"
    )
    holder = connect()
    holder.execute("SELECT pg_advisory_lock(4711)")
    transactions.insert(1, 3)
    with ThreadPoolExecutor(1) as pool:
        draining = pool.submit(transactions.drain)
        waiting = (
            "SELECT pid FROM pg_stat_activity WHERE wait_event = 'advisory' AND datname = current_database()"
        )
        until(lambda: holder.execute(waiting).fetchall())
        holder.execute(f"SELECT pg_terminate_backend(pid) FROM ({waiting}) w")
        assert draining.result(HUNG_SECONDS).n_scored == 0
    assert (transactions.scored(), challenger_scores(transactions)) == ([], {})
    assert transactions.queued() == [1, 2, 3]
    holder.execute("SELECT pg_advisory_unlock(4711)")
    transactions.drain()
    assert sorted(challenger_scores(transactions)) == transactions.scored() == [1, 2, 3]


# -- aliases


def moves(table: Table) -> list[tuple[Any, ...]]:
    return table.rows(
        "SELECT alias, action, from_version, to_version, reason FROM outlier.alias_events ORDER BY id"
    )


def test_every_move_of_the_challenger_is_recorded(transactions: Table) -> None:
    runtime = transactions.runtime
    transactions.promote()
    for seed in (1, 2):
        register(runtime, transactions.source, make_detector(FEATURES, seed=seed))
    with pytest.raises(ModelError, match="Version 1 is the champion of transactions"):
        versions.challenge(runtime, "transactions", 1, reason="no")
    with pytest.raises(ModelError, match="no model version 9"):
        versions.challenge(runtime, "transactions", 9, reason="no")
    assert versions.challenge(runtime, "transactions", 2, reason="newer rows")
    assert not versions.challenge(runtime, "transactions", 2, reason="again")
    assert versions.challenge(runtime, "transactions", 3, reason="another")
    assert versions.clear_challenger(runtime, "transactions", reason="enough") == 3
    assert versions.clear_challenger(runtime, "transactions", reason="again") is None
    assert moves(transactions)[1:] == [
        ("challenger", "challenge", None, 2, "newer rows"),
        ("challenger", "challenge", 2, 3, "another"),
        ("challenger", "clear", 3, None, "enough"),
    ]
    assert set(transactions.keys("SELECT created_by FROM outlier.alias_events")) == {"postgres"}


def test_a_challenger_that_is_promoted_or_rolled_back_to_is_one_no_more(transactions: Table) -> None:
    runtime = transactions.runtime
    transactions.promote()
    challenge(transactions)
    assert versions.promote(runtime, "transactions", 2, reason="better")
    assert state(transactions) is None
    assert versions.challenge(runtime, "transactions", 1, reason="the other way round")
    assert versions.rollback(runtime, "transactions", reason="worse") == (2, 1)
    assert state(transactions) is None
    assert [move[:4] for move in moves(transactions)] == [
        ("champion", "promote", None, 1),
        ("challenger", "challenge", None, 2),
        ("champion", "promote", 1, 2),
        ("challenger", "clear", 2, None),
        ("challenger", "challenge", None, 1),
        ("champion", "rollback", 2, 1),
        ("challenger", "clear", 1, None),
    ]


def test_a_broken_version_is_not_made_the_challenger(transactions: Table) -> None:
    transactions.promote()
    version = register(transactions.runtime, transactions.source)
    transactions.user.execute("UPDATE outlier.model_versions SET artifact = 'x' WHERE version = 2")
    with pytest.raises(ModelError, match=r"Not made the challenger: version 2 of transactions is refused"):
        versions.challenge(transactions.runtime, "transactions", version, reason="test")
    assert state(transactions) is None


# -- comparing


def test_the_comparison_counts_what_both_of_now_have_scored(transactions: Table) -> None:
    runtime = transactions.runtime
    matrix = features_of(range(1, 401))
    detectors = [make_detector(FEATURES, seed=seed) for seed in (1, 2)]
    errors = [detector.score(matrix).reconstruction_error for detector in detectors]
    cuts = [float(np.quantile(e, 0.9)) for e in errors]
    transactions.promote(make_detector(FEATURES, seed=1, threshold=cuts[0]))
    with pytest.raises(ModelError, match="has no challenger; set one: pgoutlier models challenge"):
        comparing.compare(runtime, "transactions")
    challenge(transactions, make_detector(FEATURES, seed=2, threshold=cuts[1]))
    empty = comparing.compare(runtime, "transactions")
    assert (empty.rows, empty.agreement, empty.quantiles) == (0, None, ())
    transactions.insert(1, 400)
    transactions.drain()
    flags = [e > cut for e, cut in zip(errors, cuts, strict=True)]
    found = comparing.compare(runtime, "transactions", limit=1_000)
    assert (found.rows, found.n_missing) == (400, 0)
    assert found.flagged_by_both == (flags[0] & flags[1]).sum()
    assert found.only_champion == (flags[0] & ~flags[1]).sum()
    assert found.only_challenger == (flags[1] & ~flags[0]).sum()
    assert found.agreement == pytest.approx((flags[0] == flags[1]).mean())
    assert {row.key for row in found.disagreements} == set(
        (np.flatnonzero(flags[0] != flags[1]) + 1).tolist()
    )
    median = found.quantiles[0]
    assert median.champion == pytest.approx(np.sort(errors[0])[199])
    assert median.challenger == pytest.approx(np.sort(errors[1])[199])
    assert found.quantiles[-1].challenger == pytest.approx(errors[1].max())


def test_scores_of_other_versions_and_of_other_changes_do_not_count(transactions: Table) -> None:
    runtime = transactions.runtime
    transactions.promote()
    challenge(transactions)
    transactions.insert(1, 10)
    transactions.drain()
    transactions.promote(make_detector(FEATURES, seed=3))
    assert comparing.compare(runtime, "transactions").rows == 0
    transactions.insert(11, 14)
    transactions.drain()
    assert comparing.compare(runtime, "transactions").rows == 4
    challenge(transactions)
    assert comparing.compare(runtime, "transactions").rows == 0
    transactions.insert(15, 16)
    transactions.drain()
    found = comparing.compare(runtime, "transactions")
    assert (found.rows, found.n_missing) == (2, 0)
    transactions.user.execute(
        "ALTER TABLE outlier.shadow_scores_transactions ADD CHECK (change_id < 0) NOT VALID"
    )
    transactions.user.execute("UPDATE transactions SET amount = 9 WHERE id = 16")
    transactions.drain()
    assert comparing.compare(runtime, "transactions").rows == 1


# -- sources attached earlier, and rights


@pytest.fixture
def earlier(transactions: Table) -> Table:
    """As a source is that was attached before there were challengers."""
    transactions.user.execute("DROP TABLE outlier.shadow_scores_transactions CASCADE")
    transactions.user.execute("DROP VIEW outlier.rows_transactions CASCADE")
    transactions.promote()
    return transactions


def test_a_source_attached_earlier_gets_what_it_lacks_with_the_first_challenger(earlier: Table) -> None:
    maintenance.prune_all(earlier.runtime)
    challenge(earlier)
    earlier.insert(1, 3)
    earlier.drain()
    assert sorted(challenger_scores(earlier)) == [1, 2, 3]
    assert earlier.keys("SELECT id FROM outlier.compared_{source} ORDER BY 1") == [1, 2, 3]


def granted(table: Table, role: str, *, analyst: bool) -> None:
    granting.grant(table.runtime, role, "analyst" if analyst else "worker")


def as_role(table: Table, role: str) -> Runtime:
    settings = table.runtime.settings
    url = settings.database_url.get_secret_value().replace("postgres@", f"{role}@")  # type: ignore[union-attr]
    changed = settings.model_copy(update={"database_url": type(settings.database_url)(url)})
    return make_runtime(changed, application_name="tests")


def test_a_worker_s_role_that_may_not_make_tables_says_who_has_to(earlier: Table, role: str) -> None:
    granted(earlier, role, analyst=True)
    granted(earlier, role, analyst=False)
    version = register(earlier.runtime, earlier.source)
    limited = as_role(earlier, role)
    with pytest.raises(
        MissingPrivilege, match="the role that attached it has to run the same pgoutlier attach"
    ):
        versions.challenge(limited, "transactions", version, reason="test")
    limited.engine.dispose()
    with earlier.runtime.engine.begin() as connection:
        assert len(installation.lacks_for_challenger(connection, earlier.source.definition)) == 3


def test_a_worker_s_role_may_do_all_of_it(transactions: Table, role: str) -> None:
    granted(transactions, role, analyst=False)
    limited = as_role(transactions, role)
    table = Table(transactions.user, limited, transactions.source_name)
    table.promote()
    challenge(table)
    table.insert(1, 3)
    table.drain()
    assert sorted(challenger_scores(table)) == [1, 2, 3]
    assert comparing.compare(limited, "transactions", limit=5).rows == 3
    assert versions.tag(limited, "transactions", 2, "march")
    assert versions.prune(limited, "transactions", keep=1) == []
    assert versions.clear_challenger(limited, "transactions", reason="test") == 2
    assert set(maintenance.prune_all(limited)) == {"transactions"}
    limited.engine.dispose()


def test_an_analyst_reads_the_comparison_and_nothing_beneath(transactions: Table, role: str) -> None:
    granted(transactions, role, analyst=True)
    transactions.promote()
    challenge(transactions)
    transactions.insert(1, 3)
    transactions.drain()
    transactions.user.execute("SET ROLE writer")
    try:
        assert transactions.keys("SELECT rows FROM outlier.comparison_{source}") == [3]
        assert len(transactions.rows("SELECT * FROM outlier.compared_{source}")) == 3
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            transactions.rows("SELECT * FROM outlier.shadow_scores_{source}")
    finally:
        transactions.user.execute("RESET ROLE")
