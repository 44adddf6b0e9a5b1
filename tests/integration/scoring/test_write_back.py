"""The scores in two columns of the user's own table: right whatever else goes on there, and never in anybody's way."""

from __future__ import annotations

import json
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from psycopg import sql
from sqlalchemy import Connection

from pgoutlier.db import migrate
from pgoutlier.db.ddl import core_objects, queue_triggers
from pgoutlier.db.engine import make_engine
from pgoutlier.db.errors import MissingPrivilege, SchemaNotReady, SourceError
from pgoutlier.db.scoring import bell, queue, write_back
from pgoutlier.db.scoring.claimed_rows import read_claimed
from pgoutlier.db.source.definition import Feature, SourceDefinition
from pgoutlier.db.sources import attach
from pgoutlier.db.sources.attach import AttachRequest
from pgoutlier.db.sql.identifiers import CHANNEL
from pgoutlier.detector import recipe_named
from pgoutlier.models_store import registry
from pgoutlier.worker.roles import granting
from pgoutlier.worker.runtime import Runtime
from pgoutlier.worker.scoring.batches import score_claimed
from pgoutlier.worker.sources import attaching, filling
from tests.conftest import Connect
from tests.integration.conftest import Run
from tests.names import NAMES
from tests.readings import SEQUENCE_RECIPE
from tests.servers import Postgres
from tests.support import (
    ASKED,
    HUNG_SECONDS,
    TRANSACTIONS,
    Table,
    attach_table,
    detach_table,
    heard,
    make_detector,
    objects,
    quote,
    refusal,
    until,
    waits,
)

User = psycopg.Connection[Any]


@pytest.fixture
def written(user: User, runtime: Runtime) -> Table:
    """The table of transactions with the two columns, about half of its rows flagged by the champion."""
    user.execute(TRANSACTIONS)
    table = attach_table(user, runtime, **ASKED, write_columns=True)
    table.promote(half_flagging(table))
    return table


def half_flagging(table: Table) -> Any:
    names = table.source.definition.feature_names
    errors = (
        make_detector(names).score([[i * 0.5, i % 24, i**0.5] for i in range(1, 50)]).reconstruction_error
    )
    return make_detector(names, threshold=sorted(errors)[25])


def wrong(table: Table) -> list[tuple[Any, ...]]:
    """Rows whose columns are not their score's, or not NULL without one."""
    definition = table.source.definition
    return table.user.execute(
        sql.SQL(
            "SELECT t.{key}, t.reconstruction_error, t.flagged, s.reconstruction_error, s.flagged FROM {t} t"
            " LEFT JOIN {s} s ON s.key = t.{key}"
            " WHERE (t.reconstruction_error, t.flagged) IS DISTINCT FROM (s.reconstruction_error, s.flagged)"
        ).format(
            key=sql.Identifier(definition.key_column),
            t=sql.Identifier(definition.relation_schema, definition.relation_name),
            s=sql.Identifier("outlier", f"scores_{definition.name}"),
        )
    ).fetchall()


def columns(table: Table, key: Any) -> tuple[Any, ...]:
    return table.rows("SELECT reconstruction_error, flagged FROM transactions WHERE id = %s", key)[0]


# -- what is written


def test_every_way_to_a_score_is_followed(written: Table) -> None:
    written.insert(1, 50)
    written.drain()
    assert wrong(written) == []
    assert 0 < len(written.keys("SELECT id FROM transactions WHERE flagged")) < 50
    written.user.execute("UPDATE transactions SET amount = 7 WHERE id < 9")
    written.drain()
    assert wrong(written) == []
    written.user.execute("UPDATE transactions SET amount = NULL WHERE id = 3")  # to quarantine
    written.drain()
    assert wrong(written) == []
    assert columns(written, 3) == (None, None)
    written.user.execute("UPDATE transactions SET amount = 4 WHERE id = 3")  # and back
    written.drain()
    assert wrong(written) == []
    assert columns(written, 3) != (None, None)
    written.user.execute("DELETE FROM outlier.scores_transactions WHERE key = 5")
    written.user.execute("UPDATE outlier.scores_transactions SET flagged = NOT flagged")  # as a reflag would
    assert columns(written, 5) == (None, None)
    assert wrong(written) == []


