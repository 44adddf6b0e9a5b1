"""Verdicts: giving them by command, file and SQL, who may, which one holds, and what they change."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from psycopg import sql
from pydantic import SecretStr
from sqlalchemy import make_url

from pgoutlier.db.ddl import installation
from pgoutlier.db.errors import SourceError, VerdictError
from pgoutlier.db.report import report_rows
from pgoutlier.db.scoring import features
from pgoutlier.db.source import labels
from pgoutlier.db.sql.identifiers import identifier
from pgoutlier.db.training import training_rows
from pgoutlier.db.verdicts.verdicts import Verdict
from pgoutlier.worker.roles import granting
from pgoutlier.worker.runtime import Runtime, make_runtime
from pgoutlier.worker.thresholds import thresholds
from pgoutlier.worker.training import training
from pgoutlier.worker.verdicts import judging
from tests.conftest import Connect
from tests.integration.conftest import Run
from tests.support import (
    ASKED,
    FEATURES,
    Table,
    attach_table,
    detach_table,
    make_detector,
    plain_recipe,
    quote,
)

User = psycopg.Connection[Any]

SMALL = plain_recipe(name="small", epochs=1, early_stopping=None, batch_size=64)


@pytest.fixture
def scored(transactions: Table) -> Table:
    """Twelve scored rows, of which 1 to 4 are flagged."""
    transactions.insert(1, 12)
    score_by_hand(transactions, "id <= 4")
    return transactions


def score_by_hand(table: Table, flagged: str) -> None:
    """A score of version 1 for each row: 100 minus its key, of one day for every ten rows."""
    table.user.execute(
        f"INSERT INTO outlier.scores_{table.source_name}"
        " (key, change_id, reconstruction_error, model_version, flagged, scored_at)"
        f" SELECT id, id, 100 - id, 1, {flagged}, '2026-03-01 12:00Z'::timestamptz + id / 10 * '1 day'::interval"
        f" FROM {table.source.definition.relation_name}"  # type: ignore[arg-type]
    )


def log(table: Table) -> list[tuple[Any, ...]]:
    """(key, verdict, note, who) in the order they were given."""
    return table.rows("SELECT key, verdict, note, created_by FROM outlier.verdicts ORDER BY id")


def current(table: Table) -> dict[str, str]:
    return dict(
        table.rows("SELECT key, verdict FROM outlier.current_verdicts WHERE source = %s", table.source_name)
    )


def seen(table: Table, key: str = "id") -> dict[Any, str | None]:
    """What the view of scored rows says of each."""
    statement = f"SELECT {key}, verdict FROM outlier.scored_{table.source_name}"
    return dict(table.user.execute(statement.encode()).fetchall())


def give(table: Table, *given: tuple[Any, str], **options: Any) -> judging.Given:
    return judging.give(
        table.runtime, table.source_name, [Verdict(str(key), word) for key, word in given], **options
    )


def known(table: Table) -> list[int]:
    """What `labels.of_keys` says of every row, by key."""
    definition = table.source.definition
    with table.runtime.engine.begin() as connection:
        places, rows = features.read(
            connection,
            definition,
            origin=sql.SQL("FROM {} t").format(definition.relation.sql()),
            params={},
            number=sql.SQL("row_number() OVER (ORDER BY t.{})").format(identifier(definition.key_column)),
            longest_key_bytes=100,
        )
        return labels.of_keys(connection, definition, rows.keys[np.argsort(places)]).tolist()


# -- one after the other


def test_a_verdict_is_kept_with_who_and_when_and_the_last_one_holds(scored: Table, run: Run) -> None:
    done = run("label", "transactions", "1", "0002", "fraud", "--note", "card stolen", "--json")
    assert json.loads(done.output) == {"source": "transactions", "n_given": 2, "n_unchanged": 0}
    assert "1 verdict recorded." in run("label", "transactions", "2", "Normal").output
    assert log(scored) == [
        ("1", "fraud", "card stolen", "postgres"),
        ("2", "fraud", "card stolen", "postgres"),
        ("2", "normal", None, "postgres"),
    ]
    assert current(scored) == {"1": "fraud", "2": "normal"}
    assert [seen(scored)[key] for key in (1, 2, 3)] == ["fraud", "normal", None]
    assert scored.rows("SELECT id FROM outlier.flagged_transactions WHERE verdict IS NULL ORDER BY 1") == [
        (3,),
        (4,),
    ]
    [row, other] = json.loads(run("verdicts", "transactions", "--json").output)
    assert (row["key"], row["verdict"], other["key"], other["note"]) == ("2", "normal", "1", "card stolen")
    history = json.loads(run("verdicts", "transactions", "--history", "--key", "02", "--json").output)
    assert [row["verdict"] for row in history] == ["normal", "fraud"]
    shown = run("verdicts", "transactions").output
    assert "card stolen" in shown
    assert "postgres" in shown


def test_what_is_said_already_is_not_said_again(scored: Table) -> None:
    def say(verdict: str, note: str | None = None, by: str | None = None) -> int:
        return judging.label(scored.runtime, "transactions", ["1"], verdict, note=note, by=by).n_given

    assert [say("withdrawn"), say("fraud", "stolen"), say("fraud"), say("fraud", "stolen")] == [0, 1, 0, 0]
    # Another note, another analyst and another verdict are news.
    assert [say("fraud", "lost"), say("fraud", "lost", by="ana"), say("normal", by="ana")] == [1, 1, 1]
    assert [say("withdrawn", by="bob"), say("withdrawn"), say("normal", by="ana")] == [1, 0, 1]
    assert [row[3] for row in log(scored)] == ["postgres", "postgres", "ana", "ana", "bob", "ana"]


def test_a_verdict_that_is_withdrawn_is_as_if_it_had_not_been_given(scored: Table, run: Run) -> None:
    give(scored, (1, "fraud"))
    run("label", "transactions", "1", "withdrawn", "--note", "another card")
    assert (current(scored), seen(scored)[1], known(scored)[0]) == ({}, None, labels.UNKNOWN)
    assert log(scored)[-1] == ("1", "withdrawn", "another card", "postgres")
    assert "No verdict. Give one:" in run("verdicts", "transactions").output


WRONG_WORDS = (
    (("label", "nothing", "1", "fraud"), "There is no source nothing. Sources: transactions."),
    (("label", "transactions", "1", "fraudulent"), "'fraudulent' is no verdict; write fraud, normal or"),
    (("label", "transactions", "fraud"), "A key or a verdict is missing; write: pgoutlier label SOURCE"),
    (("label", "transactions"), "A key or a verdict is missing"),
    (("label", "transactions", "1", "x7", "fraud"), "'x7' cannot be a key of source transactions, whose keys"),
    (("label", "transactions", str(2**63), "fraud"), "cannot be a key of source transactions"),
    (("label", "transactions", "1", "99", "fraud"), "There is no row of transactions with the key '99'."),
    (("label", "transactions", "1", "01", "fraud"), "The key '1' was there before; give each row one verdict."),
    (("label", "transactions", "1", "fraud", "--note", "\x00"), "The note is not text that PostgreSQL can keep."),
    (("label", "transactions", "1", "fraud", "--csv", "x"), "--csv takes keys, verdicts and notes from the"),
    (("label", "transactions", "--csv", "/no/such.csv"), "/no/such.csv cannot be read: No such file"),
    (("verdicts", "transactions", "--key", "x"), "'x' cannot be a key"),
)  # fmt: skip


def test_what_cannot_be_said_changes_nothing(scored: Table, run: Run) -> None:
    for words, says in WRONG_WORDS:
        done = run(*words)
        assert isinstance(done.exception, VerdictError | SourceError)
        assert says in done.exception.sentence
        assert done.exception.exit_code == 2
    assert log(scored) == []


def test_a_negative_key_is_a_key_and_no_option(scored: Table, run: Run) -> None:
    scored.user.execute("INSERT INTO transactions VALUES (-7, 1, 1, 1), (-8, 1, 1, 1)")
    assert run("label", "transactions", "-7", "-8", "normal", "--note", "-9").exit_code == 0
    assert run("label", "transactions", "--note", "after two dashes", "--", "-8", "fraud").exit_code == 0
    assert current(scored) == {"-7": "normal", "-8": "fraud"}
    assert run("verdicts", "transactions", "--key", "-7").exit_code == 0
    assert run("history", "keep", "transactions").exit_code == 0
    assert run("history", "show", "transactions", "-7").exit_code == 0
    assert run("quarantine", "retry", "transactions", "-7", "--json").exit_code == 0
    assert run("label", "transactions", "-x", "fraud").exit_code == 2


# -- files


def test_a_file_is_taken_whole(scored: Table, run: Run, tmp_path: Path) -> None:
    give(scored, (3, "fraud"))
    file = tmp_path / "v.csv"
    file.write_text('key,verdict,note\n1,fraud,"by ""phone"", twice"\n 2 ,normal,\n3,fraud,\n')
    done = run("label", "transactions", "--csv", str(file))
    assert done.output.strip() == "2 verdicts recorded, 1 known already."
    assert current(scored) == {"1": "fraud", "2": "normal", "3": "fraud"}
    assert log(scored)[1] == ("1", "fraud", 'by "phone", twice', "postgres")
    again = run("label", "transactions", "--csv", "-", "--json", input=file.read_bytes())
    assert json.loads(again.output) == {"source": "transactions", "n_given": 0, "n_unchanged": 3}


WRONG_LINES = (
    ("99,fraud", "Line 9: there is no row of transactions with the key '99'. Nothing was changed."),
    ("x,fraud", "Line 9: 'x' cannot be a key of source transactions, whose keys are of type bigint."),
    ("02,fraud", "Line 9: the key '2' was there before (line 3); give each row one verdict."),
    ("9,stolen", "Line 9 of {file} cannot be used: 'stolen' is no verdict; write fraud, normal or withdrawn."),
)  # fmt: skip


def test_a_file_with_a_mistake_at_its_end_changes_nothing(
    scored: Table, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judging, "BATCH", 3)
    file = tmp_path / "v.csv"
    for last, says in WRONG_LINES:
        file.write_text("key,verdict\n" + "".join(f"{key},fraud\n" for key in range(1, 8)) + last + "\n")
        done = run("label", "transactions", "--csv", str(file))
        assert isinstance(done.exception, VerdictError)
        assert says.format(file=file) in done.exception.sentence
        assert log(scored) == []


def test_a_long_file_is_written_in_batches_and_its_progress_is_told(
    scored: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judging, "BATCH", 5)
    told: list[int] = []
    done = give(scored, *((key, "normal") for key in range(1, 13)), on_progress=told.append)
    assert (done.n_given, told) == (12, [5, 10, 12])
    assert [row[0] for row in log(scored)] == [str(key) for key in range(1, 13)]


# -- plain SQL, and who may


def test_sql_takes_a_key_in_any_form_and_refuses_what_is_none(scored: Table) -> None:
    user = scored.user
    user.execute(
        "INSERT INTO outlier.verdicts (source, key, verdict) VALUES ('transactions', ' 007', 'fraud')"
    )
    user.execute(
        "INSERT INTO outlier.verdicts (source, key, verdict, note)"
        " SELECT 'transactions', id, 'normal', 'all of them' FROM outlier.flagged_transactions"
    )
    assert current(scored) == {"7": "fraud", **{str(key): "normal" for key in (1, 2, 3, 4)}}
    for values, says in (
        ("('transactions', 'seven', 'fraud')", "'seven' cannot be a key of source transactions, whose keys are"),
        ("('transactions', 9999999999999999999, 'fraud')", "cannot be a key of source transactions"),
        ("('transaction', 7, 'fraud')", "There is no source transaction; sources: transactions."),
        ("('transactions', 7, 'bad')", "verdicts_verdict_known_check"),
        ("('transactions', NULL, 'fraud')", 'null value in column "key"'),
    ):  # fmt: skip
        with pytest.raises(psycopg.Error) as raised:
            user.execute(f"INSERT INTO outlier.verdicts (source, key, verdict) VALUES {values}".encode())
        assert says in str(raised.value)
    user.execute("UPDATE outlier.verdicts SET key = ' 08 ' WHERE key = '7'")
    assert "8" in current(scored)


def test_a_verdict_on_a_row_that_comes_later_waits_for_it(scored: Table) -> None:
    scored.user.execute(
        "INSERT INTO outlier.verdicts (source, key, verdict) VALUES ('transactions', 50, 'fraud')"
    )
    assert scored.rows("SELECT * FROM outlier.quality_transactions") == []
    scored.insert(50)
    scored.user.execute(
        "INSERT INTO outlier.scores_transactions (key, change_id, reconstruction_error, model_version, flagged)"
        " VALUES (50, 50, 1, 1, true)"
    )
    assert scored.rows("SELECT labelled, hits FROM outlier.quality_transactions") == [(1, 1)]


@pytest.fixture
def analyst(scored: Table, role: str, connect: Connect) -> User:
    granting.grant(scored.runtime, role, "analyst")
    return connect(user=role)


def test_an_analyst_gives_verdicts_and_cannot_change_what_was_said(scored: Table, analyst: User) -> None:
    analyst.execute("INSERT INTO outlier.verdicts (source, key, verdict) VALUES ('transactions', 1, 'fraud')")
    assert log(scored) == [("1", "fraud", None, "writer")]
    assert analyst.execute("SELECT verdict FROM outlier.scored_transactions WHERE id = 1").fetchone() == (
        "fraud",
    )
    assert analyst.execute("SELECT hits FROM outlier.quality_transactions").fetchone() == (1,)
    for statement in (
        "INSERT INTO outlier.verdicts (source, key, verdict, created_by) VALUES ('transactions', 2, 'fraud', 'bob')",
        "INSERT INTO outlier.verdicts (source, key, verdict, created_at) VALUES ('transactions', 2, 'fraud', now())",
        "UPDATE outlier.verdicts SET verdict = 'normal'",
        "DELETE FROM outlier.verdicts",
        "SELECT outlier.check_verdict()",
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            analyst.execute(statement.encode())


def test_an_analyst_labels_by_command_what_the_views_show(
    scored: Table, analyst: User, database_url: str
) -> None:
    own = make_url(database_url).set(username="writer").render_as_string(hide_password=False)
    runtime = make_runtime(scored.runtime.settings.model_copy(update={"database_url": SecretStr(own)}))
    try:
        assert judging.label(runtime, "transactions", ["1", "12"], "fraud").n_given == 2
        assert {row[3] for row in log(scored)} == {"writer"}
        scored.insert(13)
        with pytest.raises(VerdictError, match="There is no scored row of transactions with the key '13'"):
            judging.label(runtime, "transactions", ["13"], "fraud")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            judging.label(runtime, "transactions", ["2"], "fraud", by="bob")
    finally:
        runtime.engine.dispose()
    assert judging.label(scored.runtime, "transactions", ["13"], "fraud").n_given == 1


# -- at once


def test_two_analysts_label_one_row_at_once_and_neither_waits_nor_is_lost(
    scored: Table, connect: Connect
) -> None:
    first, second = connect(autocommit=False), connect(autocommit=False)
    for session, verdict in ((first, "fraud"), (second, "normal")):
        session.execute("SET LOCAL lock_timeout = '2s'")
        session.execute(
            "INSERT INTO outlier.verdicts (source, key, verdict) VALUES ('transactions', 1, %s)", (verdict,)
        )
    second.commit()
    assert current(scored) == {"1": "normal"}
    first.commit()
    # The one that was given last, though the other was committed last.
    assert current(scored) == {"1": "normal"}
    assert [row[1] for row in log(scored)] == ["fraud", "normal"]


def test_many_label_the_same_rows_at_once(scored: Table) -> None:
    keys = [str(key) for key in range(1, 13)]

    def say(n: int) -> int:
        ordered = keys if n % 2 else keys[::-1]
        return judging.label(
            scored.runtime, "transactions", ordered, "fraud" if n % 2 else "normal", by=f"analyst {n}"
        ).n_given

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(say, range(8))) == [12] * 8
    last = dict(
        scored.rows("SELECT DISTINCT ON (key) key, verdict FROM outlier.verdicts ORDER BY key, id DESC")
    )
    assert len(log(scored)) == 96
    assert current(scored) == last
    assert {str(key): verdict for key, verdict in seen(scored).items()} == last


def test_detach_takes_the_verdicts_of_its_source_and_no_others(scored: Table, runtime: Runtime) -> None:
    scored.user.execute(
        "CREATE TABLE other (LIKE transactions INCLUDING ALL); INSERT INTO other VALUES (1, 1, 1, 1)"
    )
    other = attach_table(scored.user, runtime, relation="other", key="id", features="amount")
    give(scored, (1, "fraud"))
    give(other, (1, "normal"))
    assert (current(scored), current(other)) == ({"1": "fraud"}, {"1": "normal"})
    detach_table(scored)
    assert log(other) == [("1", "normal", None, "postgres")]


# -- labels, keys and names of every kind


@pytest.fixture
def labelled(user: User, runtime: Runtime) -> Table:
    """Forty rows, one every six hours, with a label that is known of every second; 10, 20, 30 and 40 say fraud."""
    user.execute(
        "CREATE TABLE payments (id bigint PRIMARY KEY, amount float8, hour float8, distance float8, at timestamptz,"
        " is_fraud boolean)"
    )
    user.execute(
        "INSERT INTO payments SELECT i, i, i, i, '2026-03-01Z'::timestamptz + i * interval '6 hours',"
        " CASE WHEN i % 2 = 0 THEN i % 10 = 0 END FROM generate_series(1, 40) i"
    )
    user.execute("SET timezone = 'UTC'")
    table = attach_table(
        user, runtime, relation="payments", key="id", features=",".join(FEATURES), time="at", label="is_fraud"
    )
    table.promote(make_detector(FEATURES, threshold=65.0))
    score_by_hand(table, "id < 35")
    return table


def test_a_verdict_wins_over_the_label_column(labelled: Table) -> None:
    assert [seen(labelled)[key] for key in (1, 2, 10)] == [None, "normal", "fraud"]
    give(labelled, (1, "normal"), (2, "fraud"), (10, "normal"))
    assert [seen(labelled)[key] for key in (1, 2, 10)] == ["normal", "fraud", "normal"]
    told = known(labelled)
    assert [told[key - 1] for key in (1, 2, 3, 4, 10, 20)] == [0, 1, -1, 0, 0, 1]
    give(labelled, (2, "withdrawn"), (10, "withdrawn"))
    assert [seen(labelled)[key] for key in (1, 2, 10)] == ["normal", "normal", "fraud"]


def test_precision_and_recall_by_day_are_those_of_labelled_rows(labelled: Table) -> None:
    give(labelled, (1, "fraud"), (36, "fraud"))
    truth = {key: key in {1, 10, 20, 30, 36, 40} for key in (1, *range(2, 41, 2))}
    rows = labelled.rows(
        "SELECT day::text, model_version, labelled, fraud, flagged, hits, precision, recall"
        " FROM outlier.quality_payments ORDER BY day"
    )
    expected = []
    for day in range(11):
        of_day = [key for key in truth if key // 4 == day]
        if of_day:
            flagged = [key for key in of_day if key < 35]
            n_fraud, n_hits = sum(truth[k] for k in of_day), sum(truth[k] for k in flagged)
            precision = n_hits / len(flagged) if flagged else None
            recall = n_hits / n_fraud if n_fraud else None
            date = f"2026-03-{1 + day:02}"
            expected.append((date, 1, len(of_day), n_fraud, len(flagged), n_hits, precision, recall))
    assert rows == expected


def test_the_days_of_a_source_without_times_are_those_of_scoring(scored: Table) -> None:
    scored.user.execute("SET timezone = 'UTC'")
    give(scored, (1, "fraud"), (2, "normal"), (10, "fraud"))
    assert scored.rows(
        "SELECT day::text, hits, precision, recall FROM outlier.quality_transactions ORDER BY 1"
    ) == [
        ("2026-03-01", 1, 0.5, 1.0),
        ("2026-03-02", 0, None, 0.0),
    ]


KEYS = {
    "smallint": ("smallint", ["-32768", "7"], ["-32768", "007"]),
    "integer": ("integer", ["0", "7"], ["-0", "+7"]),
    "bigint": ("bigint", ["-9223372036854775808", "7"], ["-9223372036854775808", " 7"]),
    "uuid": (
        "uuid",
        ["00000000-0000-0000-0000-0000000000aa", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"],
        ["{00000000-0000-0000-0000-0000000000AA}", "A0EEBC999C0B4EF8BB6D6BB9BD380A11"],
    ),
    "text": ("text", [" a,'\"%s{}\n", "größe 😀"], [" a,'\"%s{}\n", "größe 😀"]),
    "varchar": ("varchar(9)", ["", "fraud"], ["", "fraud"]),
    "collated": ('text COLLATE "POSIX"', ["A", "b"], ["A", "b"]),
}


@pytest.mark.parametrize("kind", KEYS)
def test_every_type_of_key_and_odd_names_take_verdicts(user: User, runtime: Runtime, kind: str) -> None:
    key_type, keys, written = KEYS[kind]
    key, label = quote('the "key" %s {x}'), quote("100% fraud?")
    user.execute(f"CREATE TABLE t ({key} {key_type} PRIMARY KEY, x float8, {label} text)".encode())
    with user.cursor() as cursor:
        insert = b"INSERT INTO t VALUES (%s, 1, %s)"
        cursor.executemany(insert, list(zip(keys, ("no", "yes"), strict=True)))
    table = attach_table(user, runtime, relation="t", key=key, features="x", label=label)
    table.promote(make_detector(["x"]))
    user.execute(
        "INSERT INTO outlier.scores_t (key, change_id, reconstruction_error, model_version, flagged)"
        f" SELECT {key}, 1, 1, 1, false FROM t".encode()
    )
    assert {str(key): verdict for key, verdict in seen(table, key).items()} == {
        keys[0]: "normal",
        keys[1]: "fraud",
    }
    assert give(table, (written[0], "fraud")).n_given == 1
    user.execute(
        "INSERT INTO outlier.verdicts (source, key, verdict) VALUES ('t', %s, 'normal')", (written[1],)
    )
    expected = {keys[0]: "fraud", keys[1]: "normal"}
    assert current(table) == expected
    assert {str(key): verdict for key, verdict in seen(table, key).items()} == expected
    assert known(table) == [labels.FRAUD, labels.NORMAL]
    assert table.rows("SELECT sum(labelled), sum(fraud) FROM outlier.quality_t") == [(2, 1)]
    with runtime.engine.begin() as connection:
        rows = training_rows.read(connection, table.source, newest=10)
    assert (rows.left_out, rows.n_normal) == ({"fraud_verdict": 1}, 1)
    found = thresholds.describe(runtime, "t", window=None)
    assert (found.n_labelled, found.n_fraud) == (2, 1)


def test_a_column_of_the_user_s_named_verdict_is_kept_under_another_name(
    user: User, runtime: Runtime
) -> None:
    user.execute("CREATE TABLE t (verdict int PRIMARY KEY, x float8, source_verdict text)")
    table = attach_table(user, runtime, relation="t", key="verdict", features="x")
    user.execute("INSERT INTO t VALUES (1, 2, 'mine')")
    user.execute(
        "INSERT INTO outlier.scores_t (key, change_id, reconstruction_error, model_version, flagged)"
        " VALUES (1, 1, 1, 1, false)"
    )
    give(table, (1, "fraud"))
    columns = "source_source_verdict, source_verdict, verdict"
    assert table.rows(f"SELECT {columns} FROM outlier.scored_t") == [(1, "mine", "fraud")]


# -- training and thresholds


def test_training_leaves_fraud_out_and_takes_flagged_rows_that_are_normal(labelled: Table) -> None:
    give(labelled, (1, "normal"), (3, "fraud"), (10, "normal"), (37, "fraud"))

    def left_out() -> tuple[dict[str, int], list[float]]:
        with labelled.runtime.engine.begin() as connection:
            rows = training_rows.read(
                connection,
                labelled.source,
                newest=40,
                with_frauds_and_flagged=True,
            )
            fraud = training_rows.labelled_fraud(connection, labelled.source.definition, newest=40, most=9)
        frauds = rows.matrix[rows.fraud][:, 0].tolist()
        assert fraud[:, 0].tolist() == frauds
        assert {1.0, 2.0, 10.0} <= set(rows.matrix[rows.normal][:, 0])
        return rows.left_out, frauds

    # Flagged are 1 to 34, of which the even ones have a label and 1 and 3 a verdict.
    assert left_out() == ({"fraud_verdict": 2, "labelled_fraud": 3, "flagged": 15}, [3, 20, 30, 37, 40])
    give(labelled, (3, "withdrawn"))
    assert left_out() == ({"fraud_verdict": 1, "labelled_fraud": 3, "flagged": 16}, [20, 30, 37, 40])


def test_a_training_counts_verdicts_and_policies_by_labels_work_without_a_label_column(
    user: User, runtime: Runtime, run: Run
) -> None:
    user.execute("CREATE TABLE t (id int PRIMARY KEY, x float8, y float8)")
    user.execute(
        "INSERT INTO t SELECT i, sin(i), CASE WHEN i % 30 = 0 THEN i ELSE cos(i) END FROM generate_series(1, 300) i"
    )
    table = attach_table(user, runtime, relation="t", key="id", features="x,y", recipe=SMALL)
    with pytest.raises(
        SourceError, match=r"source t has none; .*give verdicts first \(pgoutlier label t KEY fraud\)"
    ):
        training.train(runtime, "t", threshold="target_recall:0.7")
    give(table, *((key, "fraud") for key in range(30, 301, 30)))
    made = training.train(runtime, "t", threshold="target_recall:0.7")
    assert (made.n_rows, made.left_out) == (290, {"fraud_verdict": 10})
    assert made.metrics["calibration_recall"] >= 0.7
    assert table.rows("SELECT left_out FROM outlier.training_runs") == [({"fraud_verdict": 10},)]
    give(table, *((key, "withdrawn") for key in range(30, 301, 30)))
    with pytest.raises(SourceError, match="needs labels"):
        training.train(runtime, "t", threshold="max_f1")


def test_the_threshold_is_measured_against_verdicts(scored: Table, run: Run) -> None:
    scored.promote(make_detector(FEATURES, threshold=95.5))
    assert "verdict" not in run("threshold", "transactions").output
    give(scored, (1, "fraud"), (2, "normal"), (9, "fraud"))
    found = thresholds.describe(scored.runtime, "transactions", window=None, others=[90.0])
    assert (found.n_labelled, found.n_fraud, found.label, found.verdicts) == (3, 2, None, True)
    assert [(cut.flags, cut.precision, cut.recall) for cut in found.what_if] == [
        (9, pytest.approx(2 / 3), 1.0),
        (4, 0.5, 0.5),
    ]
    shown = " ".join(run("threshold", "transactions", "--what-if").output.split())
    assert "3 of them have a verdict, 2 say fraud: precision 0.500, recall 0.500." in shown
    assert "precision recall F1" in shown


def test_a_label_column_and_verdicts_are_counted_together(labelled: Table, run: Run) -> None:
    give(labelled, (10, "normal"), (1, "fraud"))
    found = thresholds.describe(labelled.runtime, "payments", window=None)
    assert (found.n_labelled, found.n_fraud) == (21, 4)
    assert "21 of them have a verdict or label, 4 say fraud" in run("threshold", "payments").output


def test_the_report_knows_the_verdicts(scored: Table) -> None:
    def sample() -> report_rows.ScoredSample:
        with scored.runtime.engine.begin() as connection:
            return report_rows.scored_sample(
                connection, scored.source.definition, version=1, newest=12, imputes=False
            )

    assert sample().labels is None
    give(scored, (1, "fraud"), (12, "normal"))
    assert sample().labels.tolist() == [True] + [False] * 11  # type: ignore[union-attr]


# -- sources that an earlier version attached


@pytest.fixture
def earlier(transactions: Table, role: str) -> Table:
    """The views as they were before there were verdicts, with a grant, and a column that the table got since."""
    user = transactions.user
    user.execute(
        "DROP VIEW outlier.quality_transactions, outlier.flagged_transactions, outlier.scored_transactions"
    )
    for view, where in (("scored", ""), ("flagged", " WHERE s.flagged")):
        user.execute(
            f"CREATE VIEW outlier.{view}_transactions AS SELECT t.id, t.amount, t.hour, t.distance, t.note,"
            " s.reconstruction_error, s.flagged, s.model_version, s.scored_at, s.top_features FROM transactions t"
            f" JOIN outlier.scores_transactions s ON s.key = t.id{where}".encode()
        )
    user.execute(f"GRANT SELECT ON outlier.scored_transactions TO {role}".encode())
    user.execute("ALTER TABLE transactions ADD COLUMN since text")
    return transactions


def columns(table: Table, view: str) -> list[str]:
    cursor = table.user.execute(f"SELECT * FROM outlier.{view}_transactions LIMIT 0".encode())
    return [column.name for column in cursor.description or ()]


def test_attaching_again_gives_the_views_what_they_lack(earlier: Table, role: str) -> None:
    before = columns(earlier, "scored")
    with earlier.runtime.engine.begin() as connection:
        assert installation.lacks(connection, earlier.source.definition) == [
            "scored_transactions.verdict",
            "flagged_transactions.verdict",
            "quality_transactions",
        ]
    granting.grant(earlier.runtime, role, "analyst")  # without the view that is not there yet
    attach_table(earlier.user, earlier.runtime, **ASKED)
    assert columns(earlier, "scored") == columns(earlier, "flagged") == [*before, "verdict"]
    assert columns(earlier, "quality")[:3] == ["day", "model_version", "labelled"]
    may = f"SELECT has_table_privilege('{role}', 'outlier.scored_transactions', 'SELECT')"
    assert earlier.rows(may) == [(True,)]
    attach_table(earlier.user, earlier.runtime, **ASKED)
    earlier.user.execute("DROP VIEW outlier.flagged_transactions, outlier.scored_transactions")
    attach_table(earlier.user, earlier.runtime, **ASKED)
    assert columns(earlier, "scored") == [*before[:5], "since", *before[5:], "verdict"]


def test_a_source_of_an_earlier_version_is_trained_with_verdicts_as_it_is(earlier: Table) -> None:
    earlier.insert(1, 250)
    give(earlier, (5, "fraud"))
    with earlier.runtime.engine.begin() as connection:
        rows = training_rows.read(connection, earlier.source, newest=250)
    assert (rows.n_normal, rows.left_out) == (249, {"fraud_verdict": 1})
