"""Keys of two to four columns, of every type, in ordinary and in partitioned tables: all that is done with a key."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest

from pgoutlier.db.errors import VerdictError
from pgoutlier.db.versions import challenger_scores
from pgoutlier.worker.history import keeping
from pgoutlier.worker.jobs import job_control
from pgoutlier.worker.jobs.job_control import Started
from pgoutlier.worker.runtime import Runtime
from pgoutlier.worker.sources import filling
from pgoutlier.worker.upkeep import maintenance
from pgoutlier.worker.verdicts import judging, verdict_csv
from pgoutlier.worker.versions import versions
from tests.readings import SEQUENCE_RECIPE
from tests.support import Connection, Table, attach_table, make_detector, register


@dataclass(frozen=True)
class Kind:
    """A kind of table t of x, y and a key. key_of_i: SQL of the columns of the i-th key, in order."""

    table: str
    key: tuple[str, ...]
    key_of_i: tuple[str, ...]


KINDS = {
    "two numbers": Kind(
        "CREATE TABLE t (tenant integer, id bigint, x float8, y float8, PRIMARY KEY (tenant, id))",
        ("tenant", "id"),
        ("(i % 3)::integer", "i"),
    ),
    "number and moment, by month": Kind(
        "CREATE TABLE t (id bigint, at timestamptz, x float8, y float8, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);"
        " CREATE TABLE t_old PARTITION OF t FOR VALUES FROM (MINVALUE) TO ('2026-02-01');"
        " CREATE TABLE t_new PARTITION OF t FOR VALUES FROM ('2026-02-01') TO (MAXVALUE)",
        ("id", "at"),
        ("i", "'2026-01-31 12:00:00.25+00'::timestamptz + i * interval '1 minute'"),
    ),
    "uuid, text, date, smallint, odd names": Kind(
        'CREATE TABLE t ("a b" uuid, "C%" varchar(40), "d""e" date, f smallint, x float8, y float8,'
        ' PRIMARY KEY (f, "a b", "C%", "d""e"))',
        ("a b", "C%", 'd"e', "f"),
        (
            "md5(i::text)::uuid",
            "concat('n°', i, '\"\\', chr(9), repeat('z', i::integer % 5))",
            "'0044-03-15 BC'::date + i::integer",
            "(i % 7)::smallint",
        ),
    ),
    "timestamp and text, in lists of hashes": Kind(
        "CREATE TABLE t (country text, at timestamp, x float8, y float8, PRIMARY KEY (country, at))"
        " PARTITION BY LIST (country); CREATE TABLE t_rest PARTITION OF t DEFAULT PARTITION BY HASH (at);"
        " CREATE TABLE t_ch PARTITION OF t FOR VALUES IN ('ch');"
        " CREATE TABLE t_rest_0 PARTITION OF t_rest FOR VALUES WITH (MODULUS 2, REMAINDER 0);"
        " CREATE TABLE t_rest_1 PARTITION OF t_rest FOR VALUES WITH (MODULUS 2, REMAINDER 1)",
        ("country", "at"),
        (
            "CASE i % 3 WHEN 0 THEN 'ch' WHEN 1 THEN 'de' ELSE 'fr' END",
            "CASE i WHEN 1 THEN 'infinity' WHEN 2 THEN '-infinity' ELSE timestamp '2026-01-01' + i * interval '1us'"
            " END",
        ),
    ),
}


@dataclass(frozen=True)
class Keyed:
    """A table of one of the kinds, attached, with a champion."""

    table: Table
    kind: Kind

    @property
    def user(self) -> Connection:
        return self.table.user

    def insert(self, first: int, last: int) -> None:
        keys = ", ".join(self.kind.key_of_i).replace("%", "%%")
        self.user.execute(
            f"INSERT INTO t SELECT {keys}, i * 0.5, sqrt(i) FROM generate_series(%s::bigint, %s::bigint) i",  # type: ignore[arg-type]
            (first, last),
        )

    def one(self, statement: str, *params: Any) -> Any:
        return self.user.execute(statement, params).fetchone()[0]  # type: ignore[arg-type,index]

    def matched(self) -> int:
        """Scores that lie with a row, as the view finds them."""
        return int(self.one("SELECT count(*) FROM outlier.scored_t"))

    def n_scores(self) -> int:
        return int(self.one("SELECT count(*) FROM outlier.scores_t"))

    def key_texts(self) -> list[str]:
        return [
            row[0] for row in self.user.execute("SELECT row_key FROM outlier.scored_t ORDER BY x").fetchall()
        ]


@pytest.fixture(params=KINDS)
def keyed(request: pytest.FixtureRequest, user: Connection, runtime: Runtime) -> Keyed:
    kind = KINDS[request.param]
    user.execute(kind.table)  # type: ignore[arg-type]
    quoted = ",".join('"' + name.replace('"', '""') + '"' for name in kind.key)
    table = attach_table(user, runtime, relation="t", key=quoted, features="x,y")
    table = table.with_settings(job_range_rows=60)
    table.promote()
    return Keyed(table, kind)


def test_each_row_gets_its_score_by_insert_and_by_update(keyed: Keyed) -> None:
    keyed.insert(1, 500)
    keyed.table.drain_all()
    assert keyed.matched() == keyed.n_scores() == 500
    before = dict(keyed.user.execute("SELECT x, reconstruction_error FROM outlier.scored_t").fetchall())
    keyed.user.execute("UPDATE t SET y = y + 3 WHERE x <= 100")
    keyed.table.drain_all()
    after = dict(keyed.user.execute("SELECT x, reconstruction_error FROM outlier.scored_t").fetchall())
    assert {x for x in before if before[x] != after[x]} == {x for x in before if x <= 100}
    assert keyed.n_scores() == 500


@pytest.mark.postgres18
def test_rows_in_quarantine_and_back(keyed: Keyed) -> None:
    keyed.insert(1, 20)
    keyed.user.execute("UPDATE t SET y = 'NaN' WHERE x IN (1, 2)")
    keyed.table.drain_all()
    entries = [row[0] for row in keyed.user.execute("SELECT key FROM outlier.quarantine").fetchall()]
    assert keyed.matched() == keyed.n_scores() == 18
    assert sorted(entries) == sorted(
        row[0]
        for row in keyed.user.execute(f"SELECT {text_of(keyed)} FROM t WHERE x IN (1, 2)").fetchall()  # type: ignore[arg-type]
    )
    keyed.user.execute(
        "ALTER TABLE t DISABLE TRIGGER USER; UPDATE t SET y = 1; ALTER TABLE t ENABLE TRIGGER USER"
    )
    assert maintenance.retry_quarantine(keyed.table.runtime, "t", [entries[0]]) == 1
    assert maintenance.retry_quarantine(keyed.table.runtime, "t", [json.loads(entries[1])]) == 1
    keyed.table.drain_all()
    assert keyed.matched() == 20
    assert keyed.one("SELECT count(*) FROM outlier.quarantine") == 0


def test_a_row_that_cannot_be_read_is_named_and_holds_up_no_other(user: Connection, runtime: Runtime) -> None:
    user.execute(KINDS["number and moment, by month"].table)  # type: ignore[arg-type]
    user.execute("CREATE VIEW f AS SELECT id, at, x / y AS ratio, x FROM t")
    table = attach_table(user, runtime, relation="t", key="id,at", feature_view="f")
    table.promote()
    keyed = Keyed(table, KINDS["number and moment, by month"])
    keyed.insert(1, 30)
    user.execute("UPDATE t SET y = 0 WHERE x = 3")
    table.drain_all()
    assert keyed.matched() == 29
    assert keyed.one("SELECT key FROM outlier.quarantine") == '[6, "2026-01-31T12:06:00.25+00:00"]'
    assert "division by zero" in keyed.one("SELECT detail FROM outlier.quarantine")


def test_sweep_prune_and_jobs(keyed: Keyed) -> None:
    keyed.user.execute("ALTER TABLE t DISABLE TRIGGER USER")
    keyed.insert(1, 250)
    keyed.user.execute("ALTER TABLE t ENABLE TRIGGER USER")
    runtime = keyed.table.runtime
    assert maintenance.sweep(runtime, "t") == 250
    assert maintenance.sweep(runtime, "t") == 0
    keyed.table.drain_all()
    assert keyed.matched() == 250
    keyed.user.execute("DELETE FROM t WHERE x > 100")
    maintenance.prune_all(runtime)
    assert keyed.matched() == keyed.n_scores() == 200
    keyed.user.execute("ALTER TABLE t DISABLE TRIGGER USER")
    keyed.insert(1_001, 1_300)
    keyed.user.execute("ALTER TABLE t ENABLE TRIGGER USER")
    run_job(keyed, job_control.backfill(runtime, "t"))
    assert keyed.matched() == 500
    version = keyed.table.promote(make_detector(("x", "y"), seed=7, threshold=0.0))
    run_job(keyed, job_control.rescore(runtime, "t", None))
    assert (
        keyed.one("SELECT count(*) FROM outlier.scored_t WHERE model_version = %s AND flagged", version)
        == 500
    )
    run_job(keyed, job_control.reflag(runtime, "t", 1e12))
    assert keyed.one("SELECT count(*) FROM outlier.flagged_t") == 0


def test_verdicts_in_every_form_that_a_key_has(keyed: Keyed) -> None:
    keyed.insert(1, 12)
    keyed.table.promote(make_detector(("x", "y"), threshold=0.0))
    keyed.table.drain_all()
    runtime, columns = keyed.table.runtime, keyed.table.source.definition.key.columns
    texts = keyed.key_texts()
    first, second, third, fourth = (json.loads(text) for text in texts[:4])
    assert judging.label(runtime, "t", [texts[4], texts[5]], "fraud").n_given == 2
    assert judging.label(runtime, "t", [str(part) for part in first], "fraud").n_given == 1
    assert (
        judging.label(runtime, "t", [second, dict(zip(columns, third, strict=True))], "normal").n_given == 2
    )
    lines = [
        ",".join(map(csv_cell, [*columns, "verdict"])),
        ",".join(map(csv_cell, [*map(str, fourth), "fraud"])),
    ]
    given = verdict_csv.read([f"{line}\n".encode() for line in lines], "file")
    assert judging.give(runtime, "t", given).n_given == 1
    keyed.user.execute(
        "INSERT INTO outlier.verdicts (source, key, verdict) SELECT 't', row_key, 'fraud' FROM outlier.flagged_t"
        " WHERE x = 3.5"
    )
    seen = keyed.user.execute("SELECT verdict FROM outlier.scored_t ORDER BY x").fetchall()
    assert [v for (v,) in seen] == ["fraud", "normal", "normal", *["fraud"] * 4, *[None] * 5]
    assert keyed.one("SELECT sum(labelled) FROM outlier.quality_t") == 7
    assert judging.listed(runtime, "t", key=texts[1], history=False, limit=5)[0].verdict == "normal"
    with pytest.raises(VerdictError, match="no row"):
        judging.label(runtime, "t", [*texts[:2], json.dumps([*first[:-1], other(keyed)])], "fraud")
    with pytest.raises(VerdictError, match="cannot be a key of source t"):
        judging.label(runtime, "t", [str(first[0])], "fraud")


def csv_cell(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


def other(keyed: Keyed) -> Any:
    """A last value of a key that no row has."""
    kind = keyed.table.source.definition.key.types[-1]
    moment = "1999-01-01T00:00:00" + ("+00:00" if kind == "timestamptz" else "")
    return {"bigint": 10**9, "smallint": 999}.get(kind, moment)


@pytest.mark.postgres18
def test_a_key_reads_the_same_in_every_session(keyed: Keyed) -> None:
    keyed.insert(1, 5)
    keyed.table.drain_all()
    here = keyed.key_texts()
    zone = "America/St_Johns"
    keyed.user.execute(f"SET timezone = '{zone}'; SET datestyle = 'SQL, DMY'; SET intervalstyle = 'iso_8601'")
    assert keyed.key_texts() == here
    key = keyed.table.source.definition.key
    assert [key.canonical(text) for text in here] == here


@pytest.mark.postgres18
def test_history_and_written_columns_follow_the_key(keyed: Keyed) -> None:
    keyed.insert(1, 40)
    keyed.table.drain_all()
    runtime = keyed.table.runtime
    keeping.keep(runtime, "t")
    with_columns(keyed)
    filling.fill(runtime, "t")
    assert keyed.one("SELECT count(*) FROM t WHERE reconstruction_error IS NOT NULL") == 40
    keyed.table.promote(make_detector(("x", "y"), seed=3))
    keyed.user.execute("UPDATE t SET y = y + 1 WHERE x <= 5")
    keyed.insert(41, 45)
    keyed.table.drain_all()
    assert keyed.one("SELECT count(*) FROM outlier.scored_t s JOIN t USING (x, reconstruction_error)") == 45
    text = keyed.key_texts()[2]
    assert [row.replaced_at is None for row in keeping.of_row(runtime, "t", [text])] == [True, False]
    assert len(keeping.of_row(runtime, "t", [str(part) for part in json.loads(text)])) == 2


def with_columns(keyed: Keyed) -> None:
    key = keyed.table.source.definition.key.shown
    attach_table(keyed.user, keyed.table.runtime, relation="t", key=key, features="x,y", write_columns=True)


@pytest.mark.postgres18
def test_a_challenger_is_compared_by_key(keyed: Keyed) -> None:
    challenger = register(
        keyed.table.runtime, keyed.table.source, make_detector(("x", "y"), seed=9, threshold=0.0)
    )
    versions.challenge(keyed.table.runtime, "t", challenger, reason="test")
    keyed.insert(1, 30)
    keyed.table.drain_all()
    assert keyed.one("SELECT rows FROM outlier.comparison_t") == 30
    with keyed.table.runtime.engine.begin() as connection:
        found = challenger_scores.disagreements(connection, keyed.table.source.definition, limit=5)
    assert {row.key for row in found} <= set(keyed.key_texts())


def test_windows_of_rows_before(user: Connection, runtime: Runtime) -> None:
    """The same scores as of a table with one key column."""
    keys = {
        "one": "id bigint PRIMARY KEY, tenant int",
        "two": "tenant int, id bigint, PRIMARY KEY (tenant, id)",
    }
    for name, key in keys.items():
        user.execute(f"CREATE TABLE {name} ({key}, at timestamptz, x float8, y float8)")  # type: ignore[arg-type]
    errors = []
    for name, key in (("one", "id"), ("two", "tenant,id")):
        table = attach_table(
            user,
            runtime,
            relation=name,
            key=key,
            features="x,y",
            time="at",
            entity="tenant",
            recipe=SEQUENCE_RECIPE,
        )
        table.promote(make_detector(("x", "y"), recipe=SEQUENCE_RECIPE))
        for first, last in ((1, 20), (31, 40), (21, 30)):
            user.execute(
                f"INSERT INTO {name} (tenant, id, at, x, y) SELECT i %% 2, i, '2026-01-01'::timestamptz + i * interval"  # type: ignore[arg-type]
                " '1 h', sin(i), cos(i) FROM generate_series(%s::bigint, %s::bigint) i",
                (first, last),
            )
            table.drain_all()
        errors.append(
            user.execute(f"SELECT id, reconstruction_error FROM outlier.scored_{name} ORDER BY id").fetchall()  # type: ignore[arg-type]
        )
    assert len(errors[0]) == 40
    assert errors[0] == errors[1]


def run_job(keyed: Keyed, job: Started) -> None:
    job_control.work(keyed.table.runtime, job.id)
    assert keyed.one("SELECT status FROM outlier.jobs WHERE id = %s", job.id) == "succeeded"


def text_of(keyed: Keyed) -> str:
    """SQL of the key as text, by the view that shows it."""
    definition = keyed.table.source.definition
    return definition.key.text_of_row("t").as_string(None).replace("%%", "%")