@pytest.mark.postgres18
def test_a_batch_that_is_rolled_back_has_written_nothing(written: Table) -> None:
    written.insert(1, 3)
    with written.runtime.engine.connect() as connection, connection.begin() as batch:
        score(connection, written)
        assert connection.exec_driver_sql("SELECT count(flagged) FROM public.transactions").scalar() == 3
        batch.rollback()
    assert written.keys("SELECT count(flagged) FROM public.transactions") == [0]


def score(connection: Connection, table: Table) -> None:
    """What a worker does between its claim and its commit."""
    source = table.source
    claim = queue.claim(connection, source.definition, at_most=10_000, whole_batch_attempts=3)
    champion = registry.champion(connection, source, table.runtime.cache)
    assert champion is not None
    rows = read_claimed(connection, source.definition, claim)
    score_claimed(connection, source, claim, rows, champion)
    queue.finish(connection, source, claim.queue_ids)


@pytest.mark.postgres18
@pytest.mark.parametrize(
    ("key_type", "key"),
    [("smallint", "i"), ("text", "'é%% ' || i"), ("varchar(20)", "'k' || i"), ("uuid", "md5(i::text)::uuid")],
)
def test_keys_of_every_type_in_a_partitioned_table(
    user: User, runtime: Runtime, key_type: str, key: str
) -> None:
    user.execute(
        f"CREATE TABLE t (id {key_type} PRIMARY KEY, keys float8, mine float8 GENERATED ALWAYS AS (keys * 2) STORED)"
        " PARTITION BY HASH (id); CREATE TABLE a PARTITION OF t FOR VALUES WITH (MODULUS 2, REMAINDER 0);"
        " CREATE TABLE b PARTITION OF t FOR VALUES WITH (MODULUS 2, REMAINDER 1)"
    )
    table = attach_table(user, runtime, relation="t", key="id", features="keys,mine", write_columns=True)
    table.promote()
    user.execute(f"INSERT INTO t SELECT {key}, i FROM generate_series(1, 50) i".replace("%%", "%"))
    assert table.drain().n_scored == 50
    assert wrong(table) == []
    assert table.keys("SELECT count(flagged) FROM t") == [50]
    assert table.queued() == []


# -- what it does not set off


@pytest.mark.postgres18
def test_what_is_written_queues_nothing_and_rings_no_bell(written: Table, connect: Connect) -> None:
    written.insert(1, 50)
    listener = connect()
    listener.execute(f"LISTEN {CHANNEL}")
    bell.fall_asleep(listener, {"transactions"})
    written.drain()
    written.user.execute("UPDATE transactions SET flagged = NOT flagged, note = 'by hand'")
    assert written.queued() == []
    assert heard(listener, CHANNEL, written.user) == []


def test_with_a_feature_view_every_column_counts_but_ours(
    user: User, runtime: Runtime, connect: Connect
) -> None:
    user.execute('CREATE TABLE t (id int PRIMARY KEY, country text, "odd %s" text, flag boolean)')
    user.execute("CREATE VIEW f AS SELECT id, length(country) AS n FROM t")
    table = attach_table(user, runtime, relation="t", key="id", feature_view="f", write_columns=True)
    table.promote()
    user.execute("INSERT INTO t VALUES (1, 'CH'), (2, 'Chile')")
    listener = connect()
    listener.execute(f"LISTEN {CHANNEL}")
    bell.fall_asleep(listener, {"t"})
    table.drain()
    assert wrong(table) == []
    assert table.queued() == []
    assert heard(listener, CHANNEL, user) == []
    user.execute("""UPDATE t SET "odd %s" = 'x', flagged = NULL WHERE id = 1""")
    user.execute("ALTER TABLE t ADD COLUMN later int")
    user.execute("UPDATE t SET later = 1 WHERE id = 2")
    assert table.queued() == [1, 2]
    table.drain()
    assert table.queued() == []


@pytest.mark.postgres18
def test_a_trigger_of_the_user_s_that_changes_a_feature_in_reaction_is_seen(written: Table) -> None:
    """It runs as in any session of the worker's: names without a schema are found."""
    user = written.user
    user.execute(
        "CREATE TABLE seen (id bigint); CREATE FUNCTION react() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " INSERT INTO seen VALUES (new.id); new.amount := coalesce(old.amount, 0) + 1; RETURN new; END $$;"
        " CREATE TRIGGER react BEFORE UPDATE OF flagged ON transactions FOR EACH ROW"
        " WHEN (old.flagged IS NULL AND new.id < 3) EXECUTE FUNCTION react()"
    )
    written.insert(1, 4)
    written.drain()
    assert sorted(written.keys("SELECT id FROM seen")) == [1, 2]
    assert wrong(written) == []
    assert written.keys("SELECT amount FROM transactions WHERE id = 1") == [1.5]
    assert written.errors()[1] == pytest.approx(
        make_detector(written.source.definition.feature_names)
        .numpy_score([[1.5, 1, 1]])
        .reconstruction_error[0],
        rel=1e-5,
    )


@pytest.mark.postgres18
def test_rows_that_a_trigger_of_the_user_s_refuses_are_scored_and_tried_again_later(written: Table) -> None:
    written.user.execute(
        "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'sealed row'; END $$;"
        " CREATE TRIGGER no BEFORE UPDATE ON transactions FOR EACH ROW WHEN (new.id IN (2, 4)) EXECUTE FUNCTION no()"
    )
    written.insert(1, 5)
    assert written.drain().n_scored == 5
    assert [row[0] for row in wrong(written)] == [2, 4]
    assert written.queued() == [2, 4]
    [problem] = written.keys("SELECT last_error FROM outlier.queue_{source}")
    assert problem == "columns not written: sealed row"
    written.user.execute("DROP TRIGGER no ON transactions")
    written.make_due()
    written.drain()
    assert wrong(written) == written.queued() == []


# -- locks


def test_a_row_that_is_locked_is_left_alone_and_written_later(written: Table, connect: Connect) -> None:
    written.insert(1, 50)
    writer = connect(autocommit=False)
    writer.execute("UPDATE transactions SET note = 'mine' WHERE id = 7")
    result = written.drain()
    assert (result.n_scored, result.n_failed_batches) == (50, 0)
    assert written.queued() == [7]
    assert [row[0] for row in wrong(written)] == [7]
    assert written.drain().n_batches == 0  # it is left alone for a while
    written.make_due()
    written.drain()
    assert [row[0] for row in wrong(written)] == [7]
    writer.commit()
    written.make_due()
    written.drain()
    assert wrong(written) == written.queued() == []


@pytest.mark.postgres18
def test_a_row_that_is_locked_when_it_loses_its_score_is_written_later(
    written: Table, connect: Connect
) -> None:
    written.insert(1, 3)
    written.drain()
    written.user.execute("UPDATE transactions SET amount = 'NaN' WHERE id = 2")
    writer = connect(autocommit=False)
    writer.execute("SELECT FROM transactions WHERE id = 2 FOR UPDATE")
    written.drain()
    assert written.quarantined() == {"2": ("nan", "amount")}
    assert [row[0] for row in wrong(written)] == [2]
    writer.commit()
    written.make_due()
    written.drain()
    assert wrong(written) == written.queued() == []
    assert written.quarantined() == {"2": ("nan", "amount")}


@pytest.mark.postgres18
def test_a_locked_row_of_a_sequence_is_written_later(user: User, runtime: Runtime, connect: Connect) -> None:
    user.execute(
        "CREATE TABLE readings (id bigint PRIMARY KEY, machine text, at timestamptz, a float8, b float8)"
    )
    asked: dict[str, Any] = {"relation": "readings", "key": "id", "features": "a,b", "time": "at"}
    table = attach_table(user, runtime, **asked, entity="machine", recipe=SEQUENCE_RECIPE, write_columns=True)
    table.promote(make_detector(("a", "b"), recipe=SEQUENCE_RECIPE))
    user.execute(
        "INSERT INTO readings SELECT i, 'm', timestamptz '2026-01-01' + make_interval(secs => i), sin(i), cos(i)"
        " FROM generate_series(1, 9) i"
    )
    writer = connect(autocommit=False)
    writer.execute("SELECT FROM readings WHERE id = 4 FOR UPDATE")
    table.drain()
    assert table.queued() == [4]
    assert [row[0] for row in wrong(table)] == [4]
    writer.commit()
    table.make_due()
    table.drain()
    assert wrong(table) == table.queued() == []


def test_scoring_and_a_writer_with_each_other_s_rows_do_not_deadlock(
    written: Table, connect: Connect
) -> None:
    """The writer has row 2 and wants row 1, which the worker has, while that wants row 2."""
    written.insert(1, 2)
    writer = connect(autocommit=False)
    writer.execute("UPDATE transactions SET note = 'mine' WHERE id = 2")
    with written.runtime.engine.connect() as connection, ThreadPoolExecutor(1) as pool:
        worker = connection.begin()
        score(connection, written)
        wants = pool.submit(writer.execute, "UPDATE transactions SET note = 'mine' WHERE id = 1")
        until(lambda: wants.done() or waits(written.user))
        assert not wants.done()
        worker.commit()
        wants.result(HUNG_SECONDS)
    writer.commit()
    assert [row[0] for row in wrong(written)] == [2]
    written.make_due()
    written.drain()
    assert wrong(written) == []
    assert written.keys("SELECT note FROM transactions") == ["mine", "mine"]


def test_whatever_commits_when_the_columns_end_as_the_scores(written: Table, connect: Connect) -> None:
    written.insert(1, 60)
    # The writer may be quicker than two drains for as long as it writes, so that only the budget ends them.
    small = written.with_settings(batch_rows=20, drain_budget_seconds=0.5)
    stop = threading.Event()

    def write() -> int:
        """Transactions of several rows in any order. One writer: what deadlocks can only be we."""
        dice, writer, n = random.Random(1), connect(autocommit=False), 0
        while not stop.is_set():
            for key in dice.sample(range(1, 61), 8):
                what = dice.choice(
                    ["amount = %(x)s", "note = 'x'", "amount = NULL", "flagged = NULL, hour = %(x)s"]
                )
                writer.execute(
                    f"UPDATE transactions SET {what} WHERE id = %(id)s", {"id": key, "x": dice.random()}
                )
            writer.commit()
            n += 1
        return n

    with ThreadPoolExecutor(3) as pool:
        transactions = pool.submit(write)
        try:
            for _ in range(12):
                done = [pool.submit(small.drain) for _ in range(2)]
                assert [drain.result(HUNG_SECONDS).n_failed_batches for drain in done] == [0, 0]
                written.make_due()
        finally:
            stop.set()
        assert transactions.result(HUNG_SECONDS) > 0
    written.make_due()
    written.drain()
    assert written.queued() == []
    assert wrong(written) == []


@pytest.mark.postgres18
def test_a_row_that_is_deleted_meanwhile_is_no_trouble(written: Table, connect: Connect) -> None:
    written.insert(1, 3)
    writer = connect(autocommit=False)
    writer.execute("DELETE FROM transactions WHERE id = 2")
    written.drain()
    writer.commit()
    written.make_due()
    written.drain()
    assert wrong(written) == written.queued() == []


# -- attach, switch, detach


@pytest.mark.postgres18
def test_a_column_of_the_user_s_is_never_written(user: User, runtime: Runtime) -> None:
    user.execute("CREATE TABLE t (id int PRIMARY KEY, x float8, flagged boolean)")
    asked: dict[str, Any] = {"relation": "t", "key": "id", "features": "x", "write_columns": True}
    sentence = refusal(runtime, **asked)
    assert "public.t has a column flagged of its own" in sentence
    assert "without --write-columns" in sentence
    user.execute(sentence[sentence.index("COMMENT") :])  # what it says to do if the column is ours after all
    attach_table(user, runtime, **asked)
    user.execute("ALTER TABLE t ALTER flagged TYPE integer USING 0")
    assert "ALTER TABLE public.t ALTER COLUMN flagged TYPE boolean" in refusal(runtime, **asked)


@pytest.mark.postgres18
def test_what_we_write_is_no_feature_and_no_label(written: Table) -> None:
    user, runtime = written.user, written.runtime
    asked: dict[str, Any] = {"relation": "transactions", "key": "id"}
    for named in ({"features": "amount,flagged"}, {"features": "amount", "label": "flagged"}):
        assert "flagged of public.transactions is written by pgoutlier" in refusal(runtime, **asked, **named)
    with runtime.engine.begin() as connection:
        definition, shown = attach.resolve(connection, AttachRequest(**asked, all_numeric_except=""))
    assert definition.feature_names == ("amount", "hour", "distance")
    assert shown == ("id", "amount", "hour", "distance", "note")
    user.execute("CREATE VIEW f AS SELECT id, amount, 2 * reconstruction_error AS again FROM transactions")
    assert "public.f reads reconstruction_error" in refusal(runtime, **asked, feature_view="f")


@pytest.mark.postgres18
def test_the_views_show_each_column_once(written: Table) -> None:
    written.insert(1)
    written.drain()
    for view in ("scored", "flagged", "compared"):
        shown = catalog_columns(written, f"{view}_transactions")
        assert shown[:7] == ["id", "amount", "hour", "distance", "note", "reconstruction_error", "flagged"]
        assert not any(name.startswith("source_") for name in shown)


def catalog_columns(table: Table, view: str) -> list[str]:
    return [c.name for c in table.user.execute(f"SELECT * FROM outlier.{view}").description or ()]  # type: ignore[arg-type]


@pytest.mark.postgres18
def test_the_dry_run_with_columns_prints_what_attach_does(
    user: User, runtime: Runtime, postgres: Postgres, database_url: str
) -> None:
    user.execute('CREATE TABLE "50% $outlier$" ("Key %s" text PRIMARY KEY, "it\'s" float8)')
    asked: dict[str, Any] = {
        "relation": '"50% $outlier$"',
        "key": '"Key %s"',
        "features": "it's",
        "name": "odd",
    }
    request = AttachRequest(**asked, write_columns=True)
    script = attaching.script(runtime, request, recipe_named("default"))
    before = objects(user)
    attach_table(user, runtime, **asked, write_columns=True)
    made = objects(user)
    assert made != before
    attaching.detach(runtime, "odd")
    assert objects(user) == before
    postgres.run("psql", database_url, "--no-psqlrc", "--set=ON_ERROR_STOP=1", "--quiet", stdin=script)
    assert objects(user) == made


def test_switched_on_later_the_scores_of_before_are_copied(transactions: Table, run: Run) -> None:
    transactions.promote(half_flagging(transactions))
    transactions.insert(1, 50)
    transactions.user.execute("UPDATE transactions SET amount = NULL WHERE id = 9")
    transactions.drain()
    scores = "SELECT * FROM outlier.scores_transactions ORDER BY key"
    before = transactions.rows(scores)
    words = ("attach", "transactions", "--key", "id", "--features", ASKED["features"], "--json")
    first = json.loads(run(*words, "--write-columns").output)
    assert (first["attached"], first["write_columns"], first["n_scores_copied"]) == (False, True, 49)
    assert wrong(transactions) == []
    assert transactions.rows(scores) == before
    again = json.loads(run(*words).output)  # says nothing of the columns, so they stay
    assert (again["write_columns"], again["n_scores_copied"]) == (True, 0)
    transactions.insert(51)
    transactions.drain()
    assert wrong(transactions) == []
    said = " ".join(run(*words[:-1], "--no-write-columns").output.split())
    assert said.endswith(
        "The columns reconstruction_error and flagged were taken out of public.transactions."
    )
    off = json.loads(run(*words, "--no-write-columns").output)
    assert off["write_columns"] is False
    transactions.insert(52)
    transactions.drain()
    assert transactions.scored() == [*range(1, 9), *range(10, 53)]
    assert json.loads(run("sources", "--json").output)[0]["write_columns"] is False


@pytest.mark.postgres18
@pytest.mark.parametrize(("key_type", "key"), [("text", "'é' || i"), ("uuid", "md5(i::text)::uuid")])
def test_copying_that_was_stopped_goes_on(user: User, runtime: Runtime, key_type: str, key: str) -> None:
    user.execute(f"CREATE TABLE t (id {key_type} PRIMARY KEY, x float8)")
    asked: dict[str, Any] = {"relation": "t", "key": "id", "features": "x"}
    table = attach_table(user, runtime, **asked)
    table.promote()
    user.execute(f"INSERT INTO t SELECT {key}, i FROM generate_series(1, 20) i")
    table.drain()
    attach_table(user, runtime, **asked, write_columns=True)
    source = table.source
    with runtime.engine.begin() as connection:
        seen, last = write_back.fill(connection, source, after=None, at_most=6)
        more, last = write_back.fill(connection, source, after=last, at_most=6)
    assert (seen, more, len(wrong(table))) == (6, 6, 8)
    assert filling.fill(runtime, "t") == 20
    assert wrong(table) == []
    user.execute("ALTER TABLE t DROP COLUMN flagged")
    attach_table(user, runtime, **asked)
    assert filling.fill(runtime, "t") == 20
    assert wrong(table) == []


@pytest.mark.postgres18
def test_doctor_says_what_is_wrong_with_the_columns(written: Table, run: Run) -> None:
    def finding() -> tuple[bool, str]:
        found = {f["what"]: f for f in json.loads(run("doctor", "--json").output)}["transactions columns"]
        return found["ok"], found["detail"]

    assert finding() == (False, "scores of before are not all copied")
    filling.fill(written.runtime, "transactions")
    assert finding() == (True, "written in public.transactions")
    written.user.execute("DROP TRIGGER write_back_insert ON outlier.scores_transactions")
    assert finding() == (False, "there is no trigger write_back_insert on outlier.scores_transactions")
    attach_table(written.user, written.runtime, **ASKED)
    assert written.source.columns_filled_at is None  # what was missed meanwhile is to be copied


def test_detach_takes_the_columns_away(
    user: User, runtime: Runtime, postgres: Postgres, database_url: str
) -> None:
    user.execute("CREATE TABLE t (id int PRIMARY KEY, x float8); INSERT INTO t VALUES (1, 1)")
    dump = ("pg_dump", database_url, "--table=t*", "--restrict-key=x")
    before, existing = postgres.run(*dump), objects(user)
    table = attach_table(
        user, runtime, relation="t", key="id", features="x", backfill=True, write_columns=True
    )
    table.promote()
    user.execute("INSERT INTO t VALUES (2, 2)")
    table.drain()
    user.execute("CREATE VIEW mine AS SELECT flagged FROM t")
    with pytest.raises(SourceError, match=r"view public\.mine depends on column flagged"):
        detach_table(table)
    user.execute("DROP VIEW mine; DELETE FROM t WHERE id = 2; ALTER TABLE t RENAME TO t_now")
    detach_table(table)
    user.execute("ALTER TABLE t_now RENAME TO t")
    assert objects(user) == existing
    assert postgres.run(*dump) == before


@pytest.mark.postgres18
def test_who_does_not_own_the_table_is_told_what_its_owner_has_to_run(
    user: User, runtime: Runtime, role: str, database_url: str
) -> None:
    user.execute("CREATE TABLE t (id int PRIMARY KEY, x float8)")
    user.execute(
        f"GRANT SELECT, TRIGGER ON t TO {role}; GRANT USAGE, CREATE ON SCHEMA outlier TO {role};"
        f" GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA outlier TO {role}"
    )
    request = AttachRequest(relation="t", key="id", features="x", write_columns=True)
    limited = replace(runtime, engine=make_engine(database_url.replace("postgres@", f"{role}@")))
    try:
        with pytest.raises(MissingPrivilege, match="Only an owner") as refused:
            attaching.attach(limited, request, recipe_named("default"))
        user.execute(refused.value.sentence.split("has to run: ")[1])
        attaching.attach(limited, request, recipe_named("default"))
        table = Table(user, runtime, "t")
        table.promote()
        user.execute("INSERT INTO t VALUES (1, 1)")
        table.drain()
        assert wrong(table) == []
        left = attaching.detach(limited, "t")
        assert left is not None
        user.execute(left)
        assert [c.name for c in user.execute("SELECT * FROM t").description or ()] == ["id", "x"]
    finally:
        limited.engine.dispose()


@pytest.mark.postgres18
def test_a_worker_s_role_needs_to_write_the_two_columns_only(
    written: Table, role: str, database_url: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    granting.grant(written.runtime, role, "worker")
    written.insert(1, 3)
    limited = make_engine(database_url.replace("postgres@", f"{role}@"))
    try:
        with limited.begin() as connection:
            score(connection, written)
        assert wrong(written) == []
        with limited.begin() as connection, pytest.raises(Exception, match="permission denied"):
            connection.exec_driver_sql("UPDATE public.transactions SET amount = 1")
    finally:
        limited.dispose()
    written.user.execute(f"REVOKE UPDATE (flagged) ON transactions FROM {role}")
    monkeypatch.setenv("PGOUTLIER_DATABASE_URL", database_url.replace("postgres@", f"{role}@"))
    found = {f["what"]: f for f in json.loads(run("doctor", "--json").output)}
    assert found["transactions columns"]["mend"] == f"pgoutlier db grant {role} --as worker"


@pytest.mark.postgres18
def test_the_program_of_before_gets_no_source_that_writes_columns(written: Table) -> None:
    engine = written.runtime.engine
    with pytest.raises(
        SchemaNotReady, match="tables of transactions; attach each again with --no-write-columns"
    ):
        migrate.downgrade(engine, "0007")
    attach_table(written.user, written.runtime, **ASKED, write_columns=False)
    migrate.downgrade(engine, "0007")
    assert written.keys("SELECT definition ? 'write_columns' FROM outlier.sources") == [False]
    migrate.upgrade(engine)
    migrate.check(engine)
    attach_table(written.user, written.runtime, **ASKED, write_columns=True)


@pytest.mark.postgres18
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schema=NAMES, table=NAMES, key=NAMES, feature=NAMES)
def test_any_names_can_be_written_to(user: User, schema: str, table: str, key: str, feature: str) -> None:
    names = [name.encode()[:63].decode(errors="ignore") for name in (schema, table, key, feature)]
    if len({*names[2:], "reconstruction_error", "flagged"}) < 4 or names[0].startswith("pg_"):
        return
    schema, table, key, feature = names
    definition = SourceDefinition(
        name="odd",
        relation_schema=schema,
        relation_name=table,
        key_column=key,
        key_type="bigint",
        features=(Feature(column=feature, kind="double"),),
        feature_view_schema=schema,  # its trigger names every column
        feature_view_name=table,
        write_columns=True,
    )
    relation = quote(schema, table)
    with user.transaction(force_rollback=True):
        user.execute(f"CREATE SCHEMA IF NOT EXISTS {quote(schema)}")
        user.execute(
            f"CREATE TABLE {relation} ({quote(key)} bigint PRIMARY KEY, {quote(feature)} float8,"
            " reconstruction_error float8, flagged boolean)"
        )
        user.execute(
            core_objects.script(
                [
                    *core_objects.create(definition, (key, feature), by_event_time=False),
                    *queue_triggers.triggers(definition).values(),
                ]
            )
        )
        user.execute(f"INSERT INTO {relation} VALUES (1, 2)")
        user.execute(
            "INSERT INTO outlier.scores_odd (key, change_id, reconstruction_error, model_version, flagged)"
            " VALUES (1, 1, 3, 1, true)"
        )
        assert user.execute(f"SELECT * FROM {relation}").fetchall() == [(1, 2.0, 3.0, True)]
        assert user.execute("SELECT count(*) FROM outlier.queue_odd").fetchall() == [(1,)]
        user.execute(f"UPDATE {relation} SET {quote(feature)} = 5, flagged = false")
        assert user.execute("SELECT count(*) FROM outlier.queue_odd").fetchall() == [(2,)]
